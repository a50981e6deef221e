"""The K items of highest score for each query: an exact search in blocks, and FAISS's approximate one.

The score is the inner product. Both sides are sparse (scipy) or dense; only blocks of the score matrix exist at any time.
Equal scores: the item of the lower number comes first.

Memory beside the two sides: 8 K Q bytes for the best so far, 8 K Q for what is returned, and for each thread at most 200 MB:
the scores of a block, and of the first ones, of which all may be among the best, the candidates.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, issparse

from unimo_ds.errors import ConfigError
from unimo_ds.progress import Progress

# Q queries, I items, W width of a vector, K neighbours, B queries and C items of a block, X candidates

Index = Literal["exact", "faiss"]
INDEXES: tuple[Index, ...] = get_args(Index)

_DENSE = 0.02  # of an item's numbers not zero: from here on a block of items is faster as a dense matrix
_DENSE_BLOCK = (1024, 512)  # queries, items: their scores and the items' vectors stay in a core's cache
_SPARSE_BLOCK = (256, 16384)
_FAISS_BLOCK = 1024
_TRAINING_POINTS = 40  # a cell: FAISS asks for 39 at least
_PROBES = 32  # cells of about 4 sqrt(I) that a query looks into
_EMPTY = np.iinfo(np.int64).min
_LOW = 0xFFFFFFFF


@dataclass(frozen=True)
class Nearest:
    """Numbers of items and their scores, best first; -1 and 0 where there are no more."""

    numbers_QK: npt.NDArray[np.int32]
    scores_QK: npt.NDArray[np.float32]


class Exclusions:
    """Which items a query must not find.

    Args:
        forbidden: (number of a query, number of an item that it must not find), in any order.
        items: I.
    """

    def __init__(self, forbidden: Sequence[tuple[int, int]], items: int) -> None:
        queries_X, items_X = np.array(forbidden, np.int64).reshape(-1, 2).T
        self._items = items
        self._places_X = np.unique(queries_X * items + items_X)  # in the score matrix, row by row; sorted
        self.most = int(np.unique(self._places_X // max(items, 1), return_counts=True)[1].max(initial=0))

    def allowed(self, queries_X: npt.NDArray[np.int64], items_X: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether each query may find the item beside it."""
        if not len(self._places_X):
            return np.ones(len(queries_X), bool)
        places_X = queries_X * self._items + items_X
        at_X = np.minimum(np.searchsorted(self._places_X, places_X), len(self._places_X) - 1)
        allowed_X: npt.NDArray[np.bool_] = self._places_X[at_X] != places_X
        return allowed_X


class _Best:
    """The K best candidates of each query so far; different threads may offer to different queries.

    A candidate is one integer, the score above and the number below, so that equal scores have an order and the best do not
    depend on how the work was cut.
    """

    def __init__(self, queries: int, count: int, above: float, exclusions: Exclusions) -> None:
        self._keys_QK = np.full((queries, count), _EMPTY, np.int64)
        self.bar_Q = np.full(queries, above, np.float32)  # what a candidate must exceed: most of a block fails here
        self.exclusions = exclusions

    def offer(
        self, queries_X: npt.NDArray[np.int64], items_X: npt.NDArray[np.int64], scores_X: npt.NDArray[np.float32]
    ) -> None:
        """Takes candidates into account; queries ascend, and no item comes after one of a higher number of an earlier call."""
        allowed_X = self.exclusions.allowed(queries_X, items_X)
        queries_X, items_X, scores_X = queries_X[allowed_X], items_X[allowed_X], scores_X[allowed_X]
        if not len(queries_X):
            return
        queries, counts = np.unique(queries_X, return_counts=True)
        line_X = np.repeat(np.arange(len(queries)), counts)
        place_X = np.arange(len(queries_X)) - np.repeat(np.cumsum(counts) - counts, counts)
        count = self._keys_QK.shape[1]
        keys = np.full((len(queries), count + counts.max()), _EMPTY, np.int64)
        keys[:, :count] = self._keys_QK[queries]
        keys[line_X, count + place_X] = _keys(scores_X, items_X)
        keys = np.partition(keys, -count, axis=1)[:, -count:]
        self._keys_QK[queries] = keys
        full = keys[:, 0] > _EMPTY  # the least of the K is first
        self.bar_Q[queries[full]] = _scores(keys[full, 0])

    def result(self) -> Nearest:
        """What was found; the object must not be used afterwards."""
        self._keys_QK.sort(axis=1)
        numbers_QK = np.full(self._keys_QK.shape, -1, np.int32)
        scores_QK = np.zeros(self._keys_QK.shape, np.float32)
        for first in range(0, len(numbers_QK), _FAISS_BLOCK):
            rows = slice(first, first + _FAISS_BLOCK)
            keys_BK = self._keys_QK[rows, ::-1]
            found_BK = keys_BK > _EMPTY
            numbers_QK[rows][found_BK] = _LOW - (keys_BK[found_BK] & _LOW)
            scores_QK[rows][found_BK] = _scores(keys_BK[found_BK])
        return Nearest(numbers_QK, scores_QK)


