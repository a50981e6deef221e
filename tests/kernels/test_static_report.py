"""What the shipped kernels compile to, for three architectures and with no GPU; and that a worse kernel is found out."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from unimo_ds.errors import ConfigError
from unimo_ds.kernels import linear, overview, static_report
from unimo_ds.kernels.static_report import Compiled, Report, problems, read_report, write_report
from unimo_ds.kernels.table import ARCHITECTURES, architecture_for

KERNEL = Compiled(registers=128, spilled=0, shared=32768, tensor_cores={"wgmma": 8})
GOLDEN = Report("3.8.0", {"sm_90 one": KERNEL, "sm_90 two": KERNEL})


def changed(triton: str = "3.8.0", **facts: object) -> Report:
    return Report(triton, {**GOLDEN.kernels, "sm_90 two": replace(KERNEL, **facts)})


def test_an_equal_compile_is_well() -> None:
    assert not list(problems(GOLDEN, GOLDEN))


@pytest.mark.parametrize("triton", ["3.8.0", "4.0.0"])
def test_a_kernel_that_starts_to_spill_is_found_with_any_version(triton: str) -> None:
    assert "sm_90 two: spills 16 bytes" in next(problems(changed(triton, spilled=16), GOLDEN))


@pytest.mark.parametrize("triton", ["3.8.0", "4.0.0"])
def test_a_kernel_that_loses_its_matrix_instructions_is_found_with_any_version(triton: str) -> None:
    found = list(problems(changed(triton, tensor_cores={"mma.sync": 64}), GOLDEN))
    assert found[0] == "sm_90 two: has lost its wgmma instructions (8 in the golden file, 0 now)"
    assert "8 in the golden file, 3 now" in next(problems(changed(triton, tensor_cores={"wgmma": 3}), GOLDEN))


def test_other_numbers_count_with_the_same_version_only() -> None:
    assert "registers=130" in next(problems(changed(registers=130), GOLDEN))
    assert not list(problems(changed("4.0.0", registers=130), GOLDEN))


def test_kernels_come_and_go_by_name_only_with_the_golden_file() -> None:
    fewer = Report("3.8.0", {"sm_90 one": KERNEL})
    assert list(problems(fewer, GOLDEN)) == ["sm_90 two: is in the golden file and was not compiled"]
    assert "is not in the golden file" in next(problems(GOLDEN, fewer))


def test_a_report_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    write_report(GOLDEN, tmp_path / "report.json")
    assert read_report(tmp_path / "report.json") == GOLDEN
    assert GOLDEN.only([90]) == GOLDEN and not GOLDEN.only([80, 100]).kernels


def test_the_kept_report_covers_the_table_and_nothing_in_it_spills() -> None:
    golden = read_report()
    assert golden.kernels and not [name for name, facts in golden.kernels.items() if facts.spilled]
    names = [{name.split(" ", 1)[1] for name in golden.only([architecture]).kernels} for architecture in ARCHITECTURES]
    assert names[0] == names[1] == names[2]
    for name, facts in golden.only([80]).kernels.items():
        assert facts.shared <= 99 * 1024, f"{name}: more shared memory than a consumer GPU has"


def test_products_of_16_bit_types_use_the_tensor_cores_of_their_architecture() -> None:
    kind = {"sm_80": "mma.sync", "sm_90": "wgmma", "sm_100": "tcgen05"}  # a new architecture is named here too
    for name, facts in read_report().kernels.items():
        architecture, kernel = name.split(" ", 1)
        if ("bf16" in name or "fp16" in name) and "error" not in kernel:  # errors of logits are made without a product
            assert kind[architecture] in facts.tensor_cores, name


@pytest.mark.parametrize(
    ("capability", "rows"),
    [((8, 0), 80), ((8, 6), 80), ((8, 9), 80), ((9, 0), 90), ((10, 0), 100), ((10, 3), 100), ((12, 0), 80)],
)
def test_every_device_finds_its_rows(capability: tuple[int, int], rows: int) -> None:
    assert architecture_for(capability) == rows


def test_an_old_device_is_told_what_it_lacks() -> None:
    with pytest.raises(ValueError, match=r"sm_75.*sm_80.*CUDA_VISIBLE_DEVICES="):
        architecture_for((7, 5))


@pytest.mark.usefixtures("processor")
def test_the_overview_says_what_runs_here_and_shows_the_report() -> None:
    text = overview.overview([90])
    assert ("bfloat16 products: made in float32" in text) == linear.BFLOAT16_IMITATED
    assert ("float32 products: oneDNN's" in text) == linear.FLOAT32_BY_ONEDNN
    assert "every op runs its CPU implementation" in text and "attention: sequences of one padded length" in text
    assert "| sm_90 " in text and "| sm_80 " not in text


def test_a_part_of_the_golden_file_is_not_made_with_another_triton(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_report(GOLDEN, tmp_path / "report.json")
    monkeypatch.setattr(static_report, "read_report", lambda: read_report(tmp_path / "report.json"))
    monkeypatch.setattr(static_report, "write_report", lambda report: write_report(report, tmp_path / "report.json"))
    with pytest.raises(ConfigError, match=r"made with Triton 3\.8\.0, this is 4\.0\.0; compile all"):
        overview._keep(Report("4.0.0", {"sm_80 one": KERNEL}), [80])
    overview._keep(Report("3.8.0", {"sm_80 one": KERNEL}), [80])
    assert list(read_report(tmp_path / "report.json").kernels) == ["sm_80 one", "sm_90 one", "sm_90 two"]


def test_an_architecture_without_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="--architecture 75: the table has rows for 80, 90, 100"):
        overview.overview([75])


def test_triton_in_its_interpreter_compiles_nothing_and_says_so() -> None:
    with pytest.raises(ConfigError, match="TRITON_INTERPRET is set"):
        overview.check_compiled([90], 1, False)


@pytest.mark.life
def test_every_kernel_of_an_h100_compiles_to_the_golden_report(tmp_path: Path) -> None:
    """In a process without the interpreter, and with a cache of its own, so that everything is compiled anew.

    The other architectures take as long again each: `make test-kernels` compiles all.
    """
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    variables["TRITON_CACHE_DIR"] = str(tmp_path)
    words = [sys.executable, "-m", "unimo_ds.cli", "kernels", "--compile", "--architecture", "90", "--processes", "2"]
    done = subprocess.run(words, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{len(static_report.read_report().only([90]).kernels)} kernels: nothing spills" in done.stdout


def test_the_document_shows_rows_of_the_kept_report() -> None:
    document = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    shown = [line for line in document.splitlines() if line.startswith("| sm_")]
    assert len(shown) > 20 and set(shown) <= set(static_report.table(read_report().kernels).splitlines())
