"""HTML pages that stand alone, from templates beside the code; `pages.css` is what they all look like."""

from pathlib import Path
from typing import Any

from unimo_ds.errors import UnimoError


def open_template(path: Path) -> Any:
    """A jinja2 template; what is put into it is escaped, and a name that it is not given is an error.

    Its `{{ shared_style }}` is the style sheet of all pages, to be followed by the page's own rules.

    Raises:
        UnimoError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise UnimoError("the page needs jinja2; install it with `pip install 'unimo_ds[report]'`") from error
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["shared_style"] = Markup(Path(__file__).with_name("pages.css").read_text(encoding="utf-8"))
    return environment.from_string(path.read_text(encoding="utf-8"))
