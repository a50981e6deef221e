"""What the kernels have to do and what they do, counted: pairs of positions, operations, bytes, and the least time.

Nothing here was timed. A count says how much work a launch contains and how fast a GPU could do it at best, by its maker's
figures for matrix products and memory; how near a kernel comes to that, only a GPU can say (tools/bench_gpu.py).

Shape suffixes: S sequences, K tiles of the attention kernels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from unimo_ds.kernels.attention import TILE_ROWS, tile_list
from unimo_ds.kernels.table import contrastive_launch

Ints = npt.NDArray[np.int64]

NARROW = 16  # columns of a narrow step of the attention kernels; a wide step has a multiple of it
HEADS, WIDTH = 12, 64  # of the base model
VECTOR, VOCABULARY = 768, 50265
CHUNK = 1 << 25  # logits of a chunk of the language head
CONTRASTIVE_SIZES = (4096, 16384, 65536)
TARGETS = (512, 4096)  # of the language head: masked words of the standard batch, and of a large one of documents


class Lengths(NamedTuple):
    """A batch, as far as attention is concerned: the length of each sequence, and its prefix that all its rows see."""

    lengths_S: Ints
    prefixes_S: Ints


def standard_batch() -> Lengths:
    """256 sequences of 37 to 100 rows, image-text pairs, all bidirectional."""
    lengths_S = np.random.default_rng(0).integers(37, 101, 256)
    return Lengths(lengths_S, lengths_S)


def long_batch() -> Lengths:
    """64 sequences of 512 rows, documents, all bidirectional."""
    lengths_S = np.full(64, 512)
    return Lengths(lengths_S, lengths_S)


def mixed_batch() -> Lengths:
    """The standard lengths, a third each bidirectional, with a prefix, and causal."""
    lengths_S = standard_batch().lengths_S
    cut_S = np.random.default_rng(1).integers(1, lengths_S)
    kind_S = np.arange(len(lengths_S)) % 3
    return Lengths(lengths_S, np.choose(kind_S, [lengths_S, cut_S, np.zeros_like(lengths_S)]))


BATCHES = {"256 x 37..100": standard_batch, "the same, mixed": mixed_batch, "64 x 512": long_batch}


def pairs_needed(batch: Lengths) -> int:
    """Pairs (query, key) of one head in which the query sees the key: key < max(prefix, query + 1)."""
    lengths_S, prefixes_S = batch
    later_S = lengths_S - prefixes_S  # the rows behind the prefix see one key more each
    return int((lengths_S * prefixes_S + later_S * (later_S + 1) // 2).sum())


class Tiles(NamedTuple):
    """Tiles of an attention launch for one head: the rows each holds, and the other side's rows it walks over.

    `walked_K` are rows that exist and have to be loaded; `steps_K` is what the products are computed over, steps filled up.
    """

    rows_K: Ints
    walked_K: Ints
    steps_K: Ints

    @property
    def pairs(self) -> int:
        """Pairs that are computed: every tile has all its rows in every step."""
        return int(TILE_ROWS * self.steps_K.sum())


def query_tiles(batch: Lengths) -> Tiles:
    """Tiles of the forward kernel and of dq, over the keys that some row of the tile sees.

    Wide steps are filled by definition, so only the last narrow step can be computed over more than there is.
    """
    _, length_K, prefix_K, first_K = tile_list(*batch).astype(np.int64).T
    end_K = np.minimum(first_K + TILE_ROWS, length_K)
    seen_K = np.maximum(prefix_K, end_K)
    return Tiles(end_K - first_K, seen_K, _filled(seen_K, NARROW))


def key_tiles(batch: Lengths) -> Tiles:
    """Tiles of dkv, over the queries that see some key of the tile: all of them where the tile begins in the prefix."""
    _, length_K, prefix_K, first_K = tile_list(*batch).astype(np.int64).T
    end_K = np.minimum(first_K + TILE_ROWS, length_K)
    walked_K = length_K - np.where(first_K < prefix_K, 0, first_K)
    return Tiles(end_K - first_K, walked_K, _filled(walked_K, NARROW))


def _filled(count: Ints, step: int) -> Ints:
    return -(-count // step) * step


def pairs_padded(batch: Lengths) -> int:
    """Pairs of attention on sequences padded to the longest of the batch."""
    return int(len(batch.lengths_S) * batch.lengths_S.max() ** 2)


def pairs_flex(batch: Lengths, block: int = 128) -> int:
    """Pairs of FlexAttention on the packed axis: all pairs of each `block` x `block` square that has a visible one."""
    squares = set()
    starts_S = np.cumsum(batch.lengths_S) - batch.lengths_S
    for start, length, prefix in zip(starts_S, *batch, strict=True):
        blocks = range(start // block, -(-(start + length) // block))
        for of_queries in blocks:
            last_query = min((of_queries + 1) * block - start, length) - 1
            for of_keys in blocks:
                if max(of_keys * block - start, 0) < max(prefix, last_query + 1):
                    squares.add((of_queries, of_keys))
    return len(squares) * block**2


def pairs_flash(batch: Lengths, rows: int = 128, columns: int = 128) -> int:
    """Pairs of tiles that begin with each sequence, FlashAttention-2's forward at head width 64 without dropout.

    It knows no prefix, so a batch is counted as if all of it were bidirectional.
    """
    return int((_filled(batch.lengths_S, rows) * _filled(batch.lengths_S, columns)).sum())


class Work(NamedTuple):
    """Floating-point operations of matrix products, and bytes."""

    flops: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":  # type: ignore[override]
        return Work(self.flops + other.flops, self.bytes + other.bytes)


class Count(NamedTuple):
    """One launch.

    Attributes:
        what: its name.
        needed: visible pairs only, each input read once and each output written once.
        done: by the kernel: whole tiles, and every load and store of its programs. What a program loads again comes from the
            L2 cache as long as it fits there, so these bytes are not all memory traffic.
    """

    what: str
    needed: Work
    done: Work


def attention_counts(batch: Lengths, heads: int = HEADS, width: int = WIDTH, itemsize: int = 2) -> list[Count]:
    """Forward, dq, dkv, and the whole backward pass, whose five products at least are needed though the two kernels make seven.

    Dropout adds no product and no byte (its integer arithmetic is not counted).
    """
    rows, pairs = int(batch.lengths_S.sum()), pairs_needed(batch)
    queries, keys = query_tiles(batch), key_tiles(batch)

    def work(pairs: int, products: int, vectors: int, numbers: int) -> Work:
        """`vectors` of E elements and single float32 `numbers` are moved, for each head."""
        return Work(2 * products * pairs * heads * width, heads * (vectors * width * itemsize + numbers * 4))

    read = int(queries.walked_K.sum()), int(keys.walked_K.sum())
    forward = Count("attention forward", work(pairs, 2, 4 * rows, rows), work(queries.pairs, 2, 2 * rows + 2 * read[0], rows))
    dq = Count("attention dq", work(pairs, 3, 6 * rows, 2 * rows), work(queries.pairs, 3, 4 * rows + 2 * read[0], 2 * rows))
    dkv = Count("attention dkv", work(pairs, 4, 6 * rows, 2 * rows), work(keys.pairs, 4, 4 * rows + 2 * read[1], 2 * read[1]))
    return [forward, dq, dkv, Count("attention backward", work(pairs, 5, 8 * rows, rows), dq.done + dkv.done)]


def contrastive_counts(size: int, width: int = VECTOR, itemsize: int = 2, architecture: int = 90) -> list[Count]:
    """Forward and backward of the contrastive statistics of `size` rows and as many columns.

    Needed are one product forward and three backward, for the matrix is made again, since it is never stored. The kernels also
    write and read the log-sums of each tile's rows and columns; backward the matrix's derivative is written once and read by
    two products of the library, whose other loads are not counted.

    Args:
        size, width: N and D.
        itemsize: bytes of an element.
        architecture: whose tiles are counted.
    """
    product = 2.0 * size**2 * width
    vectors, sums = 2 * size * width * itemsize, 4 * size * 4
    dtype = {2: torch.bfloat16, 4: torch.float32}[itemsize]

    def tiled(rows: int, columns: int) -> tuple[int, int]:
        """How many tiles lie below each other and beside each other."""
        return -(-size // rows), -(-size // columns)

    forward, gradient = (contrastive_launch(kernel, architecture, dtype) for kernel in ("forward", "gradient"))
    (below, beside), (height, breadth) = (tiled(launch.rows, launch.columns) for launch in (forward, gradient))
    parts = 2 * 2 * 4 * size * (below + beside)  # over all and over positives, written and read, in float32
    loads = [
        count * (launch.rows + launch.columns) * width * itemsize
        for count, launch in ((below * beside, forward), (height * breadth, gradient))
    ]
    return [
        Count("contrastive forward", Work(product, vectors + sums), Work(product, loads[0] + parts + sums)),
        Count(
            "contrastive backward",
            Work(3 * product, 2 * vectors + 2 * sums),
            Work(3 * product, loads[1] + 3 * size**2 * itemsize + vectors + 2 * sums),
        ),
    ]


def cross_entropy_counts(
    targets: int, vocabulary: int = VOCABULARY, width: int = VECTOR, itemsize: int = 2, chunk: int = CHUNK
) -> list[Count]:
    """The pass that turns logits into errors in place, which reads them twice, and the whole op, forward and backward.

    The op needs three products. Where logits take more than one chunk, they are made and passed over once more backward, and
    each chunk goes over the weight and its gradient.
    """
    logits, weight, hidden = targets * vocabulary * itemsize, vocabulary * width * itemsize, targets * width * itemsize
    product = 2.0 * targets * vocabulary * width
    chunks = -(-targets // max(1, chunk // vocabulary))
    made = 1 if chunks == 1 else 2
    # Logits are written and passed over; the gradients of inputs, weight and bias read the errors. The weight is read by the
    # logits and by the inputs' gradient; its own gradient is written by the first chunk and added to by the others.
    of_logits = (made * (1 + 3) + 3) * logits
    of_weight = (chunks * (made + 1 + 2) - 1) * weight
    return [
        Count("cross-entropy pass", Work(0, 2 * logits), Work(0, 3 * logits)),
        Count(
            "cross-entropy, all",
            Work(3 * product, 2 * weight + 2 * hidden),
            Work((made + 2) * product, of_logits + of_weight + (made + 2) * hidden),
        ),
    ]


class Floor(NamedTuple):
    """The least time of some work, in seconds, and what sets it: `products` or `memory`."""

    seconds: float
    binds: str


class Machine(NamedTuple):
    """A GPU by its maker's figures, without sparsity.

    Attributes:
        name: as it is called here.
        flops: bf16 matrix products, operations a second.
        bandwidth: of its memory, bytes a second.
    """

    name: str
    flops: float
    bandwidth: float

    def rate(self, itemsize: int) -> float:
        """Operations a second: products of float32 operands are made of three in TF32, at half the rate of bf16 each."""
        return self.flops if itemsize == 2 else self.flops / 6

    def floor(self, work: Work, itemsize: int = 2) -> Floor:
        """The least time: products at full rate, or each byte once from memory, whichever takes longer."""
        products = work.flops / self.rate(itemsize)
        memory = work.bytes / self.bandwidth
        return Floor(products, "products") if products > memory else Floor(memory, "memory")


A100 = Machine("A100 SXM 80 GB", 312e12, 2.0e12)
H100 = Machine("H100 SXM", 989e12, 3.35e12)
MACHINES = (A100, H100)


# Shares of the least time that the kernels should reach on each machine. At 64 x 512 they are what Triton's attention kernels
# are known to reach at this length and head width (FlashAttention-3's paper: a third of an H100's peak), backward 0.6 times as
# much; of short rows and of the contrastive products no figure is published: theirs are wishes.
_TARGETS = {
    ("256 x 37..100", "attention forward"): (0.5, 0.5),
    ("256 x 37..100", "attention backward"): (0.3, 0.3),
    ("64 x 512", "attention forward"): (0.5, 0.35),
    ("64 x 512", "attention backward"): (0.3, 0.18),
    ("N = 16,384", "contrastive forward"): (0.5, 0.5),
    ("N = 16,384", "contrastive backward"): (0.5, 0.5),
}


def table() -> str:
    """All counts in Markdown: pairs; operations, bytes and floors of every launch in bf16 and fp32; targets."""
    return "\n\n".join([_pairs_table(), _launch_table(2), _launch_table(4), _targets_table()])


def _pairs_table() -> str:
    lines = [["batch", "visible pairs", "forward, dq", "dkv", "tiles of 128 x 128 a sequence", "padded", "Flex, blocks of 128"]]
    for name, make in BATCHES.items():
        batch = make()
        needed = pairs_needed(batch)
        computed = [
            query_tiles(batch).pairs,
            key_tiles(batch).pairs,
            *(f(batch) for f in (pairs_flash, pairs_padded, pairs_flex)),
        ]
        lines.append([name, f"{needed:,}", *(f"{pairs / needed:.2f}" for pairs in computed)])
    return "Pairs computed over pairs visible, one head:\n\n" + _markdown(lines)


def _launch_table(itemsize: int) -> str:
    lines = [["launch", "of", "GFLOP needed", "done", "MB needed", "loaded and stored", *(f"{m.name}, µs" for m in MACHINES)]]
    for of, count in launches(itemsize):
        floors = (machine.floor(count.needed, itemsize) for machine in MACHINES)
        numbers = (count.needed.flops / 1e9, count.done.flops / 1e9, count.needed.bytes / 1e6, count.done.bytes / 1e6)
        lines.append(
            [count.what, of, *map(_short, numbers), *(f"{_short(floor.seconds * 1e6)} ({floor.binds})" for floor in floors)]
        )
    return f"{'bf16' if itemsize == 2 else 'fp32'}, least time by what is needed:\n\n" + _markdown(lines)


def _targets_table() -> str:
    lines = [["target, never timed", "of", *(f"{m.name}, µs (share of the least)" for m in MACHINES)]]
    for of, count in launches(2):
        if shares := _TARGETS.get((of, count.what)):
            least = [machine.floor(count.needed).seconds * 1e6 for machine in MACHINES]
            cells = (f"{time / share:,.0f} ({share:.0%})" for time, share in zip(least, shares, strict=True))
            lines.append([count.what, of, *cells])
    return "Targets in bf16. **No kernel was ever timed on a GPU.**\n\n" + _markdown(lines)


def launches(itemsize: int) -> list[tuple[str, Count]]:
    """Every launch that is tabled, with what it is of."""
    rows = [(name, count) for name, make in BATCHES.items() for count in attention_counts(make(), itemsize=itemsize)]
    for size in CONTRASTIVE_SIZES:
        rows += [(f"N = {size:,}", count) for count in contrastive_counts(size, itemsize=itemsize)]
    for targets in TARGETS:
        rows += [(f"{targets:,} targets", count) for count in cross_entropy_counts(targets, itemsize=itemsize)]
    return rows


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 or number == 0 else f"{number:.1f}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = (f"| {' | '.join(line)} |" for line in lines)
    rule = "|---|" + "--:|" * (len(lines[0]) - 1)
    return "\n".join([head, rule, *rows])
