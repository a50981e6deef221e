"""The whole model and all objectives against a second implementation, written plainly from the specification in float64.

It works on one sequence at a time with dense masks, takes nothing from the model but its weights, and is differentiated by
autograd, so that every parameter's gradient is compared too.
"""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers import TINY, random_batch
from unimo_ds.batch import Batch, Kind, Target
from unimo_ds.config import ObjectivesSection
from unimo_ds.model.unimo import UnimoModel
from unimo_ds.objectives.pretraining import NAMES, PretrainingModel, Totals

Weights = dict[str, Tensor]


def layer_norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def embed(batch: Batch, weights: Weights, text_delta: Tensor | float = 0.0, region_delta: Tensor | None = None) -> Tensor:
    """Every row of the stream before the first layer, with what perturbs tokens and places of regions (spec 2.1)."""
    rows: list[Tensor | None] = [None] * batch.positions
    text = (
        weights["embedding.text.word.weight"][batch.token_ids_W]
        + weights["embedding.text.position.weight"][batch.token_positions_W]
        + text_delta
    )
    if "embedding.text.voice.role.weight" in weights:
        text = text + weights["embedding.text.voice.role.weight"][batch.token_voices_W2[:, 0]]
        text = text + weights["embedding.text.voice.turn.weight"][batch.token_voices_W2[:, 1]]
    for row, vector in zip(batch.token_rows_W.tolist(), layer_norm(text, weights, "embedding.text.norm"), strict=True):
        rows[row] = vector
    deltas = torch.zeros(len(batch.region_rows_L), 1) if region_delta is None else region_delta
    for source, row, hidden, delta in zip(
        batch.region_sources_L.tolist(), batch.region_rows_L.tolist(), batch.region_hidden_L.tolist(), deltas, strict=True
    ):
        feature = torch.zeros(TINY.feature_width).double() if hidden else batch.features_RF[source].double() + delta
        both = linear(feature, weights, "embedding.region.feature") + linear(
            batch.boxes_R5[source].double(), weights, "embedding.region.location"
        )
        rows[row] = layer_norm(both, weights, "embedding.region.norm")
    return torch.stack([row for row in rows if row is not None])


def encode(hidden: Tensor, prefix: int, weights: Weights) -> Tensor:
    """One sequence through all layers, post-norm (spec 2.2, 3)."""
    length, heads = len(hidden), TINY.heads
    place = torch.arange(length)
    visible = place[None] < torch.maximum(torch.tensor(prefix), place[:, None] + 1)
    for number in range(TINY.layers):
        layer = f"transformer.layers.{number}"
        query, key, value = (
            part.view(length, heads, -1).transpose(0, 1)
            for part in linear(hidden, weights, f"{layer}.query_key_value").chunk(3, -1)
        )
        scores = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).masked_fill(~visible, -torch.inf)
        mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(length, -1)
        hidden = layer_norm(hidden + linear(mixed, weights, f"{layer}.output"), weights, f"{layer}.attention_norm")
        fed = linear(gelu(linear(hidden, weights, f"{layer}.expand")), weights, f"{layer}.contract")
        hidden = layer_norm(hidden + fed, weights, f"{layer}.feed_forward_norm")
    return hidden


def language_sums(hidden: Tensor, batch: Batch, weights: Weights) -> tuple[Tensor, Tensor]:
    sums = {Target.MLM: torch.zeros(()).double(), Target.SEQ2SEQ: torch.zeros(()).double()}
    for row, label, kind in zip(
        batch.language_rows_M.tolist(), batch.language_labels_M.tolist(), batch.language_kinds_M.tolist(), strict=True
    ):
        transformed = layer_norm(gelu(linear(hidden[row], weights, "language_head.transform")), weights, "language_head.norm")
        logits = weights["embedding.text.word.weight"] @ transformed + weights["language_head.bias"]
        sums[Target(kind)] = sums[Target(kind)] + logits.logsumexp(0) - logits[label]
    return sums[Target.MLM], sums[Target.SEQ2SEQ]


