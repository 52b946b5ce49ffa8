"""The check of a machine: it finds what is there, what is missing, and kernels that compute wrong."""

import json
import os
import sys
import tomllib
from collections import OrderedDict
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest

from dred.errors import BackendError
from dred.jobs import check
from dred.jobs.check import CASES, Check, Row
from dred.kernel import cpu, cuda_device, disk, engine, llvm_math, threads
from dred.reductions import REDUCTIONS
from tests.kernel.test_cuda_source import needs_nvrtc
from tests.shim import fake_cupy, shim

ROOT = Path(__file__).parents[2]
_WITHOUT = ("ArgKMin", "Max_ArgMax", "Variance", "Histogram")  # an exponential
NAMED = {case.title: case for case in CASES}
needs_compiler = pytest.mark.skipif(not shim.available(), reason="no C++ compiler")


@pytest.fixture(scope="module")
def found():
    return check.look()


@pytest.fixture
def fresh(monkeypatch):
    """Nothing is compiled yet, and nothing is kept."""
    monkeypatch.setenv("DRED_CACHE_DIR", "off")
    monkeypatch.setattr(cpu, "_kernels", OrderedDict())


def row(rows, name):
    (only,) = [r for r in rows if r.name == name]
    return only


def rows_of(part):
    return list(check.guarded("part", part))


# -- the machine ---------------------------------------------------------------------------------------------------


def test_nothing_is_wrong_here(found):
    assert found.ok, str(found)
    assert [r for r in found.rows if r.state == "wrong"] == []
    assert row(found.rows, "numpy").value == np.__version__
    assert row(found.rows, "threads").value.startswith(f"{threads.thread_count()} (")
    kept = row(found.rows, "cache of kernels").value
    assert kept.startswith(f"{disk.default().folder}, yours alone, ")
    assert row(found.rows, "DRED_CACHE_DIR").value == os.environ["DRED_CACHE_DIR"]
    assert all(row(found.rows, f"cpu: {case.title}").state == "ok" for case in CASES)


def test_it_can_be_read_and_written_as_json(found):
    again = json.loads(json.dumps(found.as_dict()))
    assert again["ok"] is True
    assert again["rows"][0] == {
        "name": "Python", "value": row(found.rows, "Python").value, "state": "ok", "advice": ""}  # fmt: skip
    assert str(found).splitlines()[-1] == "nothing is wrong"


def test_the_text():
    rows = (Row("a", "1"), Row("long", "not there", "missing", "get it"), Row("b", "bad", "wrong"))
    assert str(Check(rows)) == (
        "  a     1\n"
        "- long  not there\n"
        "        -> get it\n"
        "! b     bad\n"
        "\n"
        "WRONG: b"
    )  # fmt: skip
    assert not Check(rows).ok
    assert Check(rows[:2]).ok


def test_packages_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(p for group in project["optional-dependencies"].values() for p in group)]
    least = {p.split("[")[0].split(">=")[0]: p.partition(">=")[2] for p in asked}
    for package in check.PACKAGES:
        assert package.least == least[package.name], package
        if package.install.startswith("'."):
            assert package.install[3:-2] in project["optional-dependencies"]


@pytest.mark.parametrize(
    ("name", "version", "state", "value", "advice"),
    [
        ("dask", "2024.12.1", "wrong", "2024.12.1, older than 2025.1",
         "for dask arrays and clusters: pip install --upgrade 'dask[array]'"),
        ("dask", "2025.1.0rc1", "ok", "2025.1.0rc1", ""),
        ("dask", None, "wrong", "not installed", "for dask arrays and clusters: pip install 'dask[array]'"),
        ("zarr", "2.18.3", "missing", "2.18.3, older than 3",
         "for arrays in zarr: pip install --upgrade '.[zarr]' in dred's folder"),
        ("s3fs", None, "missing", "not installed",
         "for arrays in object stores (s3://): pip install '.[s3]' in dred's folder"),
        ("bokeh", "3.7", "ok", "3.7", ""),
    ],
)  # fmt: skip
def test_packages(name, version, state, value, advice, monkeypatch):
    def found(package):
        assert package == name
        if version is None:
            raise PackageNotFoundError(package)
        return version

    monkeypatch.setattr(check, "version", found)
    (package,) = [p for p in check.PACKAGES if p.name == name]
    assert check._package(package) == Row(name, value, state, advice)


def test_what_a_part_raises_is_a_row():
    def part():
        yield Row("first", "1")
        raise OSError(5, "gone")

    assert rows_of(part) == [Row("first", "1"), Row("part", "OSError: [Errno 5] gone", "wrong")]


