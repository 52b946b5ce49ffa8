"""dred's own section of dask's configuration: the defaults of `dred.yaml`, and checked reading of each value."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dask.config
from dask.utils import parse_bytes, parse_timedelta

from dred.cluster.settings import Settings
from dred.errors import OptionError
from dred.kernel.cuda_device import memory_limit

(_DEFAULTS,) = dask.config.collect_yaml([str(Path(__file__).with_name("dred.yaml"))])
dask.config.update_defaults(_DEFAULTS)
_NONE = object()


def backend() -> str:
    """What `backend="auto"` means: "auto", or the name of a backend."""
    return str(_get("backend"))


def graph_bytes() -> int:
    """Largest NumPy array that may travel inside a task graph."""
    most: int = _read("graph-bytes", _bytes)
    return most


def stream_cache() -> int:
    """Bytes of panels that a process keeps."""
    most: int = _read("stream.cache", _bytes)
    return most


def spool_directory() -> str | None:
    """Where arrays are spooled; None: nothing is said."""
    value = _get("spool-directory")
    return str(value) if value is not None else dask.config.get("temporary-directory", default=None)


def cuda_memory() -> float | None:
    """Memory of a GPU that the folds of a worker may hold: a fraction up to 1, else bytes; None: nothing is said."""
    value = _get("cuda.memory")
    return None if value is None else float(_read("cuda.memory", _memory))


def settings() -> Settings:
    """Everything that plans depend on besides the sizes of a problem."""
    return Settings(
        arity=_read("plan.arity", int),
        shortest_fold=_read("plan.shortest-fold", _seconds),
        longest_fold=_read("plan.longest-fold", _seconds),
        parallelism=_read("plan.parallelism", int),
        y_budget=_read("plan.y-budget", _bytes),
        operations_per_second=_read("plan.operations-per-second", _rates),
        x_budget=_read("plan.x-budget", _bytes),
        step=_read("plan.step", _bytes),
        panel=_read("plan.panel", _bytes),
        wave_rows=_read("plan.wave-rows", _bytes),
        feed=_read("plan.feed", str),
        stream_cache=stream_cache(),
    )


def known(key: str) -> None:
    """Refuse a key of dred's section that there is not.

    Raises
    ------
    OptionError
    """
    if key.startswith("dred.") and dask.config.get(key, default=_NONE, config=_DEFAULTS) is _NONE:
        keys = [*_keys("dred", _DEFAULTS["dred"])]
        close = difflib.get_close_matches(key.replace("_", "-"), keys, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(keys)}"
        raise OptionError(f"{key} is no setting of dred in dask's configuration: {hint}")


def _keys(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for word, inner in value.items():
            yield from _keys(f"{name}.{word}", inner)
    else:
        yield name


def _bytes(value: Any) -> int:
    return int(parse_bytes(value))


def _memory(value: Any) -> float:
    return memory_limit(str(value))


def _seconds(value: Any) -> float:
    return float(parse_timedelta(value))


def _rates(value: Any) -> dict[str, float]:
    return {str(name): float(rate) for name, rate in value.items()}


def _get(key: str) -> Any:
    """A value, or its default: a `with dask.config.set(...)` around this module's import ends without the defaults."""
    key = f"dred.{key}"
    return dask.config.get(key, default=dask.config.get(key, config=_DEFAULTS))


def _read(key: str, convert: Any) -> Any:
    value = _get(key)
    try:
        return convert(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise OptionError(f"dred.{key} is {value!r} in dask's configuration, which cannot be read: {error}") from error
