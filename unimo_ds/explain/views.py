"""A packed batch taken apart again into its sequences: the way back from `unimo_ds.data.packing`.

Shape suffixes: see `unimo_ds.batch`; of one sequence n tokens, r regions, h hidden regions, K kept classes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unimo_ds.batch import Batch, Kind, Source, Target
from unimo_ds.data.sequences import IGNORED

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """One sequence of a batch.

    Attributes:
        ids_n, labels_n: what the model sees at each text position, and what it must predict there (`IGNORED`: nothing).
        target: which objective the labels belong to; None where there are none.
        boxes_r4: `x1, y1, x2, y2` of the shown regions as shares of the image's width and height; none if it has no image.
        hidden_r: which of them are hidden.
        class_ids_hK, class_probabilities_hK: what the model must say of each hidden one.
        kind, source: its part in CMCL; None where it has none, `source` also where it has no text.
    """

    ids_n: Ints
    labels_n: Ints
    target: Target | None
    boxes_r4: npt.NDArray[np.float32]
    hidden_r: npt.NDArray[np.bool_]
    class_ids_hK: Ints
    class_probabilities_hK: npt.NDArray[np.float32]
    kind: Kind | None
    source: Source | None

    @property
    def name(self) -> str:
        """What its sample was made into, in words; nothing for a sequence in which nothing is hidden."""
        image, text = len(self.hidden_r) > 0, len(self.ids_n) > 0
        if self.hidden_r.any():
            return "regions hidden, caption whole" if text else "regions hidden"
        if self.target == Target.MLM:
            return "words masked, image whole" if image else "words masked"
        if self.target == Target.SEQ2SEQ:
            return "caption generated after the image" if image else "fragments generated"
        return ""


def take_apart(batch: Batch) -> list[View]:
    """The sequences of a batch in their order."""
    of = {name: getattr(batch, name).numpy() for name in Batch.__dataclass_fields__}
    labels_W = np.full(len(of["token_ids_W"]), IGNORED)
    kinds_W = labels_W.copy()
    predicting = np.searchsorted(of["token_rows_W"], of["language_rows_M"])
    labels_W[predicting], kinds_W[predicting] = of["language_labels_M"], of["language_kinds_M"]
    kinds = {int(row): Kind(kind) for part in ("image", "text") for row, kind in _members(of, part)}
    text_sources = zip(of["text_rows_X"].tolist(), of["text_sources_X"].tolist(), strict=True)
    sources = {row: Source(source) for row, source in text_sources}
    views = []
    for start, end in zip(of["cu_seqlens_S1"][:-1], of["cu_seqlens_S1"][1:], strict=True):
        words = slice(*np.searchsorted(of["token_rows_W"], (start, end)))
        places = slice(*np.searchsorted(of["region_rows_L"], (start, end)))
        targets = slice(*np.searchsorted(of["target_rows_G"], (start, end)))
        targeted = kinds_W[words][labels_W[words] != IGNORED]
        text_row = int(of["token_rows_W"][words][0]) if words.start < words.stop else -1
        regions_r = of["region_sources_L"][places][1:]  # the first is [IMG]
        views.append(
            View(
                ids_n=of["token_ids_W"][words],
                labels_n=labels_W[words],
                target=Target(targeted[0]) if len(targeted) else None,
                boxes_r4=of["boxes_R5"][regions_r, :4],
                hidden_r=of["region_hidden_L"][places][1:],
                class_ids_hK=of["target_class_ids_GK"][targets],
                class_probabilities_hK=of["target_class_probabilities_GK"][targets],
                kind=kinds.get(int(start)),
                source=sources.get(text_row),
            )
        )
    return views


def _members(of: dict[str, npt.NDArray[np.generic]], part: str) -> list[tuple[int, int]]:
    suffix = "I" if part == "image" else "X"
    return list(zip(of[f"{part}_rows_{suffix}"].tolist(), of[f"{part}_kinds_{suffix}"].tolist(), strict=True))
