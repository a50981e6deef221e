"""Texts and detected regions to what UNIMO reads.

Shape suffixes: R regions of an image, F feature width, B sequences, I rows of images ([IMG] and regions).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import BatchFeature, ProcessorMixin

Array = npt.NDArray[Any]
_FIRST_POSITION = 2  # of a text
_STORY = 2  # its role in a dialogue; that of answers is 0, that of questions 1
_MOST_UTTERANCES = 15


class UnimoProcessor(ProcessorMixin):  # type: ignore[misc]
    """A tokenizer, and regions of images.

    Args:
        tokenizer: byte-level BPE; it writes `<s> a </s>` and `<s> a </s> b </s>`.
        max_regions: regions of an image that are shown; [IMG] is the mean of all.
        max_length: tokens of a text, with special ones.
    """

    attributes = ["tokenizer"]  # noqa: RUF012
    tokenizer_class = "AutoTokenizer"
    # Asked by versions of transformers before 5.
    valid_kwargs = ["max_regions", "max_length"]  # noqa: RUF012

    def __init__(self, tokenizer: Any = None, max_regions: int = 100, max_length: int = 512, **others: Any) -> None:
        self.max_regions, self.max_length = max_regions, max_length
        super().__init__(tokenizer, **others)

    def __call__(
        self,
        text: str | list[str] | None = None,
        text_pair: str | list[str] | None = None,
        regions: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        tags: str | list[str] | None = None,
        **others: Any,
    ) -> BatchFeature:
        """Tensors for the model.

        Args:
            text: one, or one a sequence; None where there are images alone.
            text_pair: second texts.
            regions: of one image, or of one image a sequence: `boxes`, pixels `x1, y1, x2, y2`, [R, 4]; `features`, the
                detector's vectors, [R, F]; `width` and `height` of the picture. They must come from the detector that the model
                card names.
            tags: in the place of text, the names of what was detected, the surest first, as words (`dog beach`), for a
                captioning model that was taught with them.
            others: for the tokenizer.

        Raises:
            ValueError: nothing is given, the numbers of texts and images differ, or a shape is wrong.
        """
        if tags is not None:
            if text is not None:
                raise ValueError("text and tags: tags stand where a text would")
            text, others = tags, {**others, "add_special_tokens": False}
        if text is None and regions is None:
            raise ValueError("nothing is given: give text, regions, or both")
        data: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            pairs = [text_pair] if isinstance(text_pair, str) else text_pair
            settings = {"padding": True, "truncation": True, "max_length": self.max_length, **others, "return_tensors": "pt"}
            data.update(self.tokenizer(texts, pairs, **settings))
        if regions is not None:
            images = [regions] if isinstance(regions, Mapping) else list(regions)
            if text is not None and len(images) != len(texts):
                raise ValueError(f"{len(texts)} texts and {len(images)} images: give one image a text")
            data.update(self._padded([self._image(image, number) for number, image in enumerate(images)]))
        return BatchFeature(data)

    def dialogue(self, story: str, utterances: Sequence[str]) -> BatchFeature:
        """What a model of dialogues reads to say what follows the last utterance: `<s> story </s> u </s> .. u </s>`.

        Every part has its own positions, a role and a turn: n utterances have the turns n to 1 and alternately the roles 1 and
        0, so that the last one, the question, has 1. Of many utterances the last 15 are kept.
        """
        kept = list(utterances)[-_MOST_UTTERANCES:]
        texts = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (story, *kept)]
        parts = [[*ids[: self.max_length - 2], self.tokenizer.sep_token_id] for ids in texts]
        count = len(kept)
        voices = [(_STORY, 0), *((turn % 2, turn) for turn in range(count, 0, -1))]
        rows = [(self.tokenizer.cls_token_id, _FIRST_POSITION, count % 2, count)]
        for part, (role, turn) in zip(parts, voices, strict=True):
            rows += [(token, _FIRST_POSITION + 1 + place, role, turn) for place, token in enumerate(part)]
        rows_1W4 = torch.tensor(rows)[None]
        return BatchFeature(
            {
                "input_ids": rows_1W4[..., 0],
                "attention_mask": torch.ones(1, len(rows), dtype=torch.long),
                "position_ids": rows_1W4[..., 1],
                "voice_ids": rows_1W4[..., 2:],
            }
        )

    def _image(self, image: Mapping[str, Any], number: int) -> tuple[Array, Array]:
        """Vectors and locations, [IMG] first; vectors have the two bytes in which stores keep them."""
        if lacking := [key for key in ("boxes", "features", "width", "height") if key not in image]:
            raise ValueError(f"regions of image {number}: no {', '.join(lacking)}; wanted are boxes, features, width, height")
        boxes_R4 = np.asarray(image["boxes"], np.float32)
        features_RF = np.asarray(image["features"], np.float16)
        if boxes_R4.ndim != 2 or boxes_R4.shape[1] != 4 or features_RF.ndim != 2 or len(boxes_R4) != len(features_RF):
            raise ValueError(
                f"regions of image {number}: boxes of shape {boxes_R4.shape} and features of shape {features_RF.shape}; wanted "
                "are [R, 4] and [R, F], with one R"
            )
        width, height = float(image["width"]), float(image["height"])
        shown = min(len(boxes_R4), self.max_regions)
        mean_1F = np.zeros((1, features_RF.shape[1]), np.float16)
        if len(features_RF):
            mean_1F = features_RF.mean(axis=0, keepdims=True, dtype=np.float32).astype(np.float16)
        relative_R4 = boxes_R4 / np.array([width, height, width, height], np.float32)
        area_R = (boxes_R4[:, 3] - boxes_R4[:, 1]) * (boxes_R4[:, 2] - boxes_R4[:, 0]) / np.float32(width * height)
        whole_15 = np.array([[0, 0, 1, 1, 1]], np.float32)
        locations = np.concatenate([whole_15, np.concatenate([relative_R4, area_R[:, None]], axis=1)[:shown]])
        return np.concatenate([mean_1F, features_RF[:shown]]).astype(np.float32), locations

    def _padded(self, images: list[tuple[Array, Array]]) -> dict[str, torch.Tensor]:
        longest = max(len(features) for features, _ in images)
        features_BIF = torch.zeros(len(images), longest, images[0][0].shape[1])
        locations_BI5 = torch.zeros(len(images), longest, 5)
        mask_BI = torch.zeros(len(images), longest, dtype=torch.long)
        for number, (features, locations) in enumerate(images):
            features_BIF[number, : len(features)] = torch.from_numpy(features)
            locations_BI5[number, : len(locations)] = torch.from_numpy(locations)
            mask_BI[number, : len(features)] = 1
        return {"region_features": features_BIF, "region_locations": locations_BI5, "region_attention_mask": mask_BI}

    def batch_decode(self, *given: Any, **named: Any) -> list[str]:
        """Texts of ids, as the tokenizer gives them."""
        texts: list[str] = self.tokenizer.batch_decode(*given, **named)
        return texts

    def decode(self, *given: Any, **named: Any) -> str:
        """The text of ids."""
        text: str = self.tokenizer.decode(*given, **named)
        return text