def region_sums(hidden: Tensor, batch: Batch, weights: Weights) -> tuple[Tensor, Tensor]:
    regression, classes = torch.zeros(()).double(), torch.zeros(()).double()
    for number, (row, source) in enumerate(zip(batch.target_rows_G.tolist(), batch.target_sources_G.tolist(), strict=True)):
        guess = linear(hidden[row], weights, "region_head.feature")
        regression = regression + (guess - batch.features_RF[source].double()).square().mean()
        logs = linear(hidden[row], weights, "region_head.classes").log_softmax(0)
        soft = batch.target_class_probabilities_GK[number].double()
        classes = classes - (soft * logs[batch.target_class_ids_GK[number]]).sum()
    return regression, classes


def contrastive_sum(hidden: Tensor, batch: Batch, weights: Weights, form: str = "each") -> Tensor:
    """Equation 1 for every pair, plus InfoNCE over the images and captions encoded alone, both ways.

    Each positive in a logarithm of its own, retrieved ones against those of all pairs; or, `summed`, as it is printed.
    """

    def pooled(row: int, pooler: str) -> Tensor:
        return F.normalize(linear(hidden[row], weights, f"{pooler}.dense").relu(), dim=0)

    images = [
        (pair, kind, pooled(row, "image_pooler"))
        for row, pair, kind in zip(
            batch.image_rows_I.tolist(), batch.image_pairs_I.tolist(), batch.image_kinds_I.tolist(), strict=True
        )
    ]
    texts = [
        (pair, kind, pooled(row, "text_pooler"))
        for row, pair, kind in zip(
            batch.text_rows_X.tolist(), batch.text_pairs_X.tolist(), batch.text_kinds_X.tolist(), strict=True
        )
    ]
    temperature = weights["temperature.value"][0]
    alone_v = {pair: vector for pair, kind, vector in images if kind == Kind.ALONE}
    alone_w = {pair: vector for pair, kind, vector in texts if kind == Kind.ALONE}
    joint = [
        (a[0], a[1], a[2] @ b[2])
        for a, b in zip([i for i in images if i[1] <= 2], [t for t in texts if t[1] <= 2], strict=True)
    ]
    joint += [(pair, kind, vector @ alone_w[pair]) for pair, kind, vector in images if kind == Kind.RETRIEVED]
    joint += [(pair, kind, vector @ alone_v[pair]) for pair, kind, vector in texts if kind == Kind.RETRIEVED]
    groups, total = batch.pair_groups_P.tolist(), torch.zeros(()).double()
    for pair in range(len(groups)):
        mine = [(kind, (d / temperature).exp()) for owner, kind, d in joint if owner == pair]
        false = sum(value for kind, value in mine if kind == Kind.NEGATIVE)
        true = [value for kind, value in mine if kind in (Kind.PAIR, Kind.POSITIVE)]
        if form == "summed":
            true = [sum(value for kind, value in mine if kind != Kind.NEGATIVE)]
        total = total - sum((value / (value + false)).log() for value in true) / len(true)
        for anchor, others, members in ((alone_v[pair], alone_w, texts), (alone_w[pair], alone_v, images)):
            terms = {other: (anchor @ vector / temperature).exp() for other, vector in others.items()}
            same = sum(value for other, value in terms.items() if groups[other] == groups[pair])
            total = total - 0.5 * (same / sum(terms.values())).log()
            found = [(owner, (anchor @ v / temperature).exp()) for owner, kind, v in members if kind == Kind.RETRIEVED]
            own = sum(value for owner, value in found if groups[owner] == groups[pair])
            if form == "each" and any(groups[owner] == groups[pair] for owner, _ in found):
                total = total - 0.5 * (own / sum(value for _, value in found)).log()
    return total


def matching_logits(hidden: Tensor, batch: Batch, weights: Weights) -> Tensor:
    """One logit for each image and text that stand in one sequence (spec 7.3)."""
    logits = []
    for (image, kind), text in zip(
        [(r, k) for r, k in zip(batch.image_rows_I.tolist(), batch.image_kinds_I.tolist(), strict=True) if k <= Kind.NEGATIVE],
        [r for r, k in zip(batch.text_rows_X.tolist(), batch.text_kinds_X.tolist(), strict=True) if k <= Kind.NEGATIVE],
        strict=True,
    ):
        assert kind in (Kind.PAIR, Kind.POSITIVE, Kind.NEGATIVE)
        pooled = [
            linear(hidden[row], weights, f"{name}_pooler.dense").relu() for name, row in (("image", image), ("text", text))
        ]
        logits.append(linear(pooled[0] * pooled[1], weights, "matching_head.score")[0])
    return torch.stack(logits) if logits else torch.zeros(0).double()


