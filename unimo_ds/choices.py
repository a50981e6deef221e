"""Held-out tests by choice: of a true caption and false ones, which does the model find to fit the image best?

Two answers are read off a model:

- the score of image and caption encoded together: CMCL's cosine, or the matching head's logit in a run without CMCL;
- the words alone: the changed words of both captions are masked, and the likelier ones win. It needs no contrastive
  training, and it is how a fact that stands only in texts can show itself.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from unimo_ds import distributed
from unimo_ds.batch import Kind
from unimo_ds.config import ChoicesSection, RunConfig
from unimo_ds.data.corpus import can_be_read
from unimo_ds.data.packing import Packer
from unimo_ds.data.prepared import Rejects
from unimo_ds.data.sequences import IGNORED, Member, PackedText, ViewMaker
from unimo_ds.data.sequences import Sequence as View
from unimo_ds.data.store import RegionStore
from unimo_ds.errors import DataError
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.objectives.matching import joint_scores
from unimo_ds.rewrites import LEVELS, Rewrite, RewrittenCaption, read_rewrites
from unimo_ds.tokenizer import Tokenizer

_CAPTIONS_AT_ONCE = 8
_SHOWN = 6


@dataclass(frozen=True)
class ChoiceExample:
    """One caption of a test: its true text and the false one that scored best."""

    test: str
    image: str
    true: str
    false: str
    reason: str
    true_score: float
    false_score: float


class ChoiceTest:
    """A test with its captions.

    Args:
        section: where it is.
        config: the run.
        tokenizer: the run's tokenizer.
        show: report what cannot be used.

    Raises:
        DataError: there is not one caption that can be used.
    """

    def __init__(self, section: ChoicesSection, config: RunConfig, tokenizer: Tokenizer, show: bool) -> None:
        self.name, self.config, self.store = section.name, config, RegionStore(section.regions)
        self.tokenizer, self.views = tokenizer, ViewMaker(tokenizer, config.objectives.masking)
        rejects = Rejects()
        # Counted first and picked at the second reading: the file may be large, and every rank reads it.
        count = sum(1 for _ in self._usable(section, rejects))
        if show:
            rejects.report(f"evaluation.choices {self.name}", count)
        if not count:
            raise DataError(f"evaluation.choices {self.name}: {section.path}: not one caption with negatives that has an image")
        places = set(np.linspace(0, count - 1, min(section.captions, count)).astype(int).tolist())
        self.captions = [caption for place, caption in enumerate(self._usable(section, Rejects())) if place in places]
        self.negatives = [_spread(caption, section.negatives) for caption in self.captions]

    def _usable(self, section: ChoicesSection, rejects: Rejects) -> Iterator[RewrittenCaption]:
        for caption in read_rewrites(section.path, rejects):
            # A caption that could not be rewritten asks nothing.
            if can_be_read(self.store, caption.image, rejects, str(section.path)) and caption.negatives:
                yield caption

    def packer(self) -> Packer:
        """An empty packer of this run."""
        return Packer(self.config.model.feature_width, self.config.data.max_regions)

    def tokens(self, text: str) -> npt.NDArray[np.int64]:
        """Token ids of a text, cut to the run's length."""
        return np.array(self.tokenizer.encode([text])[0][: self.config.data.max_text_tokens - 2], np.int64)


