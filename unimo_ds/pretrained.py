"""A trained model in other programs: vectors, scores and texts of raw strings, and of photographs or their regions.

    from unimo_ds import Unimo

    model = Unimo.from_pretrained("runs/demo/world")
    model.score("photo.jpg", ["a red cup on a table", "two dogs"])

Imports no DeepSpeed and starts no process group.

Shape suffixes: N inputs, I images, X texts, D hidden width, T positions of the stream, S sequences of it, J joint encodings.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

from unimo_ds import distributed
from unimo_ds.batch import FIRST_POSITION, Batch, Kind
from unimo_ds.config import ObjectivesSection, TagsSection, TaskDataSection, usual_decoding
from unimo_ds.config.reading import validate_config
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import Member, PackedText
from unimo_ds.data.sequences import Sequence as View
from unimo_ds.data.store import expect_same_detector
from unimo_ds.engine.checkpoint_folder import damage_of
from unimo_ds.errors import CheckpointError, ConfigError, DataError
from unimo_ds.model.beams import Decoding
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.objectives.matching import joint_scores
from unimo_ds.opening import Finetuned, Start, open_finetuned, open_unimo, read_start
from unimo_ds.regions import Regions
from unimo_ds.tasks.classification import joined
from unimo_ds.tasks.dialogue import Dialogue
from unimo_ds.tasks.object_tags import tags_of
from unimo_ds.tasks.retrieval import Retrieval
from unimo_ds.tasks.task import Tokens
from unimo_ds.tasks.writing import Captioning, Writing, write_texts
from unimo_ds.vision.detector import Detector
from unimo_ds.vision.detector_config import SelectionConfig
from unimo_ds.vision.detector_file import PACKAGED, load_detector
from unimo_ds.vision.extract import ImageError, as_rgb, as_tensor, read_image

Picture = Regions | str | Path | Image.Image | npt.NDArray[np.uint8]
"""An image: its regions; or a photograph, as a file, as a PIL image, or as pixels, RGB [H, W, 3]."""
Text = str | tuple[str, str]
"""A text, or two with one [SEP] between them."""
_Input = tuple[Regions | None, PackedText | None]  # a sequence


@dataclass(frozen=True)
class Encoded:
    """What a model makes of texts, or of images, each encoded alone; float32 on the CPU.

    Attributes:
        vectors_ND: unit vectors; the product of an image's and a text's is the cosine that CMCL trains.
        pooled_ND: the same vectors at their own length, as heads of tasks read them.
        hidden: the rows of each input in the last layer, [rows, D]: [CLS], tokens, [SEP]; or [IMG], regions.
    """

    vectors_ND: Tensor
    pooled_ND: Tensor
    hidden: list[Tensor]


class Unimo:
    """A trained model, made by `from_pretrained`.

    Images and texts are given as one or as a list of them; one is a list of one. What else is in a list has no influence on an
    input. A text that is longer than those the model was trained on (`data.max_text_tokens` of its run, with [CLS] and [SEP])
    loses its end, as in training. Of an image's regions the first `data.max_regions` are shown. Regions must be of the detector
    that the model was trained with, which they do not tell themselves.

    Attributes:
        checkpoint: whose weights these are.
        detector: finds the regions of photographs; None: photographs cannot be given, only their regions.
    """

    def __init__(
        self,
        start: Start,
        unimo: UnimoModel,
        data: TaskDataSection,
        objectives: ObjectivesSection,
        tuned: Finetuned | None,
        detector: Detector | None,
    ) -> None:
        self.checkpoint, self.detector = start.checkpoint, detector
        self._start, self._unimo, self._data, self._objectives, self._tuned = start, unimo, data, objectives, tuned
        self._device = next(unimo.parameters()).device

    @classmethod
    def from_pretrained(
        cls, path: str | Path, detector: Detector | str | Path | None = None, device: torch.device | str | None = None
    ) -> "Unimo":
        """Opens a model of pre-training, or one of fine-tuning with its task's head.

        Args:
            path: a checkpoint, or a run folder: then its best checkpoint, or else the newest.
            detector: of photographs, as in `open_detector`.
            device: of model and detector; None: a GPU if there is one.

        Raises:
            CheckpointError: there is no such checkpoint or detector, or it is damaged.
            StoreError: the model was trained on regions of another detector.
        """
        start = read_start(Path(path))
        if damage := damage_of(start.checkpoint, moments=False):
            raise CheckpointError(f"{start.checkpoint}: {damage}; take another checkpoint")
        where = distributed.device() if device is None else torch.device(device)
        finder = open_detector(start, detector)
        if finder is not None:
            finder.to(where)
        if start.facts:
            tuned = open_finetuned(start.checkpoint, [])
            tuned.model.to(where).eval()
            return cls(start, tuned.model.unimo, tuned.config.data, ObjectivesSection(), tuned, finder)
        data, objectives = _trained_with(start)
        return cls(start, open_unimo(start.checkpoint, start.model).to(where), data, objectives, None, finder)

    def encode_text(self, texts: Text | Sequence[Text]) -> Encoded:
        """Encodes texts.

        Raises:
            CheckpointError: the model was fine-tuned for a task that pools no texts.
        """
        return self._encode("text_pooler", [(None, text) for text in self._packed(texts)])

    def encode_image(self, images: Picture | Sequence[Picture]) -> Encoded:
        """Encodes images.

        Raises:
            CheckpointError: the model was fine-tuned for a task that pools no images.
            ConfigError: an image is a photograph, and there is no detector.
            DataError: a photograph cannot be read, or regions have features of another width than the model's.
        """
        return self._encode("image_pooler", [(regions, None) for regions in self._regions(images)])

    @torch.no_grad()  # and not inference_mode: what is given may be trained upon
    def _encode(self, pooler_name: str, inputs: Iterable[_Input]) -> Encoded:
        pooler = getattr(self._unimo, pooler_name)
        if pooler is None:
            raise self._lacks(f"its {pooler_name.replace('_', ' ')} was left out")
        pooled: list[Tensor] = []
        hidden: list[Tensor] = []
        for batch in self._batches(inputs):
            (hidden_TD,) = self._unimo.encode(batch, [torch.arange(batch.positions, device=self._device)])
            starts_S1 = batch.cu_seqlens_S1.long()
            pooled.append(pooler(hidden_TD[starts_S1[:-1]]).float().cpu())
            hidden += torch.split(hidden_TD.float().cpu(), starts_S1.diff().tolist())
        pooled_ND = torch.cat(pooled)
        return Encoded(F.normalize(pooled_ND, dim=-1), pooled_ND, hidden)

    @torch.no_grad()
    def score(self, images: Picture | Sequence[Picture], texts: Text | Sequence[Text]) -> Tensor:
        """How well each text fits each image, the two encoded together; more is better.

        By the head of a model that was fine-tuned for retrieval; else by CMCL's cosine, or by the matching head's logit in a
        run without CMCL.

        Returns:
            float32 [I, X], on the CPU.

        Raises:
            CheckpointError: the model was trained for nothing that says it.
            ConfigError, DataError: as in `encode_image`.
        """
        score_J = self._scorer()
        regions, packed = self._regions(images), self._packed(texts)
        pairs = ((image, text) for image in regions for text in packed)
        scores = [score_J(batch).float().cpu() for batch in self._batches(pairs)]
        return torch.cat(scores).view(len(regions), len(packed))

    def _scorer(self) -> Callable[[Batch], Tensor]:
        tuned = self._tuned
        if tuned is not None and isinstance(tuned.task, Retrieval):
            return lambda batch: tuned.task.output(tuned.model.unimo, tuned.model.head, batch)
        if tuned is not None or not self._objectives.joint:
            raise self._lacks("nothing in it says how well images and texts fit; take a model of CMCL, matching or retrieval")
        return lambda batch: joint_scores(self._unimo(batch), self._objectives)

    def generate(
        self,
        images: Picture | Sequence[Picture] | None = None,
        texts: Text | Sequence[Text] | None = None,
        decoding: Decoding | None = None,
    ) -> list[str]:
        """Writes a text of each image, of each text, or of each image with the text beside it.

        A captioning model that was taught with object tags is given the names that the detector has for an image's classes.
        In a program of several ranks every rank must call it.

        Args:
            images, texts: what is seen before the text; as many of both if both are given.
            decoding: how it is searched for; None: as the model's own task does, or else as COCO's captions are.

        Raises:
            CheckpointError: the model was fine-tuned for a task that writes no texts, or for dialogues.
            ConfigError: neither images nor texts are given, not as many of both, or texts where object tags stand; and as in
                `encode_image`.
            DataError: as in `encode_image`.
            ValueError: `decoding` is longer than the model's positions.
        """
        task = self._tuned.task if self._tuned is not None else None
        if self._unimo.language_head is None:
            raise self._lacks("its language head was left out")
        if isinstance(task, Dialogue):
            raise self._lacks("it answers questions of a dialogue; use `unimo-ds predict sets`")
        if images is None and texts is None:
            raise ConfigError("generate: wants images, texts, or both")
        regions: list[Any] | None = None if images is None else self._regions(images)
        sources: list[Any] | None = None if texts is None else self._packed(texts)
        if isinstance(task, Captioning) and task.tags is not None:
            if regions is None or sources is not None:
                raise ConfigError("generate: the model was taught with object tags beside each image: give images alone")
            sources = [self._tags(number, image, task, task.tags) for number, image in enumerate(regions)]
        if regions is not None and sources is not None and len(regions) != len(sources):
            raise ConfigError(f"generate: {len(regions)} images and {len(sources)} texts; wants as many of both")
        rules = self._usual_decoding(task) if decoding is None else decoding
        nothing = [None] * len(regions or sources or ())
        inputs = zip(regions or nothing, sources or nothing, strict=True)
        found = [write_texts(self._unimo, batch, rules, self._start.tokenizer) for batch in self._batches(inputs, rules.rows)]
        return [text for batch in found for text in batch]

    def _tags(self, number: int, regions: Regions, task: Captioning, section: TagsSection) -> PackedText | None:
        if self.detector is None:
            raise ConfigError("generate: the model was taught with object tags, and only a detector has their names: give it")
        try:
            tags = tags_of(regions, self.detector.class_names, section)
        except ValueError as error:
            raise DataError(f"image {number}: {error}") from error
        tokens = [np.array(ids, np.int64) for ids in self._start.tokenizer.encode(list(tags))]
        return task.source(Tokens(tokens, None, self._data.max_text_tokens)) if tokens else None

    def _usual_decoding(self, task: object) -> Decoding:
        if isinstance(task, Writing):
            return task.decoding
        return Decoding(**usual_decoding(self._start.model.max_positions - FIRST_POSITION).model_dump())

    def _lacks(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.checkpoint}: is a model of {self._start.family}: {what}")

    def _batches(self, inputs: Iterable[_Input], further_rows: int = 0) -> Iterator[Batch]:
        """The streams of inputs, a sequence each, in order: as many together as a micro-batch of training holds, an image once.

        Without inputs it is one empty stream. `further_rows` are those that each sequence needs besides its own.
        """
        packer, used, shown = self._packer(), 0, dict[int, tuple[int, int]]()
        for regions, text in inputs:
            rows = (0 if regions is None else self._rows_of(regions)) + (0 if text is None else len(text.ids)) + further_rows
            if used and used + rows > self._data.positions_per_micro_batch:
                yield packer.build().to(self._device)
                packer, used, shown = self._packer(), 0, {}
            if regions is not None and id(regions) not in shown:
                shown[id(regions)] = packer.add_image(regions)
            image, count = (None, 0) if regions is None else shown[id(regions)]
            member = None if regions is None or text is None else Member(packer.add_pair(0), Kind.PAIR)
            packer.add(View(image=image, regions=count, text=text, member=member))
            used += rows
        yield packer.build().to(self._device)

    def _packer(self) -> Packer:
        return Packer(self._start.model.feature_width, self._data.max_regions)

    def _packed(self, texts: Text | Sequence[Text]) -> list[PackedText]:
        parts = [text if isinstance(text, tuple) else (text,) for text in _listed(texts)]
        for number, part in enumerate(parts):
            if len(part) > 2 or not all(isinstance(each, str) for each in part):
                raise ConfigError(f"text {number} is {part!r:.80}; a text is a str, or two of them in a tuple")
        ids = iter(self._start.tokenizer.encode([part for each in parts for part in each]))
        return [joined([np.array(next(ids), np.int64) for _ in each], self._data.max_text_tokens) for each in parts]

    def _rows_of(self, regions: Regions) -> int:
        return 1 + min(len(regions), self._data.max_regions)

    def _regions(self, images: Picture | Sequence[Picture]) -> list[Regions]:
        return [self._regions_of(number, image) for number, image in enumerate(_listed(images))]

    def _regions_of(self, number: int, image: Picture) -> Regions:
        if isinstance(image, Regions):
            regions = image
        elif self.detector is None:
            raise ConfigError(
                f"image {number} is a photograph, and the detector that {self.checkpoint} was trained with is not packaged: "
                "give it to from_pretrained(detector=...), or give Regions"
            )
        else:
            (regions,) = self.detector.detect([_pixels(number, image)])  # alone: to the last bit the same whatever the list
        if (width := regions.features_RF.shape[1]) != self._start.model.feature_width:
            raise DataError(
                f"image {number}: features of width {width}; {self.checkpoint} reads {self._start.model.feature_width}"
            )
        return regions


def open_detector(start: Start, given: Detector | str | Path | None = None) -> Detector | None:
    """The detector of the regions that a model was trained on; it keeps as many regions of an image as it did there.

    Args:
        start: the model's checkpoint.
        given: the detector, or what `load_detector` opens; None: the packaged one with the checkpoint's identity.

    Returns:
        None if nothing is given and none of the packaged ones is it.

    Raises:
        StoreError: the model was trained on regions of another one. A checkpoint that does not know its detector takes any.
        CheckpointError: there is no such detector, or it is damaged.
    """
    if given is None:
        packaged = (_selecting(load_detector(path), start) for path in sorted(PACKAGED.glob("*.safetensors")))
        return next((detector for detector in packaged if detector.identity() == start.detector), None)
    detector = _selecting(given if isinstance(given, Detector) else load_detector(given), start)
    if start.detector:
        name = "the given detector" if isinstance(given, Detector) else f"detector {given}"
        expect_same_detector(detector.identity(), start.detector, f"regions of {name}", f"those of {start.checkpoint}")
    return detector


def _selecting(detector: Detector, start: Start) -> Detector:
    """The detector, keeping the regions that it kept for a checkpoint's training."""
    return detector.with_selection(
        **{key: start.detector[key] for key in SelectionConfig.model_fields if key in start.detector}
    )