def test_nothing_that_a_part_raises_escapes(monkeypatch):
    def part():
        raise ZeroDivisionError("none")
        yield

    monkeypatch.setattr(check, "PARTS", {name: part for name in check.PARTS})
    assert [r.name for r in check.look().rows] == list(check.PARTS)
    assert {r.value for r in check.look().rows} == {"ZeroDivisionError: none"}


@pytest.mark.parametrize("name", check.VARIABLES)
def test_variables(name, monkeypatch):
    for other in check.VARIABLES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("DRED_OTHER", "1")
    bad = {"DRED_CACHE_DIR": "off"}.get(name, "nonsense")
    monkeypatch.setenv(name, bad)
    mine = row(rows_of(check._variables), name)
    assert mine.state == ("ok" if bad == "off" else "wrong")
    assert f"{name} is 'nonsense'" in mine.value or bad == "off"
    assert row(rows_of(check._variables), "DRED_OTHER").value == "1 (dred itself reads no such variable)"


@pytest.mark.parametrize(
    ("environment", "quota", "expected"),
    [
        ({"DRED_NUM_THREADS": "3"}, 1.0, (3, "DRED_NUM_THREADS")),
        ({"OMP_NUM_THREADS": "5,2"}, 1.0, (5, "OMP_NUM_THREADS")),
        ({}, 1.5, (2, "control groups allow the time of 1.5 CPUs")),
        ({}, 7.5, (8, "affinity: 8 of 12 CPUs")),
    ],
)
def test_threads_and_why(environment, quota, expected, monkeypatch):
    for name in ("DRED_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads, "quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert threads.explained() == expected
    assert [r.value for r in rows_of(check._threads)] == [f"{expected[0]} ({expected[1]})"]


def test_a_limit_of_memory(monkeypatch, tmp_path):
    for folder, text in ((tmp_path, "max\n"), (tmp_path / "a", "3000000000\n"), (tmp_path / "a" / "b", "2000000000\n")):
        folder.mkdir(exist_ok=True)
        (folder / "memory.max").write_text(text)
    groups = [tmp_path / "a" / "b", tmp_path / "a", tmp_path, tmp_path / "absent"]
    monkeypatch.setattr(threads, "control_groups", lambda: iter(groups))
    assert rows_of(check._memory)[0].value.endswith(", control groups allow 2 GB")
    monkeypatch.setattr(threads, "control_groups", lambda: iter(groups[2:]))
    assert "control groups" not in rows_of(check._memory)[0].value


def test_the_cache(monkeypatch, tmp_path):
    def cache(folder):
        monkeypatch.setenv("DRED_CACHE_DIR", str(folder))
        (only,) = rows_of(check._cache)
        return only.state, only.value

    assert cache("off") == ("ok", "off: every process compiles anew (DRED_CACHE_DIR, DRED_CACHE_SIZE)")
    good = tmp_path / "good"
    assert cache(good) == ("ok", f"{good}, yours alone, 0 entries, 0 B (most: 268 MB)")
    disk.Store(good).write("key", b"x" * 1000)
    assert cache(good)[1].startswith(f"{good}, yours alone, 1 entries, 1.08 kB")
    assert list(good.iterdir()) == [good / disk.hashlib.sha256(b"key").hexdigest()]  # the probe is gone
    (tmp_path / "file").write_text("")
    assert cache(tmp_path / "file" / "in") == ("missing", f"{tmp_path / 'file' / 'in'} cannot be written to")
    if hasattr(os, "geteuid"):
        good.chmod(0o777)
        assert cache(good) == ("wrong", f"{good} is not used: others may write to it")


# -- kernels -------------------------------------------------------------------------------------------------------


def test_cases_are_of_every_sort():
    assert len(NAMED) == len(CASES) >= 12
    assert {case.axis for case in CASES} == {0, 1}
    assert {case.dtype for case in CASES} == {"float32", "float64"}
    assert {case.reduction for case in CASES} >= {"Sum", "LogSumExp", "SoftMax", "ArgKMin", "Variance"}
    assert any(case.by for case in CASES)
    assert set(check._SUMS) <= set(REDUCTIONS)


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("title", NAMED)
def test_kernels_compute_them_and_not_the_interpreter(title):
    case = NAMED[title]
    M, N = case.sizes
    assert {engine.placed("cpu", sweep.spec, M, N) for sweep in case.routine().sweeps(case.dtype)} == {"cpu"}


@pytest.mark.usefixtures("fresh")
def test_a_kernel_that_computes_wrong_is_found(monkeypatch):
    """2^x is x: whatever has no such exponential stays right."""
    for name in ("exp2", "exp2s", "exp2s_fall", "exp2s_stay", "exp"):
        monkeypatch.setitem(llvm_math.INLINE, name, lambda code, a: a)
    wrong = [r for r in rows_of(check._on_cpu) if r.state == "wrong"]
    right = {title for title, case in NAMED.items() if case.reduction in _WITHOUT or case.name == "functions"}
    assert {*NAMED} - {r.name.removeprefix("cpu: ") for r in wrong} == right
    assert all("not to be trusted" in r.advice for r in wrong)
    assert not Check(tuple(wrong)).ok


@pytest.mark.parametrize("title", NAMED)
def test_a_result_that_is_a_little_off_is_found(title, monkeypatch):
    case, whole = NAMED[title], engine.finalize
    assert check.tested(case, "cpu").state == "ok"

    def spoilt(spec, state, outputs):
        results = whole(spec, state, outputs)
        last = results[-1].reshape(-1)
        place = np.abs(last).argmax()
        last[place] += 1 if last.dtype.kind == "i" else last[place] * 4 * case.tolerance
        return results

    monkeypatch.setattr(engine, "finalize", spoilt)
    monkeypatch.setattr(engine, "prepared", lambda *_: None)  # no call is ready without it
    found = check.tested(case, "cpu")
    assert (found.state, found.name) == ("wrong", f"cpu: {title}")


def test_a_kernel_that_does_not_compile_is_found(monkeypatch):
    def fold(*args, **more):
        raise BackendError("LLVM cannot compile this kernel")

    monkeypatch.setattr(engine, "fold", fold)
    monkeypatch.setattr(engine, "prepared", fold)
    found = rows_of(check._on_cpu)
    assert {(r.state, r.value) for r in found} == {("wrong", "BackendError: LLVM cannot compile this kernel")}
    assert [r.name for r in found] == [f"cpu: {title}" for title in NAMED]


def test_errors():
    a = np.array([[1.0, -4.0]])
    assert check.error([a], [a]) == 0
    assert check.error([a + 0.5], [a]) == 0.125
    assert np.isnan(check.error([a[0]], [a]))
    assert np.isnan(check.error([np.array([[1.0, np.nan]])], [a]))
    assert np.isnan(check.error([np.array([[1.0, np.inf]])], [np.array([[1.0, np.inf]])]))  # no result is infinite
    with pytest.raises(ValueError, match="argument 2 is longer"):
        check.error([a], [a, a])


def test_without_llvmlite(monkeypatch):
    monkeypatch.setattr(cpu, "available", lambda: False)
    assert [r.state for r in rows_of(check._on_cpu)] == ["missing"]
    assert row(rows_of(check._processor), "kernels for the CPU").advice == "pip install llvmlite"


# -- GPUs ----------------------------------------------------------------------------------------------------------


def test_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr(cuda_device, "_driver", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = rows_of(check._gpu)
    assert row(found, "CuPy") == Row("CuPy", "not installed", "missing", check.CUPY)
    assert row(found, "GPU") == Row("GPU", "CuPy is not installed (CUDA_VISIBLE_DEVICES='')", "missing")
    assert rows_of(check._on_gpu) == []


@needs_nvrtc
def test_without_a_device_a_kernel_is_compiled(monkeypatch):
    monkeypatch.setattr(cuda_device, "_driver", lambda: False)
    found = rows_of(check._gpu)
    assert row(found, "GPU").value.startswith("no NVIDIA driver was found")
    assert row(found, "NVRTC").state == "ok"
    compiled = rows_of(check._on_gpu)
    assert [r.name for r in compiled] == ["cuda: a kernel for sm_80", "cuda: a kernel for sm_90"]
    assert all(r.value.endswith("not run: there is no GPU") for r in compiled)
    monkeypatch.setattr(check.cuda, "source", lambda spec: "nonsense")
    (refused,) = rows_of(check._on_gpu)
    assert refused.state == "wrong"
    assert refused.value.startswith("BackendError: NVRTC")


@needs_compiler
def test_with_a_device(monkeypatch):
    with fake_cupy.installed(devices=2, memory=1 << 30):
        found = rows_of(check._gpu)
        assert [(r.name, r.value) for r in found] == [
            ("CuPy", "99.0"),
            ("NVRTC", "99.0"),
            ("driver", "for CUDA 13.0"),
            ("GPU 0", "Fake 90, sm_90, 1.07 GB"),
            ("GPU 1", "Fake 90, sm_90, 1.07 GB"),
        ]
        monkeypatch.setattr(check, "CASES", (NAMED["ArgKMin, K = 10, axis 1, float32"]._replace(sizes=(40, 300)),))
        (computed,) = rows_of(check._on_gpu)
    assert (computed.name, computed.state) == ("cuda: ArgKMin, K = 10, axis 1, float32", "ok")


@pytest.mark.gpu
def test_on_a_gpu(found):
    assert row(found.rows, "GPU 0").value
    assert all(row(found.rows, f"cuda: {case.title}").state == "ok" for case in CASES)
