"""Jobs from files to files: values, continuing, and what is refused."""

import contextlib
import errno
import json
import os
import re

import dask
import numpy as np
import pytest
import zarr

from dred import Genred
from dred.cluster import runs
from dred.errors import BackendError, DredError, InputError, JobError
from dred.jobs import manifest, runner
from dred.jobs.log import Log
from dred.jobs.runner import Code
from tests.cluster.local import threads
from tests.jobs.cases import GAUSSIAN, M, N, document, gaussian_sum, job, points

QUIET = Log(quiet=True)
ALIASES = ["x = Vi(3)", "y = Vj(3)", "b = Vj(1)", "g = Pm(1)"]


@pytest.fixture(scope="module", autouse=True)
def client():
    with threads(1, 2) as client:
        yield client


@pytest.fixture
def arrays(tmp_path):
    return points(tmp_path)


def with_variables(**more):
    return {**document()["variables"], **more}


def folded(monkeypatch):
    """The numbers of the x blocks whose results are put in their place, as they are."""
    found = []
    put = runs.Run.put

    def counted(self, i, rows):
        found.append(i)
        put(self, i, rows)

    monkeypatch.setattr(runs.Run, "put", counted)
    return found


def counted_folds(monkeypatch, most=None):
    """A list that grows with each fold task; where there are more than `most`, they fail."""
    found, arrange = [], runs.tasks._arrange

    def counted(*args):
        found.append(1)
        if most is not None and len(found) > most:
            raise RuntimeError("enough")
        return arrange(*args)

    monkeypatch.setattr(runs.tasks, "_arrange", counted)  # the tasks run in this process
    return found


def ended_after(monkeypatch, blocks, error):
    """Raise an error when so many blocks are in their place."""
    put, count = runs.Run.put, 0

    def ending(self, i, rows):
        nonlocal count
        put(self, i, rows)
        count += 1
        if count == blocks:
            raise error

    monkeypatch.setattr(runs.Run, "put", ending)


def names_of_files(work):
    """Of finished blocks and states."""
    return [n for _, _, names in os.walk(work) for n in names if n.startswith(("rows-", "state-"))]


def left(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith((".", "out")))


# -- values ----------------------------------------------------------------------------------------------------------


def test_a_gaussian_sum(tmp_path, arrays):
    assert runner.run(job(tmp_path), QUIET) == Code.DONE
    out = np.load(tmp_path / "out.npy", allow_pickle=False)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, gaussian_sum(arrays), rtol=2e-6)
    assert left(tmp_path) == ["out.npy", "out.npy.json"]


def test_a_job_has_the_bits_of_the_routine(tmp_path, arrays):
    runner.run(job(tmp_path), QUIET)
    direct = Genred(GAUSSIAN, ALIASES, axis=1)(
        arrays["x"], arrays["y"], arrays["b"], np.array([0.5], np.float32), backend="cpu"
    )
    assert np.load(tmp_path / "out.npy").tobytes() == direct.tobytes()


def stored_otherwise(folder, arrays):
    """The same points, each in another format; in float64, of which float32 is made when they are read."""
    import h5py
    import pyarrow as pa
    from pyarrow import parquet

    x, y, b = (arrays[name].astype(np.float64) for name in "xyb")
    zarr.create_array(folder / "x.zarr", data=x, chunks=(700, 3))
    parquet.write_table(pa.table({f"c{k}": y[:, k] for k in range(3)}), folder / "y.parquet", row_group_size=77)
    np.savetxt(folder / "b.csv", b, header="b", comments="", fmt="%.17g")
    with h5py.File(folder / "g.h5", "w") as file:
        file["inside/g"] = np.array([0.5])
    return {
        "x": {"type": "Vi(3)", "path": "x.zarr"},
        "y": {"type": "Vj(3)", "path": "y.parquet", "columns": ["c0", "c1", "c2"]},
        "b": {"type": "Vj(1)", "path": "b.csv", "columns": ["b"]},
        "g": {"type": "Pm(1)", "path": "g.h5/inside/g"},
    }


