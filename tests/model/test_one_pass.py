"""One forward pass, everything in it: every module runs once, in one order, whatever a batch holds."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.helpers import TINY, random_batch
from unimo_ds.batch import Batch
from unimo_ds.config import ModelSection, ObjectivesSection
from unimo_ds.model.heads import Temperature
from unimo_ds.model.unimo import UnimoModel, parameter_groups
from unimo_ds.objectives.pretraining import NAMES, PretrainingModel, Totals

BATCHES: dict[str, Callable[[], Batch]] = {
    "everything": lambda: random_batch(0, pairs=2, texts=1, images=1),
    "only text": lambda: random_batch(1, texts=2),
    "only images": lambda: random_batch(2, images=2),
    "nothing": lambda: random_batch(3),
}


def model(**shape: object) -> PretrainingModel:
    torch.manual_seed(0)
    return PretrainingModel(UnimoModel(TINY.model_copy(update=shape)), ObjectivesSection())


def totals(batch: Batch) -> Totals:
    return Totals(*map(float, batch.counts().tensor().tolist()))


def calls(module: PretrainingModel, batch: Batch) -> list[str]:
    called: list[str] = []
    handles = [
        part.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, part in module.named_modules()
        if not isinstance(part, nn.ModuleList)
    ]
    module(batch, totals(batch))
    for handle in handles:
        handle.remove()
    return called


@pytest.mark.parametrize("kind", BATCHES)
def test_every_module_runs_exactly_once_and_in_the_same_order(kind: str) -> None:
    module = model()
    called = calls(module, BATCHES[kind]())
    names = [name for name, part in module.named_modules() if not isinstance(part, nn.ModuleList)]
    twice = {"unimo.transformer.layers.0.dropout", "unimo.transformer.layers.1.dropout"}  # after attention and after the FFN
    assert sorted(called) == sorted([*names, *twice])
    assert called == calls(module, BATCHES["everything"]())


@pytest.mark.parametrize("kind", BATCHES)
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    module, batch = model(), BATCHES[kind]()
    module(batch, totals(batch))[0].backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []


def test_activation_checkpointing_changes_no_gradient() -> None:
    batch = BATCHES["everything"]()
    gradients = []
    for checkpointing in (False, True):
        module = model(dropout=0.1, attention_dropout=0.1)
        module.unimo.transformer.activation_checkpointing = checkpointing
        torch.manual_seed(5)
        module(batch, totals(batch))[0].backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


def test_an_objective_of_weight_0_leaves_no_gradient_behind() -> None:
    batch = BATCHES["everything"]()
    torch.manual_seed(0)
    off = {"mlm": 0, "seq2seq": 0, "mrc": 0, "cmcl": {"weight": 0}}
    module = PretrainingModel(UnimoModel(TINY), ObjectivesSection.model_validate(off))
    module(batch, totals(batch))[0].backward()
    used = {name for name, parameter in module.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert any("region_head.feature" in name for name in used)
    assert not any("language_head" in name or "pooler" in name or "temperature" in name for name in used)


def test_logits_and_fused_losses_agree() -> None:
    module, batch = model(), BATCHES["everything"]()
    plain, whole = module.unimo(batch), module.unimo(batch, want_logits=True)
    assert plain.language_logits_MV is None
    assert whole.language_logits_MV.shape == (len(batch.language_labels_M), TINY.vocabulary_size)
    torch.testing.assert_close(plain.language_losses_M, whole.language_losses_M, atol=1e-5, rtol=1e-5)


def test_two_micro_batches_add_up_to_the_joined_one() -> None:
    from tests.distributed.joining import join

    objectives = ObjectivesSection.model_validate({"cmcl": {"in_batch": 0}})  # the matrix spans one micro-batch by design
    parts = [random_batch(4, pairs=2, texts=1), random_batch(5, pairs=1, images=2, first_group=9)]
    both = join(parts)
    module = PretrainingModel(UnimoModel(TINY), objectives)
    whole = module(both, totals(both))[1][: len(NAMES)]
    torch.testing.assert_close(sum(module(part, totals(both))[1][: len(NAMES)] for part in parts), whole, atol=1e-5, rtol=1e-5)


def test_biases_norms_and_temperature_have_no_weight_decay_and_nothing_is_left_out() -> None:
    module = model()
    decayed, free = parameter_groups(module, 0.01)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    assert all(names[id(p)].endswith(("bias", "norm.weight", "temperature.value")) for p in free["params"])
    assert not any(names[id(p)].endswith("bias") or "norm" in names[id(p)] for p in decayed["params"])


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_initial_values_have_the_size_s_deviation(size: str) -> None:
    section = ModelSection.model_validate({"size": size, "layers": 1, "vocabulary_size": 500})
    weight = UnimoModel(section).transformer.layers[0].expand.weight.detach()
    assert float(weight.std()) == pytest.approx(0.88 * section.initializer_range, rel=0.02)  # of a normal cut at two deviations
    assert float(weight.abs().max()) <= 2 * section.initializer_range


@pytest.mark.parametrize(("value", "expected"), [(0.07, 0.07), (0.9, 0.5), (-1.0, 0.001)])
def test_the_temperature_stays_in_its_bounds_and_can_come_back(value: float, expected: float) -> None:
    temperature = Temperature(0.07)
    with torch.no_grad():
        temperature.value.fill_(value)
    found = temperature()
    found.sum().backward()
    assert float(found.detach()) == pytest.approx(expected, abs=1e-6)
    assert float(temperature.value.grad) == 1.0
