"""The model's parts: calls per batch, initial values, groups of parameters, temperature, dropout."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers import TINY, random_batch, random_regions, view_maker
from tests.model.test_one_pass import calls, model, totals
from unimo_ds.batch import FIRST_POSITION, Batch, Target
from unimo_ds.config import SIZES, ModelSection
from unimo_ds.data.packing import Packer
from unimo_ds.data.sequences import PackedText, Sequence
from unimo_ds.model.heads import Temperature
from unimo_ds.model.unimo import UnimoModel, parameter_groups
from unimo_ds.tokenizer import CLS

SHAPES: list[dict[str, object]] = [
    {"pairs": 1},
    {"pairs": 3, "candidates": True},
    {"pairs": 1, "texts": 1},
    {"texts": 1, "images": 1},
    {"images": 1},
    {},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_calls_do_not_depend_on_the_batch_and_every_parameter_has_a_gradient(
    shape: dict[str, object], checkpointing: bool
) -> None:
    module = model(dropout=0.1, attention_dropout=0.1)
    module.unimo.transformer.activation_checkpointing = checkpointing
    batch = random_batch(1, **shape)  # type: ignore[arg-type]
    called = calls(module, batch)
    assert called == calls(module, random_batch(0, pairs=2, texts=1, images=1))
    expected = Counter(name for name, part in module.named_modules() if not isinstance(part, nn.ModuleList))
    for name in list(expected):
        if name.endswith("dropout") and ".layers." in name:
            expected[name] = 2  # one module, after the attention and after the feed-forward network
    assert Counter(called) == expected
    module(batch, totals(batch))[0].backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_recomputed_activations_give_the_same_gradients(shape: dict[str, object]) -> None:
    batch, gradients = random_batch(2, **shape), []  # type: ignore[arg-type]
    for checkpointing in (False, True):
        module = model(dropout=0.2, attention_dropout=0.2)
        module.unimo.transformer.activation_checkpointing = checkpointing
        torch.manual_seed(5)
        module(batch, totals(batch))[0].backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))
    assert not shape or any(gradient.any() for gradient in gradients[0])


def cut_normal_deviation(width: float = 2.0) -> float:
    """Deviation of a standard normal cut at two deviations."""
    density = math.exp(-(width**2) / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * width * density / math.erf(width / math.sqrt(2)))


@pytest.mark.parametrize("size", SIZES)
def test_every_weight_starts_with_the_size_s_deviation_and_biases_at_0(size: str) -> None:
    torch.manual_seed(0)
    section = ModelSection.model_validate({"size": size, "layers": 1, "vocabulary_size": 3000, "region_classes": 400})
    assert section.hidden_size == SIZES[size]["hidden_size"] and section.initializer_range == SIZES[size]["initializer_range"]
    checked = 0
    unimo = UnimoModel(section)
    for name, part in unimo.named_modules():
        if isinstance(part, nn.LayerNorm):
            assert part.eps == 1e-5 and (part.weight == 1).all() and not part.bias.any(), name
        if isinstance(part, nn.Linear):
            assert not part.bias.any(), name
        if isinstance(part, nn.Linear | nn.Embedding):
            weight = part.weight.detach()
            deviation = section.initializer_range
            assert weight.abs().max() <= 2 * deviation, name
            few = 4 / math.sqrt(2 * weight.numel())
            assert float(weight.std()) == pytest.approx(cut_normal_deviation() * deviation, rel=few), name
            assert abs(float(weight.mean())) < 5 * deviation / math.sqrt(weight.numel()), name
            checked += 1
    assert checked == 4 + 4 + 1 + 2 + 2 + 1  # embeddings, one layer, language head, region head, poolers, matching head
    assert not unimo.language_head.bias.any() and float(unimo.temperature.value.detach()) == pytest.approx(0.07)


def test_groups_hold_every_parameter_once_by_what_it_is() -> None:
    module = model()
    free = set()
    for part in module.modules():
        if isinstance(part, nn.LayerNorm):
            free |= {part.weight, part.bias}
        elif isinstance(part, nn.Linear):
            free.add(part.bias)
    free |= {module.unimo.language_head.bias, module.unimo.temperature.value}
    decayed, undecayed = parameter_groups(module, 0.03)
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.03, 0.0)
    assert set(undecayed["params"]) == free and len(undecayed["params"]) == len(free)
    assert set(decayed["params"]) == set(module.parameters()) - free
    assert len(decayed["params"]) + len(undecayed["params"]) == len(list(module.parameters()))
    assert all(parameter.dim() == 2 for parameter in decayed["params"])


@pytest.mark.parametrize("start", [0.001, 0.07, 0.5])
def test_a_temperature_at_a_bound_can_come_back(start: float) -> None:
    temperature = Temperature(start)
    optimizer = torch.optim.SGD(temperature.parameters(), lr=0.1)
    for direction, steps in ((-1, 5), (1, 12)):  # steps of 0.3 go far over a bound, then back and over the other
        for _ in range(steps):
            optimizer.zero_grad()
            found = temperature()
            (direction * -3.0 * found).sum().backward()
            assert 0.001 - 1e-6 <= float(found.detach()) <= 0.5 + 1e-6
            assert temperature.value.grad is not None and temperature.value.grad.tolist() == [direction * -3.0]
            optimizer.step()
        assert float(temperature().detach()) == pytest.approx(0.001 if direction < 0 else 0.5, abs=1e-5)


def test_a_bf16_temperature_is_computed_in_float32() -> None:
    found = Temperature(0.07).to(torch.bfloat16)()
    assert found.dtype == torch.float32 and found.shape == (1,)


def test_dropout_works_in_training_only() -> None:
    unimo = UnimoModel(TINY.model_copy(update={"dropout": 0.3, "attention_dropout": 0.3}))
    batch = random_batch(0, pairs=1, texts=1)
    first, second = unimo(batch), unimo(batch)
    assert not torch.equal(first.language_losses_M, second.language_losses_M)
    unimo.eval()
    first, second = unimo(batch), unimo(batch)
    assert torch.equal(first.language_losses_M, second.language_losses_M)


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout"])
def test_each_dropout_rate_is_used(rate: str) -> None:
    batch, plain = random_batch(0, pairs=1), UnimoModel(TINY)
    unimo = UnimoModel(TINY.model_copy(update={rate: 0.3}))
    unimo.load_state_dict(plain.state_dict())
    assert not torch.equal(unimo(batch).language_losses_M, plain(batch).language_losses_M)


def test_losses_with_and_without_logits_have_the_same_gradients() -> None:
    batch, gradients = random_batch(0, pairs=2, texts=1), []
    for want_logits in (False, True):
        unimo = model().unimo
        unimo(batch, want_logits=want_logits).language_losses_M.sum().backward()
        gradients.append({name: p.grad for name, p in unimo.named_parameters() if p.grad is not None})
    assert set(gradients[0]) == set(gradients[1]) and len(gradients[0]) > 20
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5 * (1 + float(gradient.abs().max())), rtol=1e-4)


def sentences_batch(written: list[list[int]]) -> Batch:
    """An image and the words so far; the last row predicts."""
    rng, packer = np.random.default_rng(0), Packer(TINY.feature_width, 100)
    for words in written:
        image, shown = packer.add_image(random_regions(rng, 3))
        ids = np.array([CLS, *words])
        labels = np.full(len(ids), -1)
        labels[-1] = 4
        text = PackedText(ids, np.arange(len(ids)) + FIRST_POSITION, labels, 0)
        packer.add(Sequence(image=image, regions=shown, text=text, causal=True, target=Target.SEQ2SEQ))
    return packer.build()


def probabilities(unimo: UnimoModel, words: list[int], number: int) -> Tensor:
    """The next word's scores of sentence `number` when the others are empty."""
    written = [[] for _ in range(number)] + [words]
    return unimo(sentences_batch(written), want_logits=True).language_logits_MV[number].detach()


def test_the_view_of_generation_is_that_of_training() -> None:
    """What the model learns for a caption is what generation asks it: same rows, same positions, same mask."""
    rng, packer = np.random.default_rng(0), Packer(TINY.feature_width, 100)
    image, shown = packer.add_image(random_regions(rng, 3))
    text = view_maker().generated_text(np.array([7, 8, 9]))
    packer.add(Sequence(image=image, regions=shown, text=text, causal=True, target=Target.SEQ2SEQ))
    unimo = UnimoModel(TINY).eval()
    trained = unimo(packer.build(), want_logits=True).language_logits_MV
    for place in range(4):
        torch.testing.assert_close(trained[place], probabilities(unimo, [7, 8, 9][:place], 0), atol=1e-5, rtol=1e-5)
