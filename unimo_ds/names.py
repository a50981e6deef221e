"""Lists of names in text files, as Visual Genome's detectors come with them."""

from pathlib import Path

from unimo_ds.errors import ConfigError


def read_names(path: Path) -> tuple[str, ...]:
    """Names, one a line; of synonyms with commas between them the first (as Visual Genome's lists have them).

    Raises:
        ConfigError: the file cannot be read or a line is empty.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a list of names ({error})") from error
    names = [line.split(",")[0].strip() for line in lines]
    if "" in names:
        raise ConfigError(f"{path}, line {names.index('') + 1}: empty; expected a name on every line")
    return tuple(names)
