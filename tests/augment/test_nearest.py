"""The K best items of each query, against all scores in float64, however the work is cut into blocks."""

import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from unimo_ds.augment import nearest as module
from unimo_ds.augment.nearest import Exclusions, Nearest, nearest
from unimo_ds.errors import ConfigError

NOTHING_EXCLUDED = Exclusions([], 1)


def plain(
    queries: npt.NDArray[Any], items: npt.NDArray[Any], count: int, excluded: set[tuple[int, int]], above: float
) -> list[list[tuple[int, float]]]:
    """(number, score) of the best: highest score first, of equal ones the lower number."""
    scores = queries.astype(np.float64) @ items.astype(np.float64).T
    found = []
    for query, row in enumerate(scores):
        allowed = [(-s, number) for number, s in enumerate(row) if s > above and (query, number) not in excluded]
        found.append([(number, -s) for s, number in sorted(allowed)[:count]])
    return found


def listed(found: Nearest) -> list[list[tuple[int, float]]]:
    rows = zip(found.numbers_QK.tolist(), found.scores_QK.tolist(), strict=True)
    return [[(number, score) for number, score in zip(*row, strict=True) if number >= 0] for row in rows]


def whole_numbers(rng: np.random.Generator, rows: int, width: int, negative: bool) -> npt.NDArray[np.float32]:
    """Many are zero and many scores are equal; all products are exact in float32."""
    return rng.choice([-2, 0, 0, 1, 3] if negative else [0, 0, 0, 1, 2], (rows, width)).astype(np.float32)


CASES = st.tuples(st.integers(0, 2**32), st.integers(0, 12), st.integers(0, 40), st.integers(1, 6), st.integers(0, 9))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(CASES, st.booleans(), st.booleans(), st.integers(1, 7), st.integers(1, 9), st.sampled_from([-1.0, 0.0, 1.5]))
def test_the_best_are_found_in_order(
    case: tuple[int, int, int, int, int], sparse: bool, dense_blocks: bool, rows: int, columns: int, above: float
) -> None:
    seed, queries, items, width, count = case
    rng = np.random.default_rng(seed)
    queries_QW, items_IW = (whole_numbers(rng, number, width, not sparse) for number in (queries, items))
    pairs = queries * items
    excluded = {divmod(int(place), items) for place in rng.integers(0, pairs, pairs // 4)} if pairs else set()
    form = csr_array if sparse else np.asarray
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_DENSE", 0.0 if dense_blocks else 1.0)
        patch.setattr(module, "_DENSE_BLOCK", (rows, columns))
        patch.setattr(module, "_SPARSE_BLOCK", (rows, columns))
        # A sparse product holds no zeros, so nothing at or below 0 can be found in it.
        least = max(above, 0.0) if sparse else above
        found = nearest(form(queries_QW), form(items_IW), count, Exclusions(sorted(excluded), items), "exact", least, "finding")
    assert found.numbers_QK.shape == found.scores_QK.shape == (queries, count)
    assert listed(found) == plain(queries_QW, items_IW, count, excluded, least)
    assert not found.scores_QK[found.numbers_QK < 0].any()


@pytest.mark.parametrize("density", [0.005, 0.3])
def test_real_numbers_in_blocks_of_the_usual_size(density: float) -> None:
    rng = np.random.default_rng(0)
    queries, items = ((rng.random((n, 60)) * (rng.random((n, 60)) < density)).astype("f4") for n in (300, 2000))
    queries[7] = 0
    found = listed(nearest(csr_array(queries), csr_array(items), 10, NOTHING_EXCLUDED, "exact", 0.0, "finding"))
    scores = queries.astype(np.float64) @ items.astype(np.float64).T
    assert found[7] == []
    for query, row in enumerate(found):
        best = np.sort(scores[query][scores[query] > 0])[::-1][:10]
        np.testing.assert_allclose([score for _, score in row], best, rtol=1e-5)
        np.testing.assert_allclose(scores[query][[number for number, _ in row]], best, rtol=1e-5)
        assert len({number for number, _ in row}) == len(row)


def unit_vectors(rng: np.random.Generator, count: int) -> npt.NDArray[np.float32]:
    vectors = rng.normal(size=(count, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("f4")


@pytest.mark.parametrize("form", [np.asarray, csr_array])
def test_faiss_finds_nearly_the_same(form: Any) -> None:
    rng = np.random.default_rng(0)
    centres = unit_vectors(rng, 20)
    items = centres[rng.integers(20, size=3000)] + 0.1 * unit_vectors(rng, 3000)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    excluded = Exclusions([(query, query) for query in range(50)], len(items))
    exact, approximate = (
        nearest(form(items[:50]), form(items), 10, excluded, index, 0.0, "finding")
        for index in ("exact", "faiss")  # type: ignore[arg-type]
    )
    for query, (best, found) in enumerate(zip(listed(exact), listed(approximate), strict=True)):
        assert query not in dict(found) and len(found) == 10
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
        assert len(dict(best).keys() & dict(found).keys()) >= 8
        for number in dict(best).keys() & dict(found).keys():
            assert dict(best)[number] == pytest.approx(dict(found)[number], abs=1e-6)


def test_faiss_with_fewer_items_than_wanted() -> None:
    found = nearest(np.eye(3, dtype="f4"), np.eye(3, dtype="f4"), 5, Exclusions([(0, 0)], 3), "faiss", 0.0, "finding")
    assert listed(found) == [[], [(1, 1.0)], [(2, 1.0)]] and found.numbers_QK.shape == (3, 5)


def test_without_faiss_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"--index faiss: .*`pip install faiss-cpu`"):
        nearest(np.eye(3, dtype="f4"), np.eye(3, dtype="f4"), 2, NOTHING_EXCLUDED, "faiss", 0.0, "finding")