@pytest.mark.parametrize("ending", ["npy", "zarr", "parquet"])
def test_any_format_in_any_format_out_the_same_bits(tmp_path, arrays, ending):
    assert runner.run(job(tmp_path), QUIET) == Code.DONE
    variables = stored_otherwise(tmp_path, arrays)
    other = job(tmp_path, variables=variables, dtype="float32", output={"path": f"other.{ending}"})
    assert runner.run(other, QUIET) == Code.DONE
    if ending == "zarr":
        found = zarr.open_array(tmp_path / "other.zarr", mode="r")[:]
    elif ending == "npy":
        found = np.load(tmp_path / "other.npy")
    else:
        from pyarrow import parquet

        found = parquet.read_table(tmp_path / "other.parquet")["c0"].to_numpy()[:, None]
    assert found.tobytes() == np.load(tmp_path / "out.npy").tobytes()


def test_rows_of_one_number_need_no_second_dimension(tmp_path, arrays):
    runner.run(job(tmp_path), QUIET)
    np.save(tmp_path / "flat.npy", arrays["b"].reshape(-1))
    variables = with_variables(b={"type": "Vj(1)", "path": "flat.npy"}, g={"type": "Pm(1)", "value": [0.5]})
    runner.run(job(tmp_path, variables=variables, output={"path": "flat-out.npy"}), QUIET)
    assert np.load(tmp_path / "flat-out.npy").tobytes() == np.load(tmp_path / "out.npy").tobytes()


def test_points_in_the_job_file(tmp_path, arrays):
    y = arrays["y"][:4]
    variables = with_variables(
        y={"type": "Vj(3)", "value": y.tolist()}, b={"type": "Vj(1)", "value": [1.0, 2.0, 3.0, 4.0]}
    )
    assert runner.run(job(tmp_path, variables=variables), QUIET) == Code.DONE
    expected = gaussian_sum({**arrays, "y": y, "b": np.arange(1.0, 5.0)[:, None]})
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=2e-6)


