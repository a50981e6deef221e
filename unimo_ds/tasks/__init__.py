"""The tasks of the paper: one protocol (`task.py`) and one file a family."""
