"""A campaign of faults on a run of pre-training, started by `tools/chaos.py`."""
