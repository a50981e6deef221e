"""The plan's memory and messages beside those of two real ranks, for every ZeRO stage and two sizes of model."""

import pytest

from unimo_ds.bench import plan
from unimo_ds.config import ModelSection

pytestmark = pytest.mark.life
# Wide enough that no matrix is one of the small weights that ZeRO-3 keeps whole, which the plan does not tell apart.
MODELS = {"22 M": ModelSection(hidden_size=320, layers=3, heads=5), "33 M": plan.MODELS["33 M"]}


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("size", MODELS)
def test_memory_is_within_a_tenth_and_messages_within_a_hundredth(size: str, stage: int) -> None:
    beside = plan.measure(MODELS[size], plan.training_at(stage, "fp32"))
    assert abs(beside.off) < 0.1, f"held {beside.peak / 1e6:.0f} MB, planned {beside.memory.total / 1e6:.0f} MB"
    planned, of_cmcl = vars(beside.traffic), 1e5  # its vectors, which no plan counts
    for collective in ("all_reduce", "all_gather", "reduce_scatter"):
        assert beside.counted.get(collective, 0) == pytest.approx(planned[collective], rel=0.01, abs=of_cmcl), collective
