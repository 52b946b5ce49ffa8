"""The job files of examples/, at small sizes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from pyarrow import parquet

from dred.jobs.cli import main
from tests.cluster.local import threads

JOBS = Path(__file__).parents[2] / "examples" / "jobs"
M, N = 3000, 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    command = [sys.executable, JOBS / "points.py", "--M", str(M), "--N", str(N), "--folder", folder]
    subprocess.run(command, check=True, capture_output=True)
    with threads(1, 2):
        yield folder


def run(folder, job, *keys):
    done = CliRunner().invoke(main, ["run", str(JOBS / job), "-q", *keys], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def of(folder, names):
    return [f"variables.{name}.path={folder / name}.zarr" for name in names]


def read(path):
    return zarr.open_array(path, mode="r")[:].astype(float)


def test_points_are_the_same_in_every_run(folder):
    assert read(folder / "x.zarr")[0] == pytest.approx(np.random.default_rng(0).random(3, dtype="float32"))
    assert read(folder / "x.zarr").shape == (M, 3)


def test_a_sum_and_its_gradient(folder):
    run(folder, "sum.toml", *of(folder, "xya"), f"output.path={folder / 'sum.zarr'}")
    x, y, a = (read(folder / f"{name}.zarr") for name in "xya")
    terms = (0.25 - a) ** 2 * np.exp(y)
    np.testing.assert_allclose(read(folder / "sum.zarr"), np.exp(x) * terms.sum(axis=0), rtol=2e-6)
    cotangent = f"cotangents.0.path={folder / 'sum.zarr'}"
    run(folder, "gradient.toml", *of(folder, "xya"), cotangent, f"output.path={folder / 'gradient.zarr'}")
    expected = terms * (np.exp(x) * read(folder / "sum.zarr")).sum(axis=0)
    np.testing.assert_allclose(read(folder / "gradient.zarr"), expected, rtol=2e-6)


def test_neighbours_and_a_density(folder):
    paths = [f"{folder / name}" for name in ("distances.parquet", "neighbours.npy", "density.npy")]
    run(folder, "neighbours.yaml", *of(folder, "xy"), f"output.paths={paths}")
    x, y = read(folder / "x.zarr"), read(folder / "y.zarr")
    distances = ((x[:, None] - y) ** 2).sum(-1)
    nearest = np.load(paths[1])
    np.testing.assert_allclose(np.take_along_axis(distances, nearest, 1), np.sort(distances, axis=1)[:, :5], rtol=1e-4)
    table = parquet.read_table(paths[0])
    found = np.stack([table[f"c{k}"].to_numpy() for k in range(5)], axis=1)
    np.testing.assert_allclose(found, np.sort(distances, axis=1)[:, :5], rtol=1e-4)
    np.testing.assert_allclose(np.load(paths[2])[:, 0], np.log(np.exp(-20 * distances).sum(axis=1)), rtol=1e-5)


@pytest.mark.slow
def test_a_job_that_survives(tmp_path):
    sizes = ["--M", "70000", "--N", "8000", "--folder", str(tmp_path)]
    done = subprocess.run([sys.executable, JOBS / "survive.py", *sizes], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "70,000 x 8,000 pairs: the same bytes, of which " in done.stdout
