"""What a trained model says of photographs: captions, answers, whether sentences are true of them, which text is of which.

The same path as training: regions are found as `tools/extract_features.py` finds them, into a store that lasts as long as the
command; questions and sentences become a task's own `Example`s; captions and scores are those of `Unimo`.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory

from unimo_ds import distributed
from unimo_ds.data.store import RegionStore, RegionStoreWriter, finish_store
from unimo_ds.errors import ConfigError, DataError
from unimo_ds.opening import PRETRAINING, Start, open_finetuned, read_start
from unimo_ds.pretrained import Unimo, open_detector
from unimo_ds.regions import Regions
from unimo_ds.tasks.answering import answers_of
from unimo_ds.tasks.entailment import Entailment
from unimo_ds.tasks.examples import ExampleSet
from unimo_ds.tasks.task import Example
from unimo_ds.tasks.vqa import Vqa
from unimo_ds.vision.detector import Detector
from unimo_ds.vision.drawing import draw_surest, write_under
from unimo_ds.vision.extract import extract
from unimo_ds.vision.image_sources import Item
from unimo_ds.vision.pictures import fit, picture_of

_SHOWN = 5  # likeliest answers; texts under a photograph
_SIDE = 640  # pixels of a drawing, without what is written under it


@dataclass(frozen=True)
class Prediction:
    """What a model says.

    Attributes:
        asked: the question or sentence; the photograph that a caption or texts are for; the text that photographs are for.
        answers: the best first, each with its probability or score; captions have none.
    """

    asked: str
    answers: list[tuple[str, float | None]]

    @property
    def lines(self) -> list[str]:
        """The same for people."""
        answers = (answer if number is None else f"{number:.3f}  {answer}" for answer, number in self.answers)
        return [self.asked, *(f"  {answer}" for answer in answers)]


@dataclass(frozen=True)
class Predictions:
    """All that was asked for.

    Attributes:
        found: what the model says.
        drawings: the photographs with their surest regions, and beneath them what was said.
    """

    found: list[Prediction]
    drawings: list[Path]

    @property
    def text(self) -> str:
        """The same for people."""
        return "\n".join([*(line for each in self.found for line in each.lines), *(f"drawn: {path}" for path in self.drawings)])


def caption_photographs(photographs: Sequence[Path], run: Path, out: Path, detector: str | None = None) -> Predictions:
    """A caption of each photograph, by a model of captioning or of pre-training.

    Args:
        photographs: files; one that cannot be read is named and stepped over.
        run: a run folder or a checkpoint.
        out: folder of the drawings.
        detector: what `load_detector` opens; None: the packaged one that the model was trained with.

    Raises:
        ConfigError: the model is of another family, or its detector is not packaged.
        DataError: not one photograph can be read.
        StoreError: the model was trained on regions of another detector.
    """
    start = _read_start(run, "caption", "captioning", PRETRAINING)
    with _seen(photographs, start, detector) as seen:
        captions = Unimo.from_pretrained(start.checkpoint, seen.detector).generate(list(seen.regions.values()))
        found = [Prediction(name, [(caption, None)]) for name, caption in zip(seen.regions, captions, strict=True)]
        return Predictions(found, seen.draw([[caption] for caption in captions], out))


def match_photographs(
    photographs: Sequence[Path], texts: Sequence[str], run: Path, out: Path, detector: str | None = None
) -> Predictions:
    """For each text the photographs, and for each photograph the texts, by a model of retrieval or of pre-training.

    Args, Raises: as in `caption_photographs`; all photographs are scored with all `texts`.
    """
    start = _read_start(run, "retrieve", "retrieval", PRETRAINING)
    with _seen(photographs, start, detector) as seen:
        names = list(seen.regions)
        scores_IX = Unimo.from_pretrained(start.checkpoint, seen.detector).score(list(seen.regions.values()), list(texts))
        of_texts = [_ranked(text, names, scores_I.tolist()) for text, scores_I in zip(texts, scores_IX.T, strict=True)]
        of_images = [_ranked(name, texts, scores_X.tolist()) for name, scores_X in zip(names, scores_IX, strict=True)]
        return Predictions(of_texts + of_images, seen.draw([each.lines[1:][:_SHOWN] for each in of_images], out))


def answer_questions(
    photograph: Path, questions: Sequence[str], run: Path, out: Path, detector: str | None = None
) -> Predictions:
    """The likeliest answers to questions about a photograph, by a model of VQA; as in `caption_photographs`."""
    return _ask(photograph, questions, _read_start(run, "vqa", "vqa"), out, detector)


def judge_sentences(
    photograph: Path, sentences: Sequence[str], run: Path, out: Path, detector: str | None = None
) -> Predictions:
    """Whether a photograph entails sentences, by a model of SNLI-VE; as in `caption_photographs`."""
    return _ask(photograph, sentences, _read_start(run, "entail", "entailment"), out, detector)


def _read_start(run: Path, command: str, *families: str) -> Start:
    start = read_start(run)
    if start.family not in families:
        raise ConfigError(
            f"--model {run}: is a model of {start.family}; `unimo-ds predict {command}` wants one of {' or '.join(families)}"
        )
    return start


def _ask(photograph: Path, texts: Sequence[str], start: Start, out: Path, detector: str | None) -> Predictions:
    """The likeliest answers of a fine-tuned model to texts about a photograph."""
    with _seen([photograph], start, detector) as seen:
        opened = open_finetuned(start.checkpoint, [])
        task = opened.task
        assert isinstance(task, Vqa | Entailment)
        (key,) = seen.regions
        examples = [Example(str(number), (text,), key, seen.store) for number, text in enumerate(texts)]
        asked = ExampleSet(str(photograph), task, examples, start.tokenizer, opened.config.data, teach=False)
        answers = answers_of(opened.model, asked, start.model.feature_width)
        found = [Prediction(text, list(task.likeliest(answer)[:_SHOWN])) for text, answer in zip(texts, answers, strict=True)]
        said = [f"{each.asked} {answer} ({number:.2f})" for each in found for answer, number in each.answers[:1]]
        return Predictions(found, seen.draw([said], out))


def _ranked(asked: str, answers: Sequence[str], scores: Sequence[float]) -> Prediction:
    order = sorted(range(len(answers)), key=lambda place: -scores[place])
    return Prediction(asked, [(answers[place], scores[place]) for place in order])


@dataclass(frozen=True)
class _Seen:
    """Photographs with their regions, by name, which is the key in the store."""

    detector: Detector
    store: RegionStore
    regions: dict[str, Regions]

    def draw(self, lines: Sequence[Sequence[str]], out: Path) -> list[Path]:
        """Writes each photograph with its surest regions and some lines beneath as `STEM.png`, or `STEM-2.png` where that is
        a photograph itself, or another one's drawing.
        """
        out.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        taken = {Path(name).resolve() for name in self.regions}
        for (name, regions), said in zip(self.regions.items(), lines, strict=True):
            picture, _ = picture_of(regions, name, Path())
            drawn, _ = draw_surest(fit(picture, _SIDE), regions, self.store.class_names, self.store.attribute_names)
            names = chain([f"{Path(name).stem}.png"], (f"{Path(name).stem}-{number}.png" for number in count(2)))
            written.append(next(out / each for each in names if (out / each).resolve() not in taken))
            taken.add(written[-1].resolve())
            write_under(drawn, said).save(written[-1])
        return written


@contextmanager
def _seen(photographs: Sequence[Path], start: Start, given: str | None) -> Iterator[_Seen]:
    """Finds the regions of photographs; the store of them is there until the end of the block."""
    detector = open_detector(start, given)
    if detector is None:
        raise ConfigError(
            f"{start.checkpoint}: was trained on regions of a detector that is not packaged "
            f"({start.detector['architecture']}); give it: --detector FILE"
            if start.detector
            else f"{start.checkpoint}: does not know whose regions it was trained on; give the detector: --detector FILE, or "
            "--detector world, the packaged one of drawn pictures"
        )
    items = [Item(name, name) for name in dict.fromkeys(map(str, photographs))]
    with TemporaryDirectory(prefix="unimo-ds-") as folder:
        names = detector.class_names, detector.attribute_names
        with RegionStoreWriter(Path(folder), detector.identity(), 0, *names) as writer:

            def write(batch: list[tuple[str, Regions]]) -> None:
                for key, regions in batch:
                    writer.write(key, regions)

            failures = extract(items, detector.to(distributed.device()), write, workers=0, show_progress=False)
        for failure in failures:
            print(f"{failure.path}: left out: {failure.reason}", file=sys.stderr)
        if len(failures) == len(items):
            raise DataError(f"not one of {len(items)} photographs can be read")
        finish_store(Path(folder))
        store = RegionStore(Path(folder))
        yield _Seen(detector, store, {item.key: store.get(item.key) for item in items if item.key in store})
