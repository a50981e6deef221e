"""Looks, before a run starts, at what would stop it: ranks, code, configuration, data, clocks, disks, links, installation.

`unimo-ds doctor [CONFIG.yaml [key.path=value ...]]`, or `python -m unimo_ds.doctor` by any launcher.
"""

from unimo_ds.doctor.command import main

__all__ = ["main"]
