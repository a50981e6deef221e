"""What scores of predictions against references refuse: nothing to score, and lists that do not belong together."""

from collections.abc import Sequence, Sized

Words = Sequence[str]


def check_paired(predictions: Sized, references: Sized) -> None:
    """There is one reference, or one list of them, for each of one or more predictions."""
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions but {len(references)} references: there must be as many")
    if len(predictions) == 0:
        raise ValueError("0 predictions and 0 references: there is nothing to score")


def check_several(predictions: Sized, references: Sequence[Sequence[object]]) -> None:
    """Each prediction has a list of one or more references; a text in its place would be read as a list of letters."""
    check_paired(predictions, references)
    for item, several in enumerate(references):
        if isinstance(several, str):
            raise ValueError(f"item {item}: a list of references is expected, not one text: {several!r}")
        if len(several) == 0:
            raise ValueError(f"item {item}: has no reference")


def check_words(predictions: Sequence[Words], references: Sequence[Sequence[Words]]) -> None:
    """As `check_several`, where predictions and references are lists of words."""
    check_several(predictions, references)
    for item, (prediction, several) in enumerate(zip(predictions, references, strict=True)):
        for words in (prediction, *several):
            if isinstance(words, str):
                raise ValueError(f"item {item}: a list of words is expected, not a text: {words!r}")
