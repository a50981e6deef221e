"""The retrieval benchmark: both contenders score every pair, and every case has a row."""

import pytest
import torch

from unimo_ds.bench import retrieval, workload


def load() -> workload.Workload:
    pairs = workload.pairs(3)
    return workload.Workload(pairs.images, pairs.texts[:2])


def test_every_pair_is_scored() -> None:
    assert len(retrieval.ours("tiny", torch.float32, load())()) == 6
    one, other = retrieval.visualbert("tiny", torch.float32, load(), [[0, 1, 2], [2, 0, 1]])
    first, second = torch.tensor(one()).view(2, 3), torch.tensor(other()).view(2, 3)
    torch.testing.assert_close(second, first[:, [2, 0, 1]], atol=1e-5, rtol=1e-5)


def test_every_case_is_measured_and_shown() -> None:
    rows = retrieval.measure_retrieval(["tiny"], ["fp32", "bf16"], rounds=1, images=3, captions=2)
    assert [(row["size"], row["precision"]) for row in rows] == [("tiny", "fp32"), ("tiny", "bf16")]
    assert all(float(row[key]) > 0 for row in rows for key in row if "per_second" in key or "times" in key)  # type: ignore[arg-type]
    assert retrieval.table(rows).count("\n") == 1 + len(rows)


@pytest.mark.parametrize("images", [1, 3])
def test_ours_are_the_scores_of_each_pair_alone(images: int) -> None:
    torch.manual_seed(0)
    whole = torch.tensor(retrieval.ours("tiny", torch.float32, load())())
    torch.manual_seed(0)
    part = workload.Workload(load().images[:images], load().texts)
    torch.testing.assert_close(torch.tensor(retrieval.ours("tiny", torch.float32, part)()), whole[: 2 * images])