def _trained_with(start: Start) -> tuple[TaskDataSection, ObjectivesSection]:
    """How much of a sample a model of pre-training read, and its objectives; a checkpoint of converted weights may not say."""
    file = start.checkpoint / "config.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
    told = content.get("data", {})
    data = {key: told[key] for key in ("max_text_tokens", "max_regions", "positions_per_micro_batch") if key in told}
    positions = start.model.max_positions - FIRST_POSITION
    data["max_text_tokens"] = min(data.get("max_text_tokens", positions), positions)
    return (
        validate_config(TaskDataSection, data, f"{file}, data"),
        validate_config(ObjectivesSection, content.get("objectives", {}), f"{file}, objectives"),
    )


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


def _pixels(number: int, image: str | Path | Image.Image | npt.NDArray[np.uint8]) -> Tensor:
    """uint8 RGB [3, H, W].

    Raises:
        DataError: it cannot be read, or is no picture.
    """
    try:
        if isinstance(image, str | Path):
            return read_image(Path(image))
        pixels_HW3 = as_rgb(image) if isinstance(image, Image.Image) else np.asarray(image)
    except (ImageError, OSError) as error:  # a PIL image is read when its pixels are asked for
        raise DataError(f"{image if isinstance(image, str | Path) else f'image {number}'}: {error}") from error
    if pixels_HW3.dtype != np.uint8 or pixels_HW3.ndim != 3 or pixels_HW3.shape[2] != 3 or not pixels_HW3.size:
        raise DataError(f"image {number}: {pixels_HW3.dtype} {list(pixels_HW3.shape)}; wants uint8 [H, W, 3], RGB")
    return as_tensor(pixels_HW3)