def _spread(caption: RewrittenCaption, count: int) -> list[Rewrite]:
    """Up to `count` negatives, level by level in turn, each level spread over its list."""
    by_level = [[rewrite for rewrite in caption.negatives if rewrite.level == level] for level in LEVELS]
    chosen: list[Rewrite] = []
    share = count
    waiting = sum(map(bool, by_level))
    for rewrites in sorted(filter(None, by_level), key=len):
        take = min(len(rewrites), share // waiting)
        chosen += [rewrites[place] for place in np.linspace(0, len(rewrites) - 1, take).astype(int).tolist()]
        share, waiting = share - take, waiting - 1
    return chosen


@torch.no_grad()
def run_choices(unimo: UnimoModel, test: ChoiceTest) -> tuple[dict[str, float], list[ChoiceExample]]:
    """Measures a model in evaluation mode; every rank must call it.

    Returns:
        Numbers, `NAME` being the test's: `eval/NAME_right` is the share of captions that score higher than all their false
        ones (`eval/NAME_chance`: by guessing), `eval/NAME_beaten` the share of false ones that score lower than the true one
        (a tie counts half), the same by level and by the first word of the reason, and `eval/NAME_words` the share of false
        ones whose changed words are less likely than the true ones. And examples, the worst mistakes first.
    """
    scores = _gathered(
        [_joint_scores(unimo, test, numbers) for numbers in distributed.shares(len(test.captions), _CAPTIONS_AT_ONCE)]
    )
    words = _gathered(
        [_word_scores(unimo, test, numbers) for numbers in distributed.shares(len(test.captions), _CAPTIONS_AT_ONCE)]
    )
    beaten: dict[str, list[float]] = defaultdict(list)
    examples: list[ChoiceExample] = []
    right: list[float] = []
    for number, caption in enumerate(test.captions):
        true, *false = scores[number]
        right.append(float(true > max(false)))
        for rewrite, score in zip(test.negatives[number], false, strict=True):
            wins = (true > score) + 0.5 * (true == score)
            for group in {"beaten", rewrite.level, _kind_of_change(rewrite)}:
                beaten[group].append(wins)
        best = int(np.argmax(false))
        chosen = test.negatives[number][best]
        examples.append(ChoiceExample(test.name, caption.image, caption.text, chosen.text, chosen.reason, true, false[best]))
    numbers = {f"eval/{test.name}_{group}": float(np.mean(wins)) for group, wins in beaten.items()}
    numbers[f"eval/{test.name}_right"] = float(np.mean(right))
    numbers[f"eval/{test.name}_chance"] = float(np.mean([1 / (1 + len(negatives)) for negatives in test.negatives]))
    flat = [wins for number in range(len(test.captions)) for wins in words[number]]
    numbers[f"eval/{test.name}_words"] = float(np.mean(flat))
    examples.sort(key=lambda example: example.true_score - example.false_score)
    half = _SHOWN // 2
    return numbers, examples if len(examples) <= _SHOWN else examples[:half] + examples[-half:]


def _kind_of_change(rewrite: Rewrite) -> str:
    """`attribute` of `attribute: red -> blue`; the level where the reason does not begin so."""
    found = re.match(r"([a-z]+): ", rewrite.reason)
    return found[1] if found else rewrite.level


def _gathered(parts: Sequence[dict[int, list[float]]]) -> dict[int, list[float]]:
    """What all ranks found, by caption."""
    return {number: found for rank in distributed.gather_objects(parts) for part in rank for number, found in part.items()}


def _run(unimo: UnimoModel, packer: Packer) -> Any:
    return unimo(packer.build().to(distributed.device()))


def _joint_scores(unimo: UnimoModel, test: ChoiceTest, numbers: list[int]) -> dict[int, list[float]]:
    """The score of the true caption and of each false one, by caption."""
    packer = test.packer()
    sizes = []
    for number in numbers:
        caption, negatives = test.captions[number], test.negatives[number]
        image, shown = packer.add_image(test.store.get(caption.image))
        for text in (caption.text, *(negative.text for negative in negatives)):
            member = Member(packer.add_pair(0), Kind.PAIR)
            packer.add(View(image=image, regions=shown, text=test.views.whole_text(test.tokens(text)), member=member))
        sizes.append(1 + len(negatives))
    outputs = _run(unimo, packer)
    found = iter(joint_scores(outputs, test.config.objectives).tolist())
    return {number: [next(found) for _ in range(size)] for number, size in zip(numbers, sizes, strict=True)}


def _word_scores(unimo: UnimoModel, test: ChoiceTest, numbers: list[int]) -> dict[int, list[float]]:
    """For each false caption 1, 0.5 or 0: are the true words where it differs likelier, given image and the rest?

    Likelier a token, on the mean. Where one of the two only has words more, there is nothing to compare: 0.5.
    """
    packer = test.packer()
    sizes: list[list[tuple[int, int]]] = []
    for number in numbers:
        caption = test.captions[number]
        image, shown = packer.add_image(test.store.get(caption.image))
        true = test.tokens(caption.text)
        counts = []
        for negative in test.negatives[number]:
            false = test.tokens(negative.text)
            start, end = _common_ends(true, false)
            for tokens in (true, false):
                text = _masked_between(test.views, tokens, start, len(tokens) - end)
                packer.add(View(image=image, regions=shown, text=text))
            counts.append((len(true) - end - start, len(false) - end - start))
        sizes.append(counts)
    losses = iter(_run(unimo, packer).language_losses_M.tolist())

    def mean(count: int) -> float:
        return float(np.mean([next(losses) for _ in range(count)])) if count else np.nan

    found: dict[int, list[float]] = {}
    for number, counts in zip(numbers, sizes, strict=True):
        answers = [(mean(true), mean(false)) for true, false in counts]
        found[number] = [0.5 if np.isnan(true + false) else (true < false) + 0.5 * (true == false) for true, false in answers]
    return found


def _common_ends(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> tuple[int, int]:
    """How many tokens two texts share at the start, and, of the rest, at the end."""
    shorter = min(len(first), len(second))
    start = next((place for place in range(shorter) if first[place] != second[place]), shorter)
    end = next((place for place in range(shorter - start) if first[-1 - place] != second[-1 - place]), shorter - start)
    return start, end


def _masked_between(views: ViewMaker, tokens: npt.NDArray[np.int64], start: int, stop: int) -> PackedText:
    """`tokens` with those of `[start, stop)` masked and to be predicted."""
    seen, labels = tokens.copy(), np.full(len(tokens), IGNORED)
    seen[start:stop], labels[start:stop] = views.tokenizer.mask, tokens[start:stop]
    whole = views.whole_text(seen)
    return PackedText(whole.ids, whole.positions, np.concatenate([[IGNORED], labels, [IGNORED]]), whole.source_length)
