"""One loss of six objectives: weights, denominators, objectives switched off, micro-batches that add up."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.distributed.joining import join
from tests.helpers import TINY, random_batch
from unimo_ds.batch import Batch, Counts, Kind, Target
from unimo_ds.config import CmclSection, ObjectivesSection
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.objectives.contrastive import contrastive_losses, score_candidates
from unimo_ds.objectives.language import language_losses
from unimo_ds.objectives.matching import matching_loss
from unimo_ds.objectives.pretraining import NAMES, PretrainingModel, Totals
from unimo_ds.objectives.regions import region_losses

OFF: dict[str, Any] = {"mlm": 0, "seq2seq": 0, "mrfr": 0, "mrc": 0, "cmcl": {"weight": 0}, "matching": 0}


def everything(seed: int = 0) -> Batch:
    return random_batch(seed, pairs=3, texts=2, images=2, groups=[0, 0, 1], candidates=True)


def totals(*batches: Batch) -> Totals:
    counts = sum((batch.counts() for batch in batches), Counts(0, 0, 0, 0, 0))
    return Totals(*map(float, counts.tensor().tolist()))


def model(objectives: dict[str, Any] | None = None) -> PretrainingModel:
    torch.manual_seed(0)
    return PretrainingModel(UnimoModel(TINY), ObjectivesSection.model_validate({"matching": 1, **(objectives or {})}))


def shares_of(module: PretrainingModel, batch: Batch, denominators: Totals) -> tuple[Tensor, Tensor]:
    """The loss and the objectives' shares of it."""
    loss, measured = module(batch, denominators)
    return loss, measured[: len(NAMES)]


def gradients(module: PretrainingModel, batch: Batch, denominators: Totals) -> dict[str, Tensor]:
    module.zero_grad()
    module(batch, denominators)[0].backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_language_losses_are_sums_of_the_cross_entropies_of_each_kind() -> None:
    batch = everything()
    outputs = model().unimo(batch, want_logits=True)
    masked, generated = language_losses(outputs, batch)
    logits = outputs.language_logits_MV.double()
    for kind, found in ((Target.MLM, masked), (Target.SEQ2SEQ, generated)):
        chosen = batch.language_kinds_M == kind
        assert chosen.any()
        expected = F.cross_entropy(logits[chosen], batch.language_labels_M[chosen], reduction="sum")
        torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)


def test_region_losses_by_hand() -> None:
    batch = everything()
    outputs = model().unimo(batch)
    regression, classes = region_losses(outputs, batch)
    squared = cross = 0.0
    for number, source in enumerate(batch.target_sources_G.tolist()):
        error = outputs.region_features_GF[number].double() - batch.features_RF[source].double()
        squared += float((error**2).sum().detach()) / TINY.feature_width
        logs = outputs.region_logits_GC[number].double().log_softmax(0).detach()
        soft = torch.zeros(TINY.region_classes, dtype=torch.float64)
        for place, probability in zip(
            batch.target_class_ids_GK[number], batch.target_class_probabilities_GK[number], strict=True
        ):
            soft[place] += float(probability)  # a class that stands twice counts twice
        assert float(soft.sum()) == pytest.approx(1, abs=1e-5)
        cross -= float((soft * logs).sum())
    assert squared > 0 and cross > 0
    assert float(regression.detach()) == pytest.approx(squared, rel=1e-4)
    assert float(classes.detach()) == pytest.approx(cross, rel=1e-4)


def test_shares_are_sums_over_totals_and_the_loss_their_weighted_sum() -> None:
    batch = everything()
    module = model(
        {"mlm": 0.5, "seq2seq": 2.0, "mrfr": 3.0, "mrc": 0.25, "cmcl": {"weight": 1.5, "in_batch": 0.4}, "matching": 0.7}
    )
    loss, shares = shares_of(module, batch, Totals(mlm=10, seq2seq=20, regions=30, pairs=40, positions=1))
    outputs = module.unimo(batch)
    pairwise, matrix = contrastive_losses(outputs, batch, score_candidates(outputs, batch), CmclSection())
    sums = [
        *language_losses(outputs, batch),
        *region_losses(outputs, batch),
        1.5 * (pairwise + 0.4 * matrix),
        matching_loss(outputs, batch),
    ]
    expected = [float(value.detach()) / count for value, count in zip(sums, (10, 20, 30, 30, 40, 40), strict=True)]
    assert all(value > 0 for value in expected)
    assert shares.tolist() == pytest.approx(expected, rel=1e-5)
    assert not shares.requires_grad
    joined = sum(weight * value for weight, value in zip((0.5, 2.0, 3.0, 0.25, 1.0, 0.7), expected, strict=True))
    assert float(loss.detach()) == pytest.approx(joined, rel=1e-5)


