"""What ranks send each other in a step.

Counted in a run (`unimo_ds.bench.plan`): ZeRO 1 and 2 all-reduce gradients, which each rank then keeps a part of; a
reduce-scatter would need half of that. ZeRO 3 reduce-scatters them.
"""

from dataclasses import dataclass

from unimo_ds.planning.memory import Size, Zero


@dataclass(frozen=True)
class Traffic:
    """Bytes of a step that are joined or shared out, by collective: what every rank ends, or begins, with.

    Attributes:
        all_reduce, all_gather, reduce_scatter: the payload.
        messages: collectives of a step, about.
    """

    all_reduce: float = 0.0
    all_gather: float = 0.0
    reduce_scatter: float = 0.0
    messages: float = 0.0

    def sent(self, ranks: int) -> float:
        """Bytes that a rank sends, and receives, by rings."""
        return (2 * self.all_reduce + self.all_gather + self.reduce_scatter) * (ranks - 1) / ranks


def traffic_of(size: Size, zero: Zero, itemsize: int, micro_batches: int, layers: int) -> Traffic:
    """Of weights and gradients; CMCL's vectors are small beside them.

    Args:
        size: of the model.
        zero: the DeepSpeed file.
        itemsize: bytes of a weight, and of a gradient on its way.
        micro_batches: of a step.
        layers: of the model; ZeRO-3 gathers one after another.
    """
    whole = float(itemsize * size.parameters)
    buckets = max(1, -(-size.parameters // zero.bucket))
    if zero.stage == 0:
        return Traffic(all_reduce=whole, messages=1)
    if zero.stage == 1:
        return Traffic(all_reduce=whole, all_gather=whole, messages=buckets + 1)
    if zero.stage == 2:
        return Traffic(all_reduce=micro_batches * whole, all_gather=whole, messages=micro_batches * buckets + 1)
    again = whole - itemsize * zero.kept(size.parameters)  # gathered once more for the backward pass
    return Traffic(
        all_gather=micro_batches * (whole + again),
        reduce_scatter=micro_batches * whole,
        messages=micro_batches * (2 * layers + buckets),
    )
