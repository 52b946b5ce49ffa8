"""Results as a zarr array in a folder."""

from __future__ import annotations

from typing import Any

from dred.cluster import files


def begin(part: str, shape: tuple[int, ...], dtype: str, rows: int) -> Any:
    """An empty array of format 3, in chunks of `rows` rows.

    Chunks are stored as they are, and all of them: the same rows give the same files with any version of any codec,
    and no row is lost to a fill value that only equals it (-0.0).
    """
    zarr = files.package("zarr", "zarr", "writing zarr")
    return zarr.create_array(
        part,
        shape=shape,
        dtype=dtype,
        chunks=(max(1, min(rows, shape[0])), *(max(1, size) for size in shape[1:])),
        compressors=None,
        fill_value=0,
        zarr_format=3,
        overwrite=True,
        config={"write_empty_chunks": True},
    )
