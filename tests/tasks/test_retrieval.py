"""Retrieval: what a pair is taught with, the circle loss, full and two-stage scoring."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import TINY, WordsTokenizer, random_regions
from tests.numerics.test_outputs import sequences
from tests.numerics.test_whole_model import linear
from tests.tasks.test_losses import Store, assert_same_gradients, first_words, stirred
from unimo_ds.config import CaptionFiles, RetrievalSection
from unimo_ds.data.packing import Packer
from unimo_ds.data.prepared import Rejects
from unimo_ds.errors import DataError
from unimo_ds.metrics.ranking import recall_at
from unimo_ds.tasks.retrieval import Retrieval, circle_loss
from unimo_ds.tasks.task import Example, TaskBatch, TaskTotals, Tokens

NEGATIVES = 3
STORE: Any = Store()


def retrieval(**settings: Any) -> Retrieval:
    files = {"path": "none", "regions": "none"}
    return Retrieval(
        RetrievalSection.model_validate(
            {"family": "retrieval", "train": files, "dev": {"dev": files}, "negatives": NEGATIVES, **settings}
        ),
        WordsTokenizer(),  # type: ignore[arg-type]
    )


def examples(images: int = 6, captions: int = 2) -> list[Example]:
    """Two captions an image, the second ones behind all the first ones."""
    return [
        Example(str(image), (f"{image}.{caption}",), str(image), STORE)
        for caption in range(captions)
        for image in range(images)
    ]


def side(right: Tensor, wrong: Tensor, margin: float, scale: float) -> Tensor:
    """The circle loss as the specification writes it (7.3)."""
    right_weight = torch.relu(1 + margin - right).detach()
    wrong_weights = torch.relu(wrong + margin).detach()
    pushed = (scale * wrong_weights * (wrong - margin)).exp().sum()
    return torch.log(1 + pushed * torch.exp(-scale * right_weight * (right - (1 - margin))))


def test_a_pair_is_taught_with_other_images_and_captions_of_other_images() -> None:
    task, items = retrieval(), examples()
    drawn = [task.pairings(4, items, np.random.default_rng(seed)) for seed in range(20)]
    for pairings in drawn:
        assert pairings[0] == (4, 4) and len(pairings) == 1 + 2 * NEGATIVES
        images, captions = pairings[1 : 1 + NEGATIVES], pairings[1 + NEGATIVES :]
        assert all(text_of == 4 for _, text_of in images) and all(image_of == 4 for image_of, _ in captions)
        for others in ([items[image_of].image for image_of, _ in images], [items[text_of].image for _, text_of in captions]):
            assert len(set(others)) == NEGATIVES and "4" not in others
    assert len({tuple(pairings) for pairings in drawn}) > 15, "every draw has its own"
    assert task.pairings(4, items, np.random.default_rng(3)) == drawn[3]


@pytest.mark.parametrize(("margin", "scale"), [(0.2, 1.0), (0.4, 8.0)])
def test_loss_and_gradients(margin: float, scale: float) -> None:
    task, items, count = retrieval(margin=margin, scale=scale), examples(), 2
    rng = np.random.default_rng(0)
    texts = [rng.integers(4, TINY.vocabulary_size - 1, int(rng.integers(1, 9))) for _ in items]
    packer = Packer(TINY.feature_width, 100)
    for place in range(count):
        for image_of, text_of in task.pairings(3 * place, items, rng):
            example = Example("", ("x",), items[image_of].image, STORE)
            task.add(packer, example, Tokens([texts[text_of]], None, 64), place)
    batch = TaskBatch(packer.build(), task.targets(items[:count]), count)
    assert len(batch.batch.features_RF) < len(batch.batch.region_rows_L), "an image that is shown twice is stored once"
    model, weights = stirred(task)
    hidden = sequences(batch.batch, weights)
    image = torch.relu(linear(torch.stack([rows[0] for rows in hidden]), weights, "image_pooler.dense"))
    words = torch.stack([rows[number] for rows, number in zip(hidden, first_words(batch), strict=True)])
    scores = linear(image * torch.relu(linear(words, weights, "text_pooler.dense")), weights, "head.score").view(count, -1)
    losses = [
        (side(row[0], row[1 : 1 + NEGATIVES], margin, scale) + side(row[0], row[1 + NEGATIVES :], margin, scale)) / 2
        for row in scores
    ]
    torch.stack(losses).sum().div(5).backward()
    loss, _ = model(batch, TaskTotals(targets=5, positions=1))
    assert float(loss.detach()) == pytest.approx(float(sum(losses).detach()) / 5, rel=1e-6)
    loss.backward()
    assert_same_gradients(model, weights)


def test_images_without_captions_are_no_negatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        folder = tmp_path

        def __contains__(self, key: str) -> bool:
            return True

    monkeypatch.setattr("unimo_ds.tasks.retrieval.RegionStore", lambda folder: Full())
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(9)]
    told = [{"image_id": number, "caption": "A cup."} for number in range(NEGATIVES)]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": told}))
    files = CaptionFiles(path=tmp_path / "captions.json", regions=tmp_path)
    with pytest.raises(
        DataError, match=f"has {NEGATIVES} images with captions and regions; task.negatives = {NEGATIVES} wants"
    ):
        list(retrieval().read(files, Rejects(), teach=True))


def test_the_loss_of_extreme_scores_is_a_number() -> None:
    right, wrong = torch.tensor([-300.0, 300.0]).requires_grad_(), torch.tensor([[250.0, -5.0], [-400.0, 3.0]]).requires_grad_()
    losses = circle_loss(right, wrong, 0.2, 1.0)
    losses.sum().backward()
    assert losses.isfinite().all() and right.grad is not None and right.grad.isfinite().all()
    assert wrong.grad is not None and wrong.grad.isfinite().all() and float(losses.detach()[0]) > 1e4


def test_all_pairs_are_asked_and_put_back_in_their_places() -> None:
    task, items = retrieval(), examples()
    asked = task.asked(items, lambda: pytest.fail("no vectors are wanted"))
    assert len({tuple(pair) for pair in asked.tolist()}) == 12 * 6
    truth = np.random.default_rng(0).normal(size=(12, 6)).astype("f4")
    answers = task.gathered(asked, [truth[text_of, int(items[image_of].image or 0)] for image_of, text_of in asked], items)
    np.testing.assert_array_equal(np.stack(answers), truth)
    right = np.array([[int(item.image or 0) == image for image in range(6)] for item in items])
    scores = task.score(answers, items)
    assert scores["t2i_r1"] == recall_at(truth, right, 1) and scores["i2t_r5"] == recall_at(truth.T, right.T, 5)
    assert scores["mean_r1"] == (scores["t2i_r1"] + scores["i2t_r1"]) / 2


def test_two_stages_score_the_candidates_of_either_side_alone() -> None:
    items = examples()
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(6, 5)), rng.normal(size=(12, 5))
    asked = retrieval(candidates=2).asked(items, lambda: (np.tile(images, (2, 1)), texts))
    similarity = texts @ images.T
    expected = {(image, text) for text in range(12) for image in np.argsort(-similarity[text])[:2]}
    expected |= {(image, text) for image in range(6) for text in np.argsort(-similarity[:, image])[:2]}
    assert {tuple(pair) for pair in asked.tolist()} == expected and len(asked) == len(expected) < 72
    answers = np.stack(retrieval().gathered(asked, [1.0] * len(asked), items))
    assert (answers == 1).sum() == len(asked) and np.isneginf(answers[answers != 1]).all()
    everything = retrieval(candidates=99).asked(items, lambda: (np.tile(images, (2, 1)), texts))
    assert len(everything) == 72


def test_an_image_that_was_not_asked_for_is_not_found() -> None:
    items = examples(3, 1)
    answers = [np.array([-np.inf, 1.0, 0.0]), np.array([0.5, -np.inf, -np.inf]), np.array([0.0, -np.inf, 2.0])]
    scores = retrieval().score(answers, items)
    assert scores["t2i_r1"] == pytest.approx(1 / 3)


def test_a_caption_is_judged_by_the_place_of_its_image() -> None:
    items = examples(3, 1)
    answers = [np.array([0.0, 2.0, 1.0]), np.array([0.0, 2.0, 2.0]), np.array([-np.inf, -np.inf, 2.0])]
    judged = retrieval().judge(answers, items)
    assert [each.worth for each in judged] == [pytest.approx(1 / 3), 0.5, 1.0], "a tie counts against it"
    assert judged[0].answer == "1; the true one comes as number 3 of 3" and judged[0].truth == "0"


def test_images_of_other_stores_are_told_apart(tmp_path: Path) -> None:
    class Other:
        folder = tmp_path

        def get(self, key: str) -> Any:
            return random_regions(np.random.default_rng(99), 9)

    packer, other = Packer(TINY.feature_width, 100), Other()
    shown = [packer.show(store, "1") for store in (STORE, other, STORE, other)]
    assert shown[0] == shown[2] != shown[1] == shown[3]
