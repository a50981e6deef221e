"""What the model gives, one output at a time, and each objective's own gradients, against the plain float64 reference."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.distributed.joining import join
from tests.helpers import TINY, random_batch
from tests.numerics.test_whole_model import Weights, embed, encode, gelu, layer_norm, linear, matching_logits, reference_losses
from unimo_ds.batch import Batch, Target
from unimo_ds.config import ObjectivesSection
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.objectives.pretraining import NAMES, PretrainingModel, Totals


def stirred(seed: int = 0) -> PretrainingModel:
    """Biases and norms away from 0 and 1, so that a forgotten one shows."""
    torch.manual_seed(seed)
    model = PretrainingModel(UnimoModel(TINY), ObjectivesSection(matching=1.0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.unimo.temperature.value.fill_(0.2)
    return model


def doubled(model: PretrainingModel) -> Weights:
    return {name.removeprefix("unimo."): p.detach().double().requires_grad_() for name, p in model.named_parameters()}


def sequences(batch: Batch, weights: Weights, *deltas: Tensor | float | None) -> list[Tensor]:
    """The last layer's rows of every sequence; `deltas` as `embed` takes them."""
    embedded, starts = embed(batch, weights, *deltas), batch.cu_seqlens_S1.tolist()  # type: ignore[arg-type]
    spans = zip(starts, starts[1:], batch.prefix_lengths_S.tolist(), strict=False)
    return [encode(embedded[start:end], prefix, weights) for start, end, prefix in spans]


