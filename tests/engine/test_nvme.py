"""The folder of an optimizer on NVMe belongs to one run at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from unimo_ds.engine.nvme import occupy
from unimo_ds.errors import ConfigError

HOLDER = "import sys; from pathlib import Path; from unimo_ds.engine.nvme import occupy; lock = occupy(Path(sys.argv[1])); "


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "scratch/run"
    script = HOLDER + "print('held', flush=True); sys.stdin.read()"
    words = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=r"training.offload_folder = .*scratch/run: another run is there"):
            occupy(folder)
        other.kill()
    occupy(folder).close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"training.offload_folder = .*file/run: cannot be written to \(Not a directory\)"):
        occupy(tmp_path / "file/run")