def test_pairs_and_several_reductions(tmp_path, arrays):
    several = [
        {"formula": "SqDist(x,y)", "reduction": "KMin_ArgKMin", "opt_arg": 4},
        {"formula": "-g*SqDist(x,y)", "reduction": "LogSumExp", "formula2": "b"},
    ]
    given = {k: v for k, v in document().items() if k not in ("formula", "reduction")}
    paths = ["d.npy", "n.zarr", "l.npy"]
    done = runner.Job.of({**given, "reductions": several, "output": {"paths": paths}}, tmp_path)
    assert runner.run(done, QUIET) == Code.DONE
    x, y = arrays["x"].astype(float), arrays["y"].astype(float)
    distances = ((x[:, None] - y) ** 2).sum(-1)
    np.testing.assert_allclose(np.load(tmp_path / "d.npy"), np.sort(distances, axis=1)[:, :4], rtol=1e-5, atol=1e-9)
    neighbours = zarr.open_array(tmp_path / "n.zarr", mode="r")[:]
    assert neighbours.dtype == np.int64
    assert (neighbours == np.argsort(distances, axis=1)[:, :4]).mean() > 0.999
    np.testing.assert_allclose(np.load(tmp_path / "l.npy"), np.log(gaussian_sum(arrays)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variable", ["x", "y", "g"])
@pytest.mark.parametrize("reduction", ["Sum", "LogSumExp"])
def test_gradients_of_every_kind_of_variable(tmp_path, variable, reduction):
    arrays = points(tmp_path, "float64", M=1500, N=60)
    formula = GAUSSIAN if reduction == "Sum" else "-g*SqDist(x,y)"
    variables = {k: v for k, v in with_variables().items() if k != "b" or reduction == "Sum"}
    given = {"formula": formula, "reduction": reduction, "variables": variables}
    done = job(tmp_path, gradient=variable, cotangents=[{"path": "e.npy"}], **given)
    assert runner.run(done, QUIET) == Code.DONE
    aliases = [alias for alias in ALIASES if alias[0] != "b" or reduction == "Sum"]
    routine = Genred(formula, aliases, reduction, axis=1).grad(variable)
    args = [arrays[name] for name in ("xyb" if reduction == "Sum" else "xy")]
    expected = routine(*args, np.array([0.5]), arrays["e"], backend="cpu")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-12)


def test_what_is_written_beside_the_results(tmp_path, arrays):
    runner.run(job(tmp_path, verify=7), QUIET)
    record = json.loads((tmp_path / "out.npy.json").read_text())
    identity = record["identity"]
    assert identity["formula"] == f"Sum, {GAUSSIAN}; axis 1"
    assert identity["inputs"]["variables.x"].startswith(f"{tmp_path}/x.npy (float32 ({M}, 3)), fingerprint ")
    assert identity["inputs"]["variables.g"].startswith("variables.g (in the job), fingerprint ")
    assert record["versions"]["numpy"] == np.__version__
    assert record["pairs"] == M * N
    assert record["plan"][1] == "pairs         2,500 x 300 = 7.5e+05, each of 28 operations"
    assert record["verified"][0].startswith("Sum: 7 rows in float64, relative error ")


# -- continuing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [KeyboardInterrupt(), runner.Terminated(), OSError("the disk is gone")])
@pytest.mark.parametrize("path", ["out.npy", "out.zarr", "out.parquet"])
def test_a_job_that_ended_goes_on(tmp_path, arrays, monkeypatch, capsys, end, path):
    quiet = tmp_path / "quiet"
    runner.run(job(tmp_path, output={"path": str(quiet) + path[3:]}), QUIET)
    this = job(tmp_path, output={"path": path})
    with monkeypatch.context() as patch:
        ended_after(patch, 2, end)
        code = runner.run(this, Log())
    expected = {KeyboardInterrupt: Code.INTERRUPTED, runner.Terminated: Code.ENDED, OSError: Code.FAILED}
    assert code == expected[type(end)]
    said = capsys.readouterr().err
    assert f"files of finished blocks are kept in {tmp_path}/.{path}.dred: run it again, and it goes on from" in said
    assert left(tmp_path) == [f".{path}.dred"]  # nothing under the name of the results, nothing else left
    finished = [name for _, _, names in os.walk(this.work) for name in names if name.startswith("rows-")]
    assert len(finished) >= 2
    assert runner.run(this, Log()) == Code.DONE
    said = capsys.readouterr().err
    count = re.search(rf"dred: going on in {tmp_path}/\.{path}\.dred: (\d) files of finished blocks\n", said)
    assert int(count[1]) >= 2
    assert same(str(quiet) + path[3:], tmp_path / path)
    assert not os.path.exists(this.work)


def same(a, b):
    """Whether files, or folders of files, are byte for byte the same."""
    if not os.path.isdir(a):
        with open(a, "rb") as one, open(b, "rb") as other:
            return one.read() == other.read()
    found = [sorted(os.path.relpath(os.path.join(f, name), top) for f, _, names in os.walk(top) for name in names)
             for top in (a, b)]  # fmt: skip
    return found[0] == found[1] and all(same(os.path.join(a, name), os.path.join(b, name)) for name in found[0])


def test_only_what_is_missing_is_computed(tmp_path, arrays, monkeypatch):
    with monkeypatch.context() as patch:
        whole = counted_folds(patch)
        runner.run(job(tmp_path, output={"path": "whole.npy"}), QUIET)
    assert len(whole) == 3  # blocks of 1024 rows
    with monkeypatch.context() as patch:
        ended_after(patch, 1, KeyboardInterrupt())
        assert runner.run(job(tmp_path), QUIET) == Code.INTERRUPTED
    kept = {n[-10:-4] if n.startswith("rows-") else n[6:12] for n in names_of_files(job(tmp_path).work)}
    again = counted_folds(monkeypatch)
    assert runner.run(job(tmp_path), QUIET) == Code.DONE
    assert len(again) == len(whole) - len(kept) < len(whole)
    assert same(tmp_path / "whole.npy", tmp_path / "out.npy")


def test_a_job_that_is_done_is_not_done_again(tmp_path, arrays, monkeypatch, capsys):
    runner.run(job(tmp_path), QUIET)
    found = folded(monkeypatch)
    assert runner.run(job(tmp_path), Log()) == Code.DONE
    assert f"{tmp_path}/out.npy is done, of equal inputs: nothing to do" in capsys.readouterr().err
    assert found == []
    again = job(tmp_path, output={"path": "out.npy", "overwrite": True})
    assert runner.run(again, QUIET) == Code.DONE
    assert sorted(found) == [0, 1, 2]


def changed_points(folder):
    np.save(folder / "y.npy", np.load(folder / "y.npy")[::-1])


CHANGES = {
    "points": (changed_points, {}, r"variables\.y \(was .*/y\.npy \(float32 \(300, 3\)\), fingerprint \w+, is .*\)"),
    "formula": (
        None,
        {"formula": "Exp(-2*g*SqDist(x,y))*b"},
        r"its formula \(was Sum, .*, is Sum, Exp\(-2\*g.*\)",
    ),
    "parameter": (
        None,
        {"variables": with_variables(g={"type": "Pm(1)", "value": 0.25})},
        r"variables\.g \(was variables\.g \(in the job\), fingerprint \w+, is variables\.g .*\)",
    ),
    "plan": (None, {"dask": {"dred.plan.arity": 3}}, "its plan"),
    "accumulation": (None, {"options": {"sum_scheme": "direct_sum"}}, r"sum_scheme \(was None, is direct_sum\)"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_job_that_changed_does_not_go_on(tmp_path, arrays, monkeypatch, change, moment):
    act, more, said = CHANGES[change]
    with monkeypatch.context() as patch:
        if moment == "before":
            ended_after(patch, 1, KeyboardInterrupt())
        runner.run(job(tmp_path), QUIET)
    before = sorted(left(tmp_path))
    if act is not None:
        act(tmp_path)
    where = r"\.out\.npy\.dred holds finished blocks" if moment == "before" else r"out\.npy is there,"
    with pytest.raises(JobError, match=f"{where} of a job that differs in .*{said}.*: (delete it, or )?name another"):
        runner.run(job(tmp_path, **more), QUIET)
    assert sorted(left(tmp_path)) == before


def test_another_process_that_runs_the_job_is_left_alone(tmp_path, arrays):
    with manifest.alone(job(tmp_path).work), pytest.raises(JobError, match="another process runs this job: it holds"):
        runner.run(job(tmp_path), QUIET)


def test_foreign_files_are_left_alone(tmp_path, arrays):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(JobError, match=r"mine holds other files \(thesis\.tex\): name another folder by work=\.\.\."):
        runner.run(job(tmp_path, work="mine"), QUIET)
    np.save(tmp_path / "out.npy", np.zeros(3))
    with pytest.raises(JobError, match=r"out\.npy is there: name another path, or say output\.overwrite=true"):
        runner.run(job(tmp_path), QUIET)
    assert np.load(tmp_path / "out.npy").shape == (3,)
    assert runner.run(job(tmp_path, output={"path": "out.npy", "overwrite": True}), QUIET) == Code.DONE
    assert np.load(tmp_path / "out.npy").shape == (M, 1)


def test_a_spoilt_block_is_computed_again(tmp_path, arrays, monkeypatch):
    runner.run(job(tmp_path, output={"path": "whole.npy"}), QUIET)
    with monkeypatch.context() as patch:
        ended_after(patch, 2, KeyboardInterrupt())
        runner.run(job(tmp_path), QUIET)
    (first, *_) = sorted(
        os.path.join(f, n) for f, _, names in os.walk(job(tmp_path).work) for n in names if n.startswith("rows-")
    )
    with open(first, "r+b") as file:
        file.seek(-40, os.SEEK_END)
        file.write(b"\xff\xff")
    assert runner.run(job(tmp_path), QUIET) == Code.DONE
    assert same(tmp_path / "whole.npy", tmp_path / "out.npy")


def test_few_rows_keep_the_states_of_lanes(tmp_path, monkeypatch):
    arrays = points(tmp_path, M=10, N=4000)
    slow = {
        "dred.plan.operations-per-second": {"cpu": 1e4},
        "dred.plan.parallelism": 8,
        "dred.plan.longest-fold": "1 h",
    }
    runner.run(job(tmp_path, dask=slow, output={"path": "whole.npy"}), QUIET)
    with monkeypatch.context() as patch:
        counted_folds(patch, most=5)
        assert runner.run(job(tmp_path, dask=slow), QUIET) == Code.FAILED
    states = [n for _, _, names in os.walk(job(tmp_path).work) for n in names if n.startswith("state-")]
    assert 1 <= len(states) <= 5
    again, load, found = counted_folds(monkeypatch), runs.load, {}

    def loading(path):
        arrays = load(path)
        if "state-" in os.path.basename(path):
            found[path] = arrays is not None
        return arrays

    monkeypatch.setattr(runs, "load", loading)
    assert runner.run(job(tmp_path, dask=slow), QUIET) == Code.DONE
    stored = sum(found.values())
    assert len(states) <= stored <= 5  # what was at work when the job failed may have been stored since
    assert (len(found), len(again)) == (8, 8 - stored)
    assert same(tmp_path / "whole.npy", tmp_path / "out.npy")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), gaussian_sum(arrays), rtol=2e-6)


# -- what is wrong ---------------------------------------------------------------------------------------------------


def test_nan_is_refused_where_the_job_says_so(tmp_path, arrays, capsys):
    arrays["x"][[7, 1900], [1, 2]] = np.nan
    np.save(tmp_path / "x.npy", arrays["x"])
    assert runner.run(job(tmp_path, nan="error"), Log()) == Code.FAILED
    assert "variables.x has 2 NaN, the first in row 7: leave these rows out, or let" in capsys.readouterr().err
    arrays["x"][7] = 0  # the other one is in another block
    np.save(tmp_path / "x.npy", arrays["x"])
    assert runner.run(job(tmp_path, nan="error"), Log()) == Code.FAILED
    assert "variables.x has 1 NaN, the first in row 1900: leave these rows out, or let" in capsys.readouterr().err
    assert runner.run(job(tmp_path), QUIET) == Code.DONE
    assert np.flatnonzero(np.isnan(np.load(tmp_path / "out.npy"))).tolist() == [1900]


def test_a_truncated_chunk_of_zarr_fails_and_keeps_what_is_finished(tmp_path, arrays, capsys):
    array = zarr.create_array(tmp_path / "x.zarr", shape=(M, 3), dtype="float32", chunks=(100, 3))
    array[:] = arrays["x"]
    variables = with_variables(x={"type": "Vi(3)", "path": "x.zarr", "chunks": 100})
    chunk = tmp_path / "x.zarr" / "c" / "20" / "0"
    whole = chunk.read_bytes()
    status = os.stat(chunk)
    chunk.write_bytes(whole[:20])
    os.utime(chunk, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert runner.run(job(tmp_path, variables=variables), Log()) == Code.FAILED
    said = capsys.readouterr().err
    assert f"{tmp_path}/x.zarr (float32 (2500, 3)) cannot be read" in said
    assert "are kept in" in said
    assert not (tmp_path / "out.npy").exists()


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"variables": with_variables(x={"type": "Vi(3)", "path": "none.npy"})}, InputError, "none.npy is not there"),
        ({"variables": with_variables(x={"type": "Vi(2)", "path": "x.npy"})}, DredError, "dimension"),
        ({"variables": with_variables(x={"type": "Vi(3)", "path": "y.npy"})}, None, ""),
        ({"output": {"path": "nowhere/out.npy"}}, DredError, "nowhere"),
        ({"output": {"path": "out.dat"}}, InputError, "out.dat"),
        (
            {"output": {"paths": ["out1.npy", "out2.npy"]}},
            JobError,
            "the result is 1 arrays, and the job names 2 outputs",
        ),
        ({"gradient": "x"}, JobError, "the gradient takes 1 cotangents, got 0"),
        ({"backend": "cuda"}, BackendError, "GPU"),
        ({"formula": "Exp(x+z)*b*g"}, DredError, "unknown name 'z'"),
        ({"variables": with_variables(g={"type": "Pm(1)", "value": [1, 2]})}, DredError, "g"),
        (
            {"variables": with_variables(g={"type": "Pm(1)", "value": ["a"]})},
            InputError,
            "value of variables.g holds no",
        ),
    ],
)
def test_refused_before_anything_is_computed(tmp_path, arrays, more, error, said):
    with pytest.raises(error) if error else contextlib.nullcontext() as caught:
        assert runner.run(job(tmp_path, **more), QUIET) == Code.DONE
    if error:
        assert said in str(caught.value)
        assert [name for name in left(tmp_path) if name.startswith("out")] == []