def matching_sum(hidden: Tensor, batch: Batch, weights: Weights) -> Tensor:
    """For every pair half the mean of -log p over its true captions and half that of -log (1 - p) over its false ones."""
    logits = iter(matching_logits(hidden, batch, weights))
    sides: dict[tuple[int, bool], list[Tensor]] = {}
    for pair, kind in zip(batch.text_pairs_X.tolist(), batch.text_kinds_X.tolist(), strict=True):
        if kind <= Kind.NEGATIVE:
            true = kind != Kind.NEGATIVE
            probability = torch.sigmoid(next(logits))
            sides.setdefault((pair, true), []).append(-(probability if true else 1 - probability).log())
    return sum((0.5 * torch.stack(losses).mean() for losses in sides.values()), torch.zeros(()).double())


def reference_losses(batch: Batch, weights: Weights, totals: Totals, form: str = "each") -> Tensor:
    embedded, starts = embed(batch, weights), batch.cu_seqlens_S1.tolist()
    hidden = torch.cat(
        [
            encode(embedded[start:end], prefix, weights)
            for start, end, prefix in zip(starts, starts[1:], batch.prefix_lengths_S.tolist(), strict=False)
        ]
    )
    sums = [
        *language_sums(hidden, batch, weights),
        *region_sums(hidden, batch, weights),
        contrastive_sum(hidden, batch, weights, form),
        matching_sum(hidden, batch, weights),
    ]
    counts = [totals.mlm, totals.seq2seq, totals.regions, totals.regions, totals.pairs, totals.pairs]
    return torch.stack([value / max(count, 1) for value, count in zip(sums, counts, strict=True)])


def compare(make: Callable[[], Batch], form: str = "each") -> None:
    torch.manual_seed(0)
    batch = make()
    model = PretrainingModel(UnimoModel(TINY), ObjectivesSection.model_validate({"matching": 1.0, "cmcl": {"positives": form}}))
    with torch.no_grad():  # biases and norms away from 0 and 1, so that a forgotten one shows
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        model.unimo.temperature.value.fill_(0.2)
    totals = Totals(*map(float, batch.counts().tensor().tolist()))
    loss, measured = model(batch, totals)
    shares = measured[: len(NAMES)]
    loss.backward()
    weights = {name.removeprefix("unimo."): p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    expected = reference_losses(batch, weights, totals, form)
    expected.sum().backward()
    for name, ours, theirs in zip(NAMES, shares.tolist(), expected.tolist(), strict=True):
        assert abs(ours - theirs) < 1e-4 * max(1, abs(theirs)), f"{name}: {ours} against {theirs}"
    for name, parameter in model.named_parameters():
        double = weights[name.removeprefix("unimo.")]
        theirs = double.grad if double.grad is not None else torch.zeros_like(double)  # nothing in the batch needs it
        assert parameter.grad is not None
        scale = float(parameter.grad.abs().max()) + 1e-3
        torch.testing.assert_close(
            parameter.grad.double(), theirs, atol=2e-4 * scale, rtol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_pairs_texts_and_images_together() -> None:
    compare(lambda: random_batch(0, pairs=3, texts=2, images=2))


def test_pairs_of_one_image_are_positives_of_each_other() -> None:
    compare(lambda: random_batch(1, pairs=4, groups=[0, 0, 1, 0]))


@pytest.mark.parametrize("form", ["each", "summed"])
@pytest.mark.parametrize("seed", [2, 3])
def test_every_kind_of_candidate(seed: int, form: str) -> None:
    """Rewritten positives, hard negatives, retrieved images and retrieved texts, none to several of each a pair."""
    compare(lambda: random_batch(seed, pairs=4, groups=[7, 8, 7, 9], candidates=True), form)
