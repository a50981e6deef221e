"""Is a store what a reference says it should be, and if not, what differs: `verify(store, golden)`."""

from unimo_ds.golden.report import Limits, Report, verify

__all__ = ["Limits", "Report", "verify"]
