"""How a configuration is read: one YAML file, `a.b=c` overrides, unknown keys refused with a suggestion."""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unimo_ds.errors import ConfigError

PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, le=1)]
DropRate = Annotated[float, Field(ge=0, lt=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """A part of the configuration; a key that is not in it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


C = TypeVar("C", bound=Section)


def read_config(kind: type[C], path: Path, overrides: Iterable[str] = ()) -> C:
    """Reads a YAML file as a `kind` and applies `key.path=value` overrides.

    Raises:
        ConfigError: one message that names every wrong key, its value and what is allowed.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start}: {error.reason})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(content).__name__}")
    for override in overrides:
        _apply_override(content, override)
    return validate_config(kind, content, str(path))


def validate_config(kind: type[C], content: dict[str, Any], source: str) -> C:
    """Validates `content` as a `kind`; `source` names it in errors.

    Raises:
        ConfigError: as `read_config`.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        lines = [_explain(problem, kind) for problem in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(lines)) from error


def dump_config(config: Section) -> str:
    """The resolved configuration as YAML, a valid input of what read it."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def _apply_override(content: Any, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"{override!r}: an override has the form key.path=value, for example training.steps=100")
    *parents, last = key.split(".")
    place = content
    for name in parents:
        place = place[_list_index(place, name, key)] if isinstance(place, list) else place.setdefault(name, {})
        if not isinstance(place, dict | list):
            raise ConfigError(f"{key}: {name!r} is a single value, it has no keys below it")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is not valid YAML: {error}") from error
    if isinstance(place, list):
        place[_list_index(place, last, key)] = parsed
    else:
        place[last] = parsed


def _list_index(items: list[Any], name: str, key: str) -> int:
    """The index `name` stands for: a number, or the `name` of a corpus."""
    for index, item in enumerate(items):
        if isinstance(item, dict) and item.get("name") == name:
            return index
    if name.isdigit() and int(name) < len(items):
        return int(name)
    names = [str(item.get("name", index)) for index, item in enumerate(items) if isinstance(item, dict)]
    raise ConfigError(f"{key}: no entry {name!r}; there are {', '.join(names)}")


def _explain(problem: Any, kind: type[BaseModel]) -> str:
    """One pydantic problem in words, with a suggestion for an unknown key."""
    location, siblings = _place(problem["loc"], kind)
    where = ".".join(location)
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], siblings, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed here: {', '.join(siblings)}"
        return f"unknown key {where} = {problem['input']!r}; {hint}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    if not where:
        return str(problem["msg"])  # of the whole run: the message names its keys
    return f"{where} = {problem['input']!r}: {problem['msg']}"


def _place(parts: tuple[int | str, ...], kind: type[BaseModel]) -> tuple[list[str], list[str]]:
    """A problem's place as the user writes it, and the keys that are known there.

    Where a section is one of several kinds, pydantic's place has the kind's name in it, which is no key.
    """
    location: list[str] = []
    sections: list[type[BaseModel]] = [kind]
    for part in parts:
        chosen = [section for section in sections if isinstance(part, str) and part in _tags(section)]
        known = {key: field for section in sections for key, field in section.model_fields.items()}
        if chosen and part not in known:
            sections = chosen
            continue
        location.append(str(part))
        if part in known and len(location) < len(parts):
            inner = list(_sections_in(known[str(part)].annotation))
            sections = inner or sections
    return location, list(dict.fromkeys(key for section in sections for key in section.model_fields))


def _tags(section: type[BaseModel]) -> set[str]:
    """The names by which a section is chosen among several kinds."""
    annotations = [field.annotation for field in section.model_fields.values()]
    return {name for annotation in annotations if get_origin(annotation) is Literal for name in get_args(annotation)}


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections_in(inner)