BATCHES = {
    "everything": lambda: random_batch(3, pairs=3, texts=2, images=2, groups=[4, 4, 5], candidates=True),
    "texts alone": lambda: random_batch(4, texts=3),
    "images alone": lambda: random_batch(5, images=3),
    "a pair": lambda: random_batch(6, pairs=1),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_every_output_equals_the_reference(kind: str) -> None:
    batch, model = BATCHES[kind](), stirred()
    weights = doubled(model)
    hidden = torch.cat(sequences(batch, weights))
    with torch.no_grad():
        outputs = model.unimo(batch, want_logits=True)
    transformed = layer_norm(
        gelu(linear(hidden[batch.language_rows_M], weights, "language_head.transform")), weights, "language_head.norm"
    )
    logits = transformed @ weights["embedding.text.word.weight"].T + weights["language_head.bias"]
    expected = {
        "language_losses_M": F.cross_entropy(logits, batch.language_labels_M, reduction="none"),
        "language_logits_MV": logits,
        "region_features_GF": linear(hidden[batch.target_rows_G], weights, "region_head.feature"),
        "region_logits_GC": linear(hidden[batch.target_rows_G], weights, "region_head.classes"),
        "image_vectors_ID": F.normalize(linear(hidden[batch.image_rows_I], weights, "image_pooler.dense").relu(), dim=1),
        "text_vectors_XD": F.normalize(linear(hidden[batch.text_rows_X], weights, "text_pooler.dense").relu(), dim=1),
        "matching_logits_J": matching_logits(hidden, batch, weights),
        "temperature": weights["temperature.value"],
    }
    assert set(expected) == set(outputs._fields)
    for name, theirs in expected.items():
        ours = getattr(outputs, name)
        assert ours.dtype == torch.float32, name
        torch.testing.assert_close(ours.double(), theirs.detach(), atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@settings(deadline=None, derandomize=True, max_examples=8)
@given(st.integers(0, 99), st.integers(0, 2), st.integers(0, 2), st.integers(0, 2))
def test_losses_and_all_gradients_of_any_mixture(seed: int, pairs: int, texts: int, images: int) -> None:
    assume(pairs + texts + images > 0)  # the empty batch is in tests/model
    batch, model = random_batch(seed, pairs=pairs, texts=texts, images=images, candidates=True), stirred(seed)
    totals = Totals(mlm=7, seq2seq=9, regions=5, pairs=3, positions=1)  # of other ranks too
    loss, measured = model(batch, totals)
    shares = measured[: len(NAMES)]
    loss.backward()
    weights = doubled(model)
    expected = reference_losses(batch, weights, totals)
    expected.sum().backward()
    assert shares.tolist() == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
    for name, parameter in model.named_parameters():
        double = weights[name.removeprefix("unimo.")]
        theirs = double.grad if double.grad is not None else torch.zeros_like(double)
        assert parameter.grad is not None
        error = float((parameter.grad.double() - theirs).norm())
        assert error <= 1e-4 * float(theirs.norm()) + 1e-6, f"{name}: {error} of {float(theirs.norm())}"


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_each_objective_alone_has_the_reference_s_gradients(number: int) -> None:
    """In the sum of all, an error of a small objective could hide behind a large one."""
    batch, model = BATCHES["everything"](), stirred()
    weights, chosen = doubled(model), NAMES[number]
    off = {name: float(name == chosen) for name in NAMES if name != "cmcl"}
    section = ObjectivesSection.model_validate({**off, "cmcl": {"weight": float(chosen == "cmcl")}})
    only = PretrainingModel(model.unimo, section)
    totals = Totals(*map(float, batch.counts().tensor().tolist()))
    only(batch, totals)[0].backward()
    reference_losses(batch, weights, totals)[number].backward()
    reached = 0
    for name, parameter in only.named_parameters():
        double = weights[name.removeprefix("unimo.")]
        theirs = double.grad if double.grad is not None else torch.zeros_like(double)
        assert parameter.grad is not None
        error = float((parameter.grad.double() - theirs).norm())
        assert error <= 1e-4 * float(theirs.norm()) + 1e-6, f"{name}: {error} of {float(theirs.norm())}"
        reached += bool(theirs.any())
    assert reached > 20


def test_a_sequence_s_outputs_do_not_depend_on_its_neighbours() -> None:
    """Packed with others, in another bucket and at another place of the stream, the same sequences give the same."""
    model = stirred()
    mine, others = random_batch(7, pairs=1, texts=1, images=1), random_batch(8, pairs=2, texts=2, images=3)
    with torch.no_grad():
        alone, first, last = model.unimo(mine), model.unimo(join([mine, others])), model.unimo(join([others, mine]))
    for name in ("language_losses_M", "region_features_GF", "region_logits_GC", "image_vectors_ID", "text_vectors_XD"):
        whole = getattr(alone, name)
        assert len(whole) > 0
        torch.testing.assert_close(getattr(first, name)[: len(whole)], whole, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(getattr(last, name)[-len(whole) :], whole, atol=1e-5, rtol=1e-5)


def test_a_generated_word_depends_on_no_later_word_and_a_source_on_no_target() -> None:
    batch = random_batch(9, texts=1)
    model = stirred()
    start, end = batch.cu_seqlens_S1.tolist()[1:3]
    prefix = int(batch.prefix_lengths_S[1])
    assert 0 < prefix < end - start
    hidden: list[Tensor] = []
    for row in (start + prefix + 2, start + prefix - 1):
        changed = batch.token_ids_W.clone()
        changed[batch.token_rows_W == row] = 5 if int(changed[batch.token_rows_W == row]) != 5 else 6
        for ids in (batch.token_ids_W, changed):
            with torch.no_grad():
                hidden += model.unimo.encode(replace(batch, token_ids_W=ids), [torch.arange(batch.positions)])
    target_changed = (hidden[0] - hidden[1]).abs().amax(1) > 0
    assert target_changed[start + prefix + 2 : end].all() and not target_changed[start : start + prefix + 2].any()
    source_changed = (hidden[2] - hidden[3]).abs().amax(1) > 0
    assert source_changed[start:end].all() and not source_changed[:start].any()
    assert Target.SEQ2SEQ in batch.language_kinds_M.tolist()
