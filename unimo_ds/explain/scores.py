"""What a checkpoint says of the candidates of a pair.

Shape suffixes: see `unimo_ds.batch`; J candidates of one pair.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from unimo_ds import distributed
from unimo_ds.batch import Batch, Kind
from unimo_ds.config import CmclSection, ModelSection
from unimo_ds.engine.checkpoint_folder import checkpoint_name, damage_of, read_state
from unimo_ds.objectives.contrastive import contrastive_losses, score_candidates
from unimo_ds.opening import open_unimo


@dataclass(frozen=True)
class Scores:
    """How well each candidate of one pair fits, in the order of `objectives.contrastive.Candidates`.

    Attributes:
        fits: the cosine d; in a run without CMCL the matching head's probability that the caption is true.
        shares: each one's share of the softmax of d/t over the candidates that Equation 1 compares; None for those that are not
            among them: retrieved ones that are compared with those of other pairs, and all without CMCL.
        loss: Equation 1 of this pair, without what is compared with other pairs of the step; None without CMCL.
    """

    fits: list[float]
    shares: list[float | None]
    loss: float | None


class Scorer:
    """A checkpoint that scores candidates, in evaluation mode and float32.

    Args:
        checkpoint: its folder; whole.
        cmcl: the form of CMCL that the run trains.

    Attributes:
        checkpoint: the folder.
        step: how many updates it has seen.
        temperature: t of CMCL there.
        detector: of the regions it was trained on; empty for one of texts alone.

    Raises:
        CheckpointError: it holds another model than this program makes of its configuration.
    """

    def __init__(self, checkpoint: Path, cmcl: CmclSection) -> None:
        self.checkpoint, self._cmcl = checkpoint, cmcl
        state = read_state(checkpoint)
        self.step, self.detector = int(state["step"]), dict(state["detector"])
        self._unimo = open_unimo(checkpoint, ModelSection.model_validate(state["model"])).to(distributed.device())
        assert self._unimo.temperature is not None
        with torch.no_grad():
            self.temperature = float(self._unimo.temperature())

    @torch.no_grad()
    def score(self, batch: Batch) -> Scores:
        """Scores of the candidates of a batch with one pair."""
        batch = batch.to(distributed.device())
        outputs = self._unimo(batch)
        if not self._cmcl.weight:
            fits = outputs.matching_logits_J.sigmoid().tolist()
            return Scores(fits, [None] * len(fits), None)
        candidates = score_candidates(outputs, batch)
        loss, _ = contrastive_losses(outputs, batch, candidates, self._cmcl)
        compared = int((candidates.kinds_J != Kind.RETRIEVED).sum()) if self._cmcl.retrieved_apart else len(candidates.scores_J)
        shares = candidates.scores_J[:compared].softmax(0).tolist()
        fits = (candidates.scores_J * outputs.temperature).tolist()
        return Scores(fits, [*shares, *[None] * (len(fits) - compared)], float(loss))


def nearest_checkpoint(folder: Path, step: int, notes: list[str]) -> Path | None:
    """The newest whole checkpoint of a run up to `step`, else the first one after it; None without any.

    Args:
        folder: the run's `checkpoints`.
        step: number of updates.
        notes: is told of damaged ones that are passed over.
    """
    name = checkpoint_name(step)
    found = sorted(folder.glob("step-*"))
    before, after = [path for path in found if path.name <= name], [path for path in found if path.name > name]
    for path in [*reversed(before), *after]:
        damage = damage_of(path)
        if damage is None:
            return path
        notes.append(f"checkpoint passed over: {path}: {damage}")
    return None