def test_a_total_of_0_divides_nothing_by_0() -> None:
    batch = random_batch(0, texts=1)
    _, shares = shares_of(model(), batch, totals(batch))
    found = dict(zip(NAMES, shares.tolist(), strict=True))
    assert found["mlm"] > 0 and found["seq2seq"] > 0
    assert found["mrfr"] == found["mrc"] == found["cmcl"] == found["matching"] == 0.0


# What only one objective trains, by the beginning of the parameter's name.
OWN = {
    "mrfr": ("unimo.region_head.feature",),
    "mrc": ("unimo.region_head.classes",),
    "cmcl": ("unimo.temperature",),
    "matching": ("unimo.matching_head",),
}


@pytest.mark.parametrize("off", NAMES)
def test_an_objective_switched_off_leaves_exactly_the_gradient_of_the_others(off: str) -> None:
    batch = everything()
    denominators = totals(batch)
    without = gradients(model({off: OFF[off]}), batch, denominators)
    alone = gradients(model({**OFF, off: {"weight": 1} if off == "cmcl" else 1}), batch, denominators)
    whole = gradients(model(), batch, denominators)
    assert set(without) == set(whole) == set(alone)  # a parameter without gradient would stop ZeRO-3
    for name, gradient in whole.items():
        scale = 1e-3 + float(gradient.abs().max())
        torch.testing.assert_close(without[name] + alone[name], gradient, atol=1e-5 * scale, rtol=1e-4)
    for objective, names in OWN.items():
        for name in (name for name in whole if name.startswith(names)):
            assert bool(without[name].any()) == (objective != off), name
            assert bool(alone[name].any()) == (objective == off), name
    assert any(gradient.any() for gradient in alone.values())
    assert bool(alone["unimo.language_head.bias"].any()) == (off in ("mlm", "seq2seq"))


def test_without_the_similarity_matrix_vectors_alone_get_a_gradient_only_from_retrieved_candidates() -> None:
    batch = random_batch(0, pairs=3)  # no retrieved candidates
    outputs = model().unimo(batch)
    for vectors in (outputs.image_vectors_ID, outputs.text_vectors_XD):
        vectors.retain_grad()
    sum(contrastive_losses(outputs, batch, score_candidates(outputs, batch), CmclSection(in_batch=0))).backward()
    for vectors, kinds in (
        (outputs.image_vectors_ID, batch.image_kinds_I),
        (outputs.text_vectors_XD, batch.text_kinds_X),
    ):
        assert vectors.grad is not None
        assert not vectors.grad[kinds == Kind.ALONE].any() and vectors.grad[kinds != Kind.ALONE].any()


def test_gradients_of_micro_batches_add_up_to_the_joined_batch_s() -> None:
    parts = [random_batch(4, pairs=2, texts=1, candidates=True), random_batch(5, pairs=1, images=2, first_group=9)]
    denominators = totals(*parts)
    joined = join(parts)
    assert totals(joined) == denominators
    module = model({"cmcl": {"in_batch": 0}})  # the matrix spans one micro-batch by design
    split = [gradients(module, part, denominators) for part in parts]
    whole = gradients(module, joined, denominators)
    shares = [shares_of(module, part, denominators)[1] for part in parts]
    torch.testing.assert_close(shares[0] + shares[1], shares_of(module, joined, denominators)[1], atol=1e-6, rtol=1e-5)
    for name, gradient in whole.items():
        scale = 1e-3 + float(gradient.abs().max())
        torch.testing.assert_close(split[0][name] + split[1][name], gradient, atol=2e-5 * scale, rtol=1e-4)


def test_the_similarity_matrix_of_a_joined_batch_is_harder_than_of_its_parts() -> None:
    parts = [random_batch(4, pairs=3), random_batch(5, pairs=3, first_group=9)]
    module = model({**OFF, "cmcl": {"weight": 1, "in_batch": 1}})
    denominators = totals(*parts)
    split = sum(float(module(part, denominators)[1][4]) for part in parts)
    assert float(module(join(parts), denominators)[1][4]) > split + 0.1


def test_the_loss_is_scaled_by_the_world_against_the_averaging_of_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(0, texts=1, images=1)
    module = model({"cmcl": {"in_batch": 0}})
    loss, shares = shares_of(module, batch, totals(batch))
    monkeypatch.setattr("unimo_ds.distributed.world_size", lambda: 4)
    scaled, same = shares_of(module, batch, totals(batch))
    assert float(scaled.detach()) == pytest.approx(4 * float(loss.detach()))
    assert torch.equal(shares, same)
