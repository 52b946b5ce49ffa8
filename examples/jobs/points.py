"""Random points for the jobs of this folder, as zarr arrays.

python examples/jobs/points.py [--M 2000000] [--N 100000] [--folder demo/points]
"""

import argparse
from pathlib import Path

import numpy as np
import zarr

BLOCK = 250_000  # rows of a chunk


def write(folder: Path, M: int, N: int) -> None:
    """x (M, 3), y (N, 3) and a (N, 1) in [0, 1), float32, the same in every run."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, shape) in enumerate({"x": (M, 3), "y": (N, 3), "a": (N, 1)}.items()):
        rng = np.random.default_rng(seed)
        array = zarr.create_array(
            folder / f"{name}.zarr",
            shape=shape,
            dtype="float32",
            chunks=(min(BLOCK, shape[0]), shape[1]),
            overwrite=True,
        )
        for start in range(0, shape[0], BLOCK):
            stop = min(start + BLOCK, shape[0])
            array[start:stop] = rng.random((stop - start, shape[1]), dtype="float32")
        print(f"{folder / name}.zarr: float32 {shape}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--M", type=int, default=2_000_000, help="rows of x")
    parser.add_argument("--N", type=int, default=100_000, help="rows of y and a")
    parser.add_argument("--folder", type=Path, default=Path("demo/points"))
    args = parser.parse_args()
    write(args.folder, args.M, args.N)


if __name__ == "__main__":
    main()
