"""The generation benchmark: both contenders write as many tokens, and every case has a row."""

import pytest
import torch

from unimo_ds.bench import generation


@pytest.mark.parametrize("writer", [generation.ours, generation.blip])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_write_texts_of_the_length_that_is_asked_for(writer: object, dtype: torch.dtype) -> None:
    assert callable(writer)
    assert [len(text) for text in writer("tiny", dtype, 3, 4)()] == [4, 4, 4]


def test_every_case_is_measured_and_shown() -> None:
    threads = torch.get_num_threads()
    rows = generation.measure_generation(["tiny"], ["fp32", "bf16"], rounds=1, images=2, tokens=3)
    assert torch.get_num_threads() == threads
    assert [(row["size"], row["precision"]) for row in rows] == [("tiny", "fp32"), ("tiny", "bf16")]
    assert all(float(row[key]) > 0 for row in rows for key in ("ours_per_second", "blip_per_second", "times_faster"))  # type: ignore[arg-type]
    shown = generation.table(rows)
    assert shown.count("\n") == 1 + len(rows) and "| tiny | bf16 |" in shown
