"""Results as a parquet file, from an npy file: row groups come one after another, rows in any order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module

import numpy as np

from dred.cluster import files


def end(part: str, shape: tuple[int, ...], rows: int, columns: Sequence[str]) -> str:
    """Write the rows of an npy file into a parquet file beside it, in row groups of `rows` rows; returns its path.

    Neither packed nor with a dictionary: the same rows give the same bytes.
    """
    parquet, arrow = files.package("pyarrow.parquet", "parquet", "writing parquet"), import_module("pyarrow")
    stored = np.load(part, mmap_mode="r" if shape[0] else None, allow_pickle=False)  # nothing cannot be mapped
    table = stored.reshape(len(stored), len(columns))
    schema = arrow.schema([(name, arrow.from_numpy_dtype(stored.dtype)) for name in columns])
    whole = f"{part}.parquet"
    with open(whole, "wb") as file:
        with parquet.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
            for start in range(0, len(table), max(1, rows)):
                block = table[start : start + max(1, rows)]
                arrays = [arrow.array(np.ascontiguousarray(block[:, k])) for k in range(len(columns))]
                writer.write_table(arrow.Table.from_arrays(arrays, schema=schema), row_group_size=len(block))
        file.flush()
        os.fsync(file.fileno())
    return whole
