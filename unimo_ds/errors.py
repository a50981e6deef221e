"""Errors that are the user's to mend: the message says where, what, what is allowed and what to do."""


class UnimoError(Exception):
    """Base of every error raised on purpose; the command line prints its message without a traceback."""


class ConfigError(UnimoError):
    """A run's configuration is wrong: the message names the key, its value and what is allowed."""


class DataError(UnimoError):
    """An input file is wrong: the message names the file, the line or key, and what was expected."""


class StoreError(DataError):
    """A regions store cannot be opened, or was made by another detector than the one expected."""


class DamagedRecordError(StoreError):
    """One record of a regions store does not match its checksum; the others can still be read."""


class TrainingError(UnimoError):
    """Training cannot go on: the message says at which step, why, and where to look."""


class CheckpointError(UnimoError):
    """A checkpoint is incomplete, damaged, or of another model."""
