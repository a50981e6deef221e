"""Is a store what a reference says it should be, and if not, what differs: `verify(store, golden)`."""

from unimo_ds.golden.report import Limits, Report, check_reference, verify

__all__ = ["Limits", "Report", "check_reference", "verify"]
