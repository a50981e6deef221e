"""Triton runs in its interpreter in all tests: it must know before it is imported, by us or by any library."""

import os

os.environ["TRITON_INTERPRET"] = "1"
