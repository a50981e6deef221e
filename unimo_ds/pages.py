"""HTML pages that stand alone, from templates beside the code."""

from pathlib import Path
from typing import Any

from unimo_ds.errors import UnimoError


def open_template(path: Path) -> Any:
    """A jinja2 template; what is put into it is escaped, and a name that it is not given is an error.

    Raises:
        UnimoError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise UnimoError("the page needs jinja2; install it with `pip install 'unimo_ds[report]'`") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(path.read_text(encoding="utf-8"))
