"""A job file as a nested dictionary: read as data (TOML, YAML), and its keys overridden by texts such as "axis=0"."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from dred.errors import JobError

Document = dict[str, Any]

PATHS = frozenset({"path", "paths", "work", "report", "scheduler_file"})  # keys of paths, of whichever table


def _toml(file: IO[bytes]) -> Any:
    return tomllib.load(file)


def _yaml(file: IO[bytes]) -> Any:
    import yaml

    text = file.read()
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):  # a few lines of them can stand for more than any memory holds
                raise ValueError(f"*{event.anchor} in line {event.start_mark.line + 1} is an alias: write it out")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


READERS: Mapping[str, Callable[[IO[bytes]], Any]] = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml}


def load(path: str | os.PathLike[str]) -> Document:
    """What a job file says.

    Raises
    ------
    JobError
        There is none, it is of no known kind, or cannot be read.
    """
    name = os.fspath(path)
    reader = READERS.get(Path(name).suffix.lower())
    if reader is None:
        raise JobError(f"{name} is no job file: its name ends in {', '.join(READERS)}")
    try:
        with open(name, "rb") as file:
            found = reader(file)
    except (OSError, ValueError) as error:
        raise JobError(f"{name} cannot be read: {error}") from error
    except RecursionError as error:
        raise JobError(f"{name} cannot be read: it nests too deeply") from error
    if not isinstance(found, dict):
        raise JobError(f"{name} holds no table of keys, but {type(found).__name__}")
    return found


def override(document: Mapping[str, Any], texts: Sequence[str]) -> Document:
    """A document with other values of some keys.

    Parameters
    ----------
    document : mapping
    texts : sequence of str
        KEY=VALUE each: keys of tables within tables are joined by dots, items of lists are numbers ("reductions.0").
        The value is read as in TOML; what is none there is a text. Paths are relative to the present folder, while
        those of a job file are relative to the file's.

    Raises
    ------
    JobError
        A text without "=", or a key within something that is no table.

    Examples
    --------
    >>> override({"axis": 1, "output": {"path": "a.npy"}}, ["axis=0", "output.path=/tmp/b.npy", "formula=x*y"])
    {'axis': 0, 'output': {'path': '/tmp/b.npy'}, 'formula': 'x*y'}
    """
    result: Document = _copied(document)
    for text in texts:
        name, equals, value = text.partition("=")
        words = name.strip().split(".")
        if not equals or not all(words):
            raise JobError(f"{text!r} is no KEY=VALUE, such as axis=1 or output.path=out.npy")
        inner: Any = result
        for n, word in enumerate(words[:-1]):
            if isinstance(inner, dict):
                inner.setdefault(word, {})
            inner = _item(inner, word, ".".join(words[: n + 1]), text)
        last = words[-1]
        _item(inner, last, name, text, present=False)
        inner[int(last) if isinstance(inner, list) else last] = _value(value.strip(), last in PATHS)
    return result


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copied(each) for name, each in value.items()}
    return [*map(_copied, value)] if isinstance(value, list) else value


def _item(inner: Any, word: str, name: str, text: str, present: bool = True) -> Any:
    """What a table or list holds under a word, checked to be a place that there is."""
    if isinstance(inner, dict):
        return inner[word] if present else None
    if isinstance(inner, list) and word.isdecimal() and int(word) < len(inner):
        return inner[int(word)]
    what = f"a list of {len(inner)}" if isinstance(inner, list) else f"{inner!r}"
    raise JobError(f"{text!r}: there is no {name}, what it would be in is {what}")


def _value(text: str, is_path: bool) -> Any:
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text
    if is_path and not isinstance(value, str | list):  # a folder may be called 2024
        value = text
    return _here(value, is_path)


def _here(value: Any, is_path: bool) -> Any:
    """Paths relative to the present folder as absolute ones, within tables too."""
    if isinstance(value, dict):
        return {name: _here(each, name in PATHS) for name, each in value.items()}
    if isinstance(value, list):
        return [_here(each, is_path) for each in value]
    return os.path.abspath(value) if is_path and isinstance(value, str) and value and "://" not in value else value
