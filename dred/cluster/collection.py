"""All that knows how dask wraps graphs: tasks as an array, and the task that makes a block of an array.

dask has two ways, its high-level graphs (the default) and its array expressions (`array.query-planning`).
"""

# mypy: allow-untyped-calls
# (dask is typed in part)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import Task

Key = tuple[Any, ...]
Layer = dict[Key, Task]


def as_dask_array(
    name: str,
    layers: Mapping[str, Layer],
    arrays: Sequence[da.Array],
    chunks: tuple[tuple[int, ...], ...],
    meta: Any,
) -> da.Array:
    """Layers of tasks over `arrays` as one array, whose blocks layer `name` makes.

    The first part of a key is the name of its layer.
    """
    if getattr(da, "array_expr_enabled", lambda: False)():  # experimental: no public constructor from a graph yet
        from dask.array._array_expr._collection import from_graph

        graph = {key: task for array in arrays for key, task in dict(array.__dask_graph__()).items()}
        for layer in layers.values():
            graph.update(layer)
        result: da.Array = from_graph(graph, meta, chunks, list(layers[name]), name.rsplit("-", 1)[0])
        return result
    base = HighLevelGraph.merge(*(array.__dask_graph__() for array in arrays))
    tasks_of: dict[str, Any] = {**base.layers, **layers}
    reads = {**base.dependencies, **{n: _read_by(n, layer) for n, layer in layers.items()}}
    return da.Array(HighLevelGraph(tasks_of, reads), name, chunks=chunks, meta=meta)


def _read_by(name: str, layer: Layer) -> set[str]:
    """Names of the layers that tasks of a layer read."""
    return {key[0] for task in layer.values() for key in task.dependencies} - {name}


def name_of(array: da.Array) -> str:
    """Name in the keys of an array's blocks; for an array expression that is not `array.name`."""
    return str(next(flatten(array.__dask_keys__()))[0])


def first_task(array: da.Array) -> Any:
    """The task of the first block of an array, as `as_dask_array` was given it; None where there is no such thing.

    Whatever the number of blocks, one is looked at, and nothing is computed.
    """
    expression = getattr(array, "expr", None)
    if expression is None:
        layer = getattr(array.dask.layers.get(array.name), "mapping", {})
        key = (array.name, *(0,) * array.ndim)
    elif type(expression).__name__ == "FromGraph":
        layer, key = expression.operand("layer"), expression.operand("keys")[0]
    else:
        return None
    task = layer.get(key)
    return task if isinstance(task, Task) else None
