"""Back-translation: a caption to another language and back says the same in other words.

Two translators behind one protocol: Apertium, a program of rules that Debian packages and that needs no network and no
GPU; and MarianMT, neural models that people download once. Neither is trusted: who calls them must filter what comes back.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Protocol

import torch

from unimo_ds import distributed
from unimo_ds.errors import ConfigError

_PARAGRAPH = "\n\n"  # ends a sentence for Apertium; at a single line break it would move words from one caption to the next
_MARK = re.compile(r"(?<!\S)[*@#](?=\w)")  # before a word that Apertium does not know, or can not inflect
_MOST_TOKENS = 128  # a caption is far shorter; what rambles on is cut, and then means something else
_GAPS = re.compile(r"\s+")

# Words of a set are one word in the pivot languages, or Apertium takes one for another: which it was, only the text knows.
_CONFUSED = (
    frozenset({"in", "on", "at"}),
    frozenset({"that", "than"}),
    frozenset({"he", "she", "it", "him", "her"}),
    frozenset({"his", "her", "its", "their"}),
    frozenset({"a", "one", "some"}),
    frozenset({"an", "one", "some"}),
    frozenset({"is", "are"}),
    frozenset({"shown", "showed"}),
    frozenset({"green", "unripe"}),
)


class Translator(Protocol):
    """Translates English there and back.

    Attributes:
        name: says in settings and reasons which translator it is; another name means other translations.
    """

    name: str

    def back_translate(self, texts: Sequence[str]) -> list[list[str]]:
        """For each text, what came back of it: any number of variants, maybe equal to the text or to each other."""
        ...


class ApertiumTranslator:
    """The program `apertium`, with one variant for each pivot language.

    Args:
        pivots: languages to translate through, as Apertium names them.

    Raises:
        ConfigError: the program or a pair of languages is not installed.
    """

    def __init__(self, pivots: Sequence[str] = ("cat", "spa")) -> None:
        packages = " ".join(["apertium", *(f"apertium-eng-{pivot}" for pivot in pivots)])
        if shutil.which("apertium") is None:
            raise ConfigError(f"the program `apertium` is not installed: `apt-get install {packages}`")
        installed = _run(["apertium", "-l"], "").split()
        for direction in (way for pivot in pivots for way in (f"eng-{pivot}", f"{pivot}-eng")):
            if direction not in installed:
                raise ConfigError(
                    f"apertium has no language pair {direction!r}, only {', '.join(installed) or 'none'}: "
                    f"`apt-get install {packages}`"
                )
        self.pivots = tuple(pivots)
        self.name = f"apertium {' '.join(self.pivots)}"

    def back_translate(self, texts: Sequence[str]) -> list[list[str]]:
        """A variant for each pivot, but for mangled ones; one start of the programs (a quarter of a second) serves all."""
        lines = [_GAPS.sub(" ", text).strip() for text in texts]
        variants = [self._there_and_back(lines, pivot) for pivot in self.pivots]
        rows = zip(lines, *variants, strict=True)
        return [[_mend(variant, text) for variant in row if not _has_torn_word(variant, text)] for text, *row in rows]

    def _there_and_back(self, lines: Sequence[str], pivot: str) -> list[str]:
        """The lines after both ways; a batch that comes back with more or fewer of them is halved until each fits."""
        if not lines:
            return []
        there = _run(["apertium", "-u", f"eng-{pivot}"], _PARAGRAPH.join(lines) + _PARAGRAPH)
        returned = _run(["apertium", "-u", f"{pivot}-eng"], there).removesuffix(_PARAGRAPH).split(_PARAGRAPH)
        if len(returned) == len(lines):
            return returned
        if len(lines) == 1:
            return [" ".join(returned)]
        middle = len(lines) // 2
        return self._there_and_back(lines[:middle], pivot) + self._there_and_back(lines[middle:], pivot)


class MarianTranslator:
    """Two MarianMT models of local folders, such as OPUS-MT's en-de and de-en; on the GPU if there is one.

    The best `variants` translations of a beam search each come back as the best of theirs.

    Args:
        there, back: folders of the models, as `save_pretrained` writes them; for one pair of languages each.
        variants: translations a text, and width of the beams.
        batch: texts that are translated together on the way there.

    Raises:
        ConfigError: a folder holds no MarianMT model, or sentencepiece is not installed.
    """

    def __init__(self, there: Path, back: Path, variants: int = 4, batch: int = 32) -> None:
        self.variants, self.batch = variants, batch
        self._there, self._back = _Marian(there), _Marian(back)
        self.name = f"marian {there.name} {back.name} with {variants} beams"

    def back_translate(self, texts: Sequence[str]) -> list[list[str]]:
        """`variants` variants of each text, best first."""
        found: list[list[str]] = [[] for _ in texts]
        by_length = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        for start in range(0, len(texts), self.batch):
            numbers = by_length[start : start + self.batch]
            there = self._there.translate([texts[number] for number in numbers], self.variants, self.variants)
            returned = self._back.translate(there, self.variants, 1)
            for place, number in enumerate(numbers):
                found[number] = returned[place * self.variants : (place + 1) * self.variants]
        return found


class _Marian:
    """One direction."""

    def __init__(self, folder: Path) -> None:
        from transformers import MarianMTModel, MarianTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # of the loading, which takes no time
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder; name the local folder of a MarianMT model")
        try:
            self._tokenizer: Any = MarianTokenizer.from_pretrained(folder, local_files_only=True)
            model: Any = MarianMTModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError, ImportError, AssertionError) as error:
            raise ConfigError(
                f"{folder}: not a MarianMT model ({error}). It wants a folder with config.json, model.safetensors, vocab.json, "
                "source.spm and target.spm, and the package sentencepiece."
            ) from error
        self._device = distributed.device()
        self._model = model.to(self._device).eval()

    @torch.inference_mode()
    def translate(self, texts: Sequence[str], beams: int, wanted: int) -> list[str]:
        """The `wanted` best translations of each text, one text's after the other's."""
        inputs = self._tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True, max_length=_MOST_TOKENS)
        outputs = self._model.generate(
            **inputs.to(self._device), num_beams=beams, num_return_sequences=wanted, max_new_tokens=_MOST_TOKENS
        )
        translated: list[str] = self._tokenizer.batch_decode(outputs, skip_special_tokens=True)
        return translated


def _run(command: Sequence[str], text: str) -> str:
    done = subprocess.run(command, input=text, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise ConfigError(f"`{' '.join(command)}` failed with code {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _mend(variant: str, text: str) -> str:
    """Undoes what Apertium does wrong in every second caption: marks, spaces, a small first letter, confused words."""
    marks = _MARK.sub(lambda found: found[0] if found[0] in text else "", variant)
    words, known = re.sub(r" (?=[.,;:!?])", "", _GAPS.sub(" ", marks).strip()).split(" "), text.split(" ")
    for kind, start, end, first, last in SequenceMatcher(None, words, known, autojunk=False).get_opcodes():
        if kind == "replace" and end - start == last - first:
            for place, word in enumerate(known[first:last], start):
                if _confused(_bare(word), _bare(words[place])):
                    words[place] = word
                    article = known[first + place - start - 1]
                    if place > start and {_bare(words[place - 1]), _bare(article)} == {"a", "an"}:
                        words[place - 1] = article
    mended = " ".join(words)
    return mended[:1].upper() + mended[1:] if text[:1].isupper() else mended


def _has_torn_word(variant: str, text: str) -> bool:
    """Whether a compound was translated in parts: `close-up` comes back as `near-on top`."""
    return any(word not in text for word in re.findall(r"\w+-\w+", variant))


def _confused(word: str, other: str) -> bool:
    """Whether Apertium may have made one of the other: a word of its set, or a singular of a plural."""
    return word + "s" == other or word == other + "s" or any(word in kin and other in kin for kin in _CONFUSED)


def _bare(word: str) -> str:
    return word.strip(".,;:!?").lower()