def test_types_that_differ_need_a_word(tmp_path, arrays):
    np.save(tmp_path / "y.npy", arrays["y"].astype(np.float64))
    with pytest.raises(InputError, match=r"of several types \(variables\.x float32, variables\.y float64, .*say dtype"):
        runner.run(job(tmp_path), QUIET)
    assert runner.run(job(tmp_path, dtype="float32"), QUIET) == Code.DONE


def test_a_plan_that_does_not_fit_is_refused(tmp_path, arrays, monkeypatch):
    from dred.cluster import explain

    monkeypatch.setattr(explain, "USABLE", 1e-9)
    with pytest.raises(DredError, match=r"more than 0% of its memory limit of .*: give workers"):
        runner.run(job(tmp_path), QUIET)


def test_settings_of_dask_hold_for_the_job_alone(tmp_path, arrays):
    before = dask.config.get("dred.plan.arity")
    record = {}
    for arity in (2, 3):
        path = f"out{arity}.npy"
        runner.run(job(tmp_path, dask={"dred.plan.arity": arity}, output={"path": path}), QUIET)
        record[arity] = json.loads((tmp_path / f"{path}.json").read_text())
    assert record[2]["identity"]["plan"] != record[3]["identity"]["plan"]
    assert dask.config.get("dred.plan.arity") == before


def test_the_results_of_rows_that_nobody_can_read_back(tmp_path, arrays, monkeypatch, capsys):
    monkeypatch.setattr(runs, "load", lambda path: None)
    assert runner.run(job(tmp_path), Log()) == Code.FAILED
    assert "name a folder that all workers and this process share" in capsys.readouterr().err


@pytest.mark.parametrize("full", ["work", "output"])
def test_a_full_disk_is_said_and_what_is_finished_is_kept(tmp_path, arrays, monkeypatch, capsys, full):
    runner.run(job(tmp_path, output={"path": "whole.npy"}), QUIET)
    sync, count = os.fsync, 0

    def failing(file):
        nonlocal count
        name = os.readlink(f"/proc/self/fd/{file}")
        count += name.startswith(f"{tmp_path}/") and "rows-" in name  # the job before may still be writing its own
        if ".part" in name if full == "output" else count > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        assert runner.run(job(tmp_path), Log()) == Code.FAILED
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert f"are kept in {tmp_path}/.out.npy.dred: run it again" in said
    assert left(tmp_path) == [".out.npy.dred"]
    assert runner.run(job(tmp_path), QUIET) == Code.DONE
    assert same(tmp_path / "whole.npy", tmp_path / "out.npy")
