"""What candidates cost: the parts of a step add up to the whole."""

from pathlib import Path

import pytest

from tests.life.small_run import write_candidates, write_config, write_inputs
from unimo_ds.bench.candidates import candidates_table, measure_candidates


def test_parts_add_up_to_the_step(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    write_candidates(tmp_path)
    *parts, whole = measure_candidates(write_config(tmp_path, "cost", candidates=True))
    assert all(taken > 0 for _, _, taken in parts)
    assert sum(taken for _, _, taken in parts) == pytest.approx(whole[2])
    table = candidates_table([*parts, whole])
    assert table.endswith("100.0 % |") and len(table.splitlines()) == 2 + len(parts) + 1
