"""The CMCL meter against plain loops in float64."""

import math

import pytest
import torch

from tests.helpers import random_batch
from tests.objectives.test_contrastive import random_outputs
from unimo_ds.batch import Batch, Kind, Source
from unimo_ds.model.unimo import Outputs
from unimo_ds.objectives.contrastive import score_candidates
from unimo_ds.objectives.meter import METER, meter_sums, readings


def measured(batch: Batch, outputs: Outputs) -> dict[str, float]:
    return readings(meter_sums(outputs, batch, score_candidates(outputs, batch)).tolist())


def by_hand(batch: Batch, outputs: Outputs) -> dict[str, float]:
    images, texts = outputs.image_vectors_ID.double().detach(), outputs.text_vectors_XD.double().detach()
    temperature = float(outputs.temperature.detach())
    joint_i = [i for i, kind in enumerate(batch.image_kinds_I.tolist()) if kind <= Kind.NEGATIVE]
    joint_x = [x for x, kind in enumerate(batch.text_kinds_X.tolist()) if kind <= Kind.NEGATIVE]
    scores = [(float(images[i] @ texts[x]) / temperature, x) for i, x in zip(joint_i, joint_x, strict=True)]
    pairs, kinds, sources = batch.text_pairs_X.tolist(), batch.text_kinds_X.tolist(), batch.text_sources_X.tolist()
    own = {pairs[x]: score for score, x in scores if kinds[x] == Kind.PAIR}
    count = len(batch.pair_groups_P)
    found: dict[str, float] = {}
    for source in (Source.STEP, Source.SENTENCE, Source.PHRASE, Source.WORD):
        mine = [(score, pairs[x]) for score, x in scores if kinds[x] == Kind.NEGATIVE and sources[x] == source]
        found[f"cmcl/negatives_{source.name.lower()}"] = len(mine) / count
        if mine:
            found[f"cmcl/winning_{source.name.lower()}"] = sum(score >= own[pair] for score, pair in mine) / len(mine)
    effective = []
    for pair in range(count):
        weights = [math.exp(score) for score, x in scores if kinds[x] == Kind.NEGATIVE and pairs[x] == pair]
        if weights:
            effective.append(sum(weights) ** 2 / sum(weight**2 for weight in weights))
    found["cmcl/effective_negatives"] = sum(effective) / len(effective)
    alone_v = images[batch.image_kinds_I == Kind.ALONE]
    alone_w = texts[batch.text_kinds_X == Kind.ALONE]
    found["cmcl/alignment"] = float((alone_v - alone_w).square().sum()) / count
    groups = batch.pair_groups_P.tolist()
    apart = [
        math.exp(-2 * float((vectors[a] - vectors[b]).square().sum()))
        for vectors in (alone_v, alone_w)
        for a in range(count)
        for b in range(count)
        if groups[a] != groups[b]
    ]
    found["cmcl/uniformity"] = math.log(sum(apart) / len(apart))
    found["cmcl/retrieved_images"] = int((batch.image_kinds_I == Kind.RETRIEVED).sum()) / count
    found["cmcl/retrieved_texts"] = int((batch.text_kinds_X == Kind.RETRIEVED).sum()) / count
    return found


@pytest.mark.parametrize("seed", range(4))
def test_readings_equal_plain_loops(seed: int) -> None:
    batch = random_batch(seed, pairs=5, texts=1, groups=[3, 3, 4, 5, 6], candidates=True)
    outputs = random_outputs(batch, seed, 0.3)
    assert measured(batch, outputs) == pytest.approx(by_hand(batch, outputs), rel=1e-4, abs=1e-5)


def test_sums_of_micro_batches_add_up() -> None:
    """Counts and shares of wins do; alignment and uniformity are means over what each micro-batch compares."""
    batches = [random_batch(seed, pairs=2, first_group=10 * seed, candidates=True) for seed in (1, 2)]
    outputs = [random_outputs(batch, 5, 0.3) for batch in batches]
    sums = sum(meter_sums(o, b, score_candidates(o, b)) for o, b in zip(outputs, batches, strict=True))
    both, parts = readings(sums.tolist()), [by_hand(batch, output) for batch, output in zip(batches, outputs, strict=True)]
    for name in ("cmcl/negatives_word", "cmcl/retrieved_images", "cmcl/alignment"):
        assert both[name] == pytest.approx(sum(part[name] for part in parts) / 2, rel=1e-4)


def test_without_pairs_there_is_nothing_to_read_and_without_negatives_no_share() -> None:
    texts = random_batch(0, texts=2)
    assert measured(texts, random_outputs(texts, 0, 0.1)) == {}
    outputs = random_outputs(texts, 0, 0.1)
    assert len(meter_sums(outputs, texts, score_candidates(outputs, texts))) == len(METER)


def test_the_meter_takes_no_part_in_the_gradient() -> None:
    batch = random_batch(1, pairs=2, candidates=True)
    outputs = random_outputs(batch, 1, 0.3)
    assert not meter_sums(outputs, batch, score_candidates(outputs, batch)).requires_grad
    assert torch.is_grad_enabled()