def _keys(scores_X: npt.NDArray[np.float32], items_X: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A float's bits, read as an integer, ascend with it; those of negative floats descend, so they are turned round."""
    bits_X = scores_X.view(np.int32)
    ordered_X = np.where(bits_X < 0, bits_X ^ 0x7FFFFFFF, bits_X).astype(np.int64)
    keys_X: npt.NDArray[np.int64] = ordered_X << 32 | (_LOW - items_X)
    return keys_X


def _scores(keys: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    ordered = (keys >> 32).astype(np.int32)
    return np.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).astype(np.int32).view(np.float32)


def nearest(
    queries_QW: Any, items_IW: Any, count: int, exclusions: Exclusions, index: Index, above: float, what: str
) -> Nearest:
    """The `count` items of highest score for each query.

    Args:
        queries_QW, items_IW: float32, each a `csr_array` or a dense array.
        count: K.
        exclusions: what must not be found.
        index: `exact`, or `faiss`: an inverted file (Sivic and Zisserman, 2003) of about 4 sqrt(I) cells, of which the 32
            nearest are searched. It makes sparse items dense: 4 I W bytes.
        above: only scores above this count; not negative where a side is sparse, because zeros are not looked at.
        what: names the work to the reader of the progress.

    Raises:
        ConfigError: FAISS is asked for and not installed.
    """
    best = _Best(queries_QW.shape[0], count, above, exclusions)
    if queries_QW.shape[0] and items_IW.shape[0] and count:
        search = {"exact": _search_exactly, "faiss": _search_by_faiss}[index]
        search(queries_QW, items_IW, count, best, what)
    return best.result()


def _search_exactly(queries_QW: Any, items_IW: Any, count: int, best: _Best, what: str) -> None:
    queries, items = queries_QW.shape[0], items_IW.shape[0]
    dense = not issparse(items_IW) or items_IW.nnz > _DENSE * items * items_IW.shape[1]
    rows, columns = _DENSE_BLOCK if dense else _SPARSE_BLOCK
    candidates: Callable[..., Any] = _candidates if dense else _candidates_of_sparse
    # Each thread takes queries of its own: scipy lets go of the interpreter while it computes. BLAS has threads itself.
    threads = _cores() if issparse(queries_QW) else 1
    with ThreadPoolExecutor(threads) as pool, Progress(what, items, "items") as progress:
        for start in range(0, items, columns):
            block_WC = _transposed(items_IW[start : start + columns], dense)

            def sweep(first: int, block_WC: Any = block_WC, start: int = start) -> None:
                bar_B = best.bar_Q[first : first + rows]
                queries_X, items_X, scores_X = candidates(queries_QW[first : first + rows] @ block_WC, bar_B)
                best.offer(queries_X + first, items_X + start, scores_X)

            for _ in pool.map(sweep, range(0, queries, rows)):
                pass
            progress.advance(block_WC.shape[1])


def _transposed(block_CW: Any, dense: bool) -> Any:
    """The block as the right side of a product."""
    if issparse(block_CW):
        return block_CW.T.toarray(order="C") if dense else csr_array(block_CW.T)
    return block_CW.T


def _candidates(scores_BC: npt.NDArray[np.float32], bar_B: npt.NDArray[np.float32]) -> tuple[Any, Any, Any]:
    """Row, column and value of the scores above the bars of their rows."""
    places_X = np.flatnonzero(scores_BC > bar_B[:, None])
    rows_X, columns_X = np.divmod(places_X, scores_BC.shape[1])
    return rows_X, columns_X, scores_BC.ravel()[places_X]


def _candidates_of_sparse(scores_BC: Any, bar_B: npt.NDArray[np.float32]) -> tuple[Any, Any, Any]:
    rows_X = np.repeat(np.arange(len(bar_B)), np.diff(scores_BC.indptr))
    above_X = scores_BC.data > bar_B[rows_X]
    return rows_X[above_X], scores_BC.indices[above_X].astype(np.int64), scores_BC.data[above_X]


def _search_by_faiss(queries_QW: Any, items_IW: Any, count: int, best: _Best, what: str) -> None:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError("--index faiss: FAISS is not installed: `pip install faiss-cpu`, or leave the option out") from error
    queries, (items, width) = queries_QW.shape[0], items_IW.shape
    cells = max(1, min(round(4 * items**0.5), items // _TRAINING_POINTS))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    index.cp.spherical = True  # items are of unit length, so their cells' centres are too
    index.cp.seed = 0
    index.nprobe = _PROBES
    sample = np.linspace(0, items - 1, min(items, cells * _TRAINING_POINTS)).astype(np.int64)
    index.train(_dense(items_IW[sample]))
    for start in range(0, items, _FAISS_BLOCK):
        index.add(_dense(items_IW[start : start + _FAISS_BLOCK]))
    wanted = min(count + best.exclusions.most, items)
    with Progress(what, queries, "queries") as progress:
        for first in range(0, queries, _FAISS_BLOCK):
            scores_BK, items_BK = index.search(_dense(queries_QW[first : first + _FAISS_BLOCK]), wanted)
            good_BK = (items_BK >= 0) & (scores_BK > best.bar_Q[first])
            rows_X = np.nonzero(good_BK)[0] + first
            best.offer(rows_X, items_BK[good_BK], scores_BK[good_BK])
            progress.advance(len(items_BK))


def _dense(block: Any) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(block.toarray() if issparse(block) else block, np.float32)


def _cores() -> int:
    """Cores that this process may use: fewer than the machine has, under Slurm or in a container."""
    return len(os.sched_getaffinity(0))
