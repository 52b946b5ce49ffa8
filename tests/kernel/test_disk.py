"""Kernels kept on disk: whole, private, bounded, and never anything but what was asked for."""

import os
import shutil
import stat
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dred.errors import BackendError, OptionError
from dred.formula.language import formula
from dred.formula.ops import OPS
from dred.kernel import cpu, cuda, cuda_cache, disk, machine, sources
from dred.kernel.disk import Store
from dred.kernel.output import empty
from dred.kernel.primitives import PRIMITIVES
from dred.kernel.spec import KernelSpec
from dred.reductions import MONOIDS
from tests.kernel.test_cuda_source import needs_nvrtc

POSIX = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners of files")


def entries(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "kept", 1 << 20)


# -- the store -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(256)) * 300])
def test_what_is_written_is_read(store, payload):
    assert store.read("key") is None
    assert not store.folder.exists()  # nothing is made for a look
    store.write("key", payload)
    assert store.read("key") == payload
    assert Store(store.folder).read("key") == payload  # as another process does
    assert store.read("another") is None
    store.write("key", b"again")
    assert store.read("key") == b"again"
    assert len(entries(store.folder)) == 1
    store.remove("key")
    store.remove("key")
    assert store.read("key") is None


@POSIX
def test_everything_is_private(store, tmp_path):
    old = os.umask(0)
    try:
        store.write("key", b"payload")
    finally:
        os.umask(old)
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in store.folder.iterdir()] == [0o600]


@POSIX
@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_folder_that_others_may_write_to_is_not_used(store, mode):
    store.write("key", b"payload")
    store.folder.chmod(mode)
    assert store.read("key") is None
    store.write("other", b"payload")
    assert len(entries(store.folder)) == 1
    store.folder.chmod(0o755)
    assert store.read("key") == b"payload"


@POSIX
def test_an_entry_that_others_may_write_to_is_removed(store):
    store.write("key", b"payload")
    (path,) = store.folder.iterdir()
    path.chmod(0o622)
    assert store.read("key") is None
    assert entries(store.folder) == []


@POSIX
def test_a_folder_of_another_user_is_not_used(store, monkeypatch):
    store.write("key", b"payload")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert store.read("key") is None
    store.write("other", b"payload")
    assert len(entries(store.folder)) == 1


@POSIX
def test_a_link_to_a_folder_is_followed_if_it_is_ours(store, tmp_path, monkeypatch):
    store.write("key", b"payload")
    link = tmp_path / "link"
    link.symlink_to(store.folder)
    assert Store(link).read("key") == b"payload"
    lstat = Path.lstat

    def of_another(path):
        status = lstat(path)
        return os.stat_result((*status[:4], status.st_uid + 1, *status[5:]))

    monkeypatch.setattr(Path, "lstat", of_another)
    assert Store(link).read("key") is None


def damage(content):
    """Contents that an entry must not have, by what was done to it."""
    yield "empty", b""
    yield "cut in the head", content[:20]
    yield "cut", content[:-1]
    yield "longer", content + b"\0"
    yield "another format", content[:8] + b"\x63" + content[9:]
    for place in (0, 12, 20, 60, -1):
        wrong = bytearray(content)
        wrong[place] ^= 1
        yield f"byte {place}", bytes(wrong)
    yield "something else", b"\x7fELF" + content[4:]


@pytest.mark.parametrize("what", [what for what, _ in damage(bytes(200))])
def test_an_entry_that_is_damaged_is_removed(store, what):
    store.write("key", b"payload of some length")
    (path,) = store.folder.iterdir()
    path.write_bytes(dict(damage(path.read_bytes()))[what])
    assert store.read("key") is None
    assert entries(store.folder) == []
    store.write("key", b"new")
    assert store.read("key") == b"new"


def test_the_entry_of_another_key_is_removed(store):
    store.write("one", b"payload")
    (first,) = store.folder.iterdir()
    store.write("two", b"payload of two")
    (second,) = set(store.folder.iterdir()) - {first}
    second.replace(first)
    assert store.read("one") is None
    assert entries(store.folder) == []


def test_an_entry_appears_at_once_and_whole(store):
    """Readers of a name see nothing, or a whole entry, while it is written again and again."""
    payloads = [bytes([n]) * 100_000 for n in range(8)]
    with ThreadPoolExecutor(8) as pool:
        writes = [pool.submit(store.write, "key", payload) for payload in payloads * 5]
        seen = {store.read("key") for _ in range(200)}
        for write in writes:
            write.result()
    assert seen <= {None, *payloads}
    assert store.read("key") in payloads
    assert len(entries(store.folder)) == 1


def test_a_writer_that_fails_leaves_nothing(store, monkeypatch):
    store.write("key", b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", full)
        store.write("key", b"new")
        patch.setattr(os, "open", full)
        store.write("key", b"new")
    assert store.read("key") == b"old"
    assert len(entries(store.folder)) == 1

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.write("key", b"new")
    assert len(entries(store.folder)) == 1


def test_a_folder_that_cannot_be_made_or_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        store = Store(folder)
        store.write("key", b"payload")
        assert store.read("key") is None
        store.sweep()
    closed = Store(tmp_path / "closed")
    closed.write("key", b"payload")

    def refused(*args, **kwargs):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    closed.write("other", b"payload")
    assert closed.read("other") is None
    (path,) = closed.folder.iterdir()
    monkeypatch.setattr(time, "time", lambda: path.stat().st_mtime + 1e6)
    assert closed.read("key") == b"payload"  # it is read all the same
    closed.remove("key")
    assert closed.read("key") == b"payload"


# -- its size ------------------------------------------------------------------------------------------------------


def total(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_the_size_is_bounded(store, monkeypatch):
    sweeps = []
    sweep = Store.sweep
    monkeypatch.setattr(Store, "sweep", lambda self: sweeps.append(1) or sweep(self))
    for n in range(1000):
        store.write(f"key {n}", bytes(8000))
        assert n % 20 or total(store.folder) <= store.most
    assert total(store.folder) >= store.most // 2
    assert len(sweeps) <= 1000 / 6  # not at each write


def test_the_size_is_bounded_if_every_process_writes_one_entry(tmp_path):
    most = 1 << 20
    for n in range(1000):
        Store(tmp_path / "kept", most).write(f"key {n}", bytes(8000))
        assert n % 20 or total(tmp_path / "kept") <= 1.5 * most


def test_what_was_used_last_stays(store):
    for n in range(10):
        store.write(f"key {n}", bytes(100_000))
        os.utime(max(store.folder.iterdir(), key=lambda p: p.stat().st_ctime_ns), (n * 1e5 + 1e9,) * 2)
    present = [n for n in range(10) if store.read(f"key {n}")]  # and now all of these were used
    assert present
    assert all(path.stat().st_mtime > time.time() - 3600 for path in store.folder.iterdir())


def test_a_sweep_removes_the_oldest_and_nothing_foreign(store):
    now = time.time()
    for n in range(10):
        payload = bytes(100_000)
        store.write(f"key {n}", payload)
        os.utime(store._path(f"key {n}"), (now - 1000 + n,) * 2)
    foreign = store.folder / "notes.txt"
    foreign.write_bytes(bytes(1 << 20))
    dead, alive = (store.folder / f"{'0' * 64}.{c * 16}" for c in "ab")  # of writers that were killed, that write now
    dead.write_bytes(b"half")
    alive.write_bytes(b"half")
    os.utime(dead, (now - 1e6,) * 2)
    os.utime(foreign, (now - 1e6,) * 2)
    store.sweep()
    assert foreign.exists()
    assert alive.exists()
    assert not dead.exists()
    kept = [n for n in range(10) if store.read(f"key {n}") is not None]
    assert kept == [3, 4, 5, 6, 7, 8, 9]
    store.sweep()
    assert [n for n in range(10) if store.read(f"key {n}") is not None] == kept


def test_use_is_noted_once_a_day(store):
    store.write("key", b"payload")
    (path,) = store.folder.iterdir()
    for age, noted in ((3600, False), (90_000, True)):
        before = time.time() - age
        os.utime(path, (before, before))
        store.read("key")
        assert (path.stat().st_mtime > before + 1) == noted


def test_an_entry_that_would_fill_the_folder_is_not_kept(store):
    store.write("key", bytes(store.most // 8))
    assert store.read("key") is None


# -- which folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"DRED_CACHE_DIR": "/a/b", "XDG_CACHE_HOME": "/c"}, "/a/b"),
        ({"DRED_CACHE_DIR": "~/kernels", "HOME": "/home/me"}, "/home/me/kernels"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/dred"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/home/me"}, "/home/me/.cache/dred"),  # as the standard has it
        ({"HOME": "/home/me"}, "/home/me/.cache/dred"),
        ({"DRED_CACHE_DIR": ""}, None),
        ({"DRED_CACHE_DIR": "Off"}, None),
        ({"HOME": "/home/me", "DRED_CACHE_SIZE": "0"}, None),
    ],
)
@POSIX
def test_the_folder(environment, folder, monkeypatch):
    for name in ("DRED_CACHE_DIR", "XDG_CACHE_HOME", "DRED_CACHE_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert disk.default().folder == (folder and Path(folder))


def test_the_size_in_the_environment(monkeypatch):
    monkeypatch.delenv("DRED_CACHE_SIZE", raising=False)
    assert disk.default().most == 256 << 20
    monkeypatch.setenv("DRED_CACHE_SIZE", "12")
    assert disk.default().most == 12 << 20
    assert disk.default() is disk.default()  # which counts what it has written
    for text in ("many", "-1", "1.5"):
        monkeypatch.setenv("DRED_CACHE_SIZE", text)
        with pytest.raises(OptionError, match=f"DRED_CACHE_SIZE is '{text}': set it to a whole number of MiB"):
            disk.default()


# -- kernels -------------------------------------------------------------------------------------------------------


ALIASES = ["x = Vi(0, 3)", "y = Vj(1, 3)", "b = Vj(2, 1)"]
CASES = [
    ("Exp(-SqDist(x,y))*b", "Sum", None),
    ("Log(1+SqDist(x,y))*Sin(b)+Powf(b,b)", "LogSumExp", None),  # with functions of the C library
    ("SqDist(x,y)", "KMin_ArgKMin", 100),  # with memmove
]


def problem(case=CASES[0]):
    text, reduction, parameter = case
    f = formula(text, ALIASES)
    return KernelSpec.of(f.node, reduction, 1, "float32", "float64", variables=f.variables, parameter=parameter)


def computed(spec, M=40, N=300):
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0.1, 1, (n, v.dim)).astype("float32") for v, n in zip(spec.variables, (M, N, N), strict=True)]
    return [a.tobytes() for a in cpu.fold(spec, empty(spec, M), arrays, M, N)]


@pytest.fixture
def process(tmp_path, monkeypatch):
    """Call it to begin as a new process does; it returns a list in which compilations are counted."""
    monkeypatch.setenv("DRED_CACHE_DIR", str(tmp_path / "kernels"))
    emit = machine.emit
    counted = []
    monkeypatch.setattr(cpu, "emit", lambda *args: counted.append(args) or emit(*args))

    def new():
        monkeypatch.setattr(cpu, "_kernels", type(cpu._kernels)())
        counted.clear()
        return counted

    return new


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[1])
def test_a_kernel_is_compiled_once_and_its_bytes_stay(process, tmp_path, case, monkeypatch):
    count = process()
    spec = problem(case)
    cold = computed(spec)
    about = cpu.compiled(spec)
    assert len(count) == 1
    assert len(entries(tmp_path / "kernels")) == 1
    process()
    monkeypatch.setattr(cpu, "lower", None)  # nor is it lowered or written
    monkeypatch.setattr(cpu, "render", None)
    assert computed(problem(case)) == cold
    assert count == []
    again = cpu.compiled(spec)
    assert again.program == about.program._replace(text="")
    assert again.cost == about.cost


def test_other_kernels_are_others(process, tmp_path, monkeypatch):
    """By spec, machine and sources."""
    count = process()
    f = formula(CASES[0][0], ALIASES)
    for n, more in enumerate([("float32", "float64"), ("float32", "float32"), ("float64", "float64")]):
        cpu.compiled(KernelSpec.of(f.node, "Sum", 1, *more, variables=f.variables))
        assert len(count) == n + 1
    process()
    monkeypatch.setenv("DRED_CPU", next(iter(machine.runnable())))
    computed(problem())
    assert len(count) == 1
    process()
    with monkeypatch.context() as patch:
        patch.setattr(sources, "digest", lambda: "another version")
        computed(problem())
    assert len(count) == 1
    assert len(entries(tmp_path / "kernels")) == 5
    process()
    computed(problem())
    assert len(count) == 0


@pytest.mark.parametrize("text", ["", "off"])
def test_it_can_be_switched_off(process, tmp_path, monkeypatch, text):
    monkeypatch.setenv("DRED_CACHE_DIR", text)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        count = process()
        computed(problem())
        assert len(count) == 1
    assert entries(tmp_path) == []


@pytest.mark.parametrize("what", ["cut", "byte 60", "empty"])
def test_a_damaged_kernel_is_compiled_again(process, tmp_path, what):
    process()
    spec = problem()
    cold = computed(spec)
    (path,) = (tmp_path / "kernels").iterdir()
    path.write_bytes(dict(damage(path.read_bytes()))[what])
    count = process()
    assert computed(spec) == cold
    assert len(count) == 1
    process()
    assert computed(spec) == cold
    assert count == []


@pytest.mark.parametrize(
    "payload",
    [b"", b"{}", b"[]\ncode", b'{"cost": 1, "program": {}}\ncode', b"\xff\n", None],
)
def test_a_whole_entry_that_is_no_kernel_is_compiled_again(process, tmp_path, monkeypatch, payload):
    """Such as one without code, or of a program with other fields."""
    process()
    spec = problem()
    cold = computed(spec)
    if payload is None:
        payload = cpu._packed(cpu.compiled(spec).program, 1.0, b"no object code")
    monkeypatch.setattr(Store, "read", lambda self, key: payload)
    count = process()
    assert computed(spec) == cold
    assert len(count) == 1


def test_a_folder_that_cannot_be_written_costs_compilations_only(process, tmp_path, monkeypatch):
    (tmp_path / "kernels").write_text("a file")
    for _ in range(2):
        count = process()
        computed(problem())
        assert len(count) == 1


@pytest.mark.parametrize(
    ("field", "kept"),
    [(7, True), ("a word", True), ((1, 2), True), (None, True), (b"bytes", False), (((1, 2),), False)],
)
def test_every_field_of_a_program_is_kept_or_the_kernel_is_not(process, field, kept):
    process()
    program = cpu.compiled(problem()).program._replace(scratch=field)
    entry = cpu._packed(program, 2.5, b"code")
    assert (entry is not None) == kept
    if kept:
        assert cpu._about(entry.partition(b"\n")[0]) == (program._replace(text=""), 2.5)


def test_a_cubin_is_compiled_once(tmp_path, monkeypatch):
    """For each source, architecture and compiler."""
    monkeypatch.setenv("DRED_CACHE_DIR", str(tmp_path))
    version, compiled = (13, 0), []
    monkeypatch.setattr(cuda_cache, "_nvrtc", lambda: types.SimpleNamespace(getVersion=lambda: version))
    monkeypatch.setattr(
        cuda_cache, "compile_cubin", lambda *args: (compiled.append(args) or repr(args).encode(), "log")
    )
    for _ in range(2):
        assert cuda.cubin("text", "sm_90") == b"('text', 'sm_90')"
        assert cuda.cubin("other", "sm_90") == b"('other', 'sm_90')"
        assert cuda.cubin("text", "sm_80") == b"('text', 'sm_80')"
    assert len(compiled) == 3
    version = (13, 1)
    cuda.cubin("text", "sm_90")
    assert len(compiled) == 4
    monkeypatch.setattr(cuda_cache, "OPTIONS", ("--std=c++17",))
    cuda.cubin("text", "sm_90")
    assert len(compiled) == 5


@needs_nvrtc
def test_machine_code_needs_no_device(tmp_path, monkeypatch):
    """A client compiles for the GPUs of others, each architecture once; what is spoiled on disk is made again."""
    monkeypatch.setenv("DRED_CACHE_DIR", str(tmp_path / "kernels"))
    text = cuda.source(problem())
    codes = {arch: cuda.cubin(text, arch) for arch in ("sm_80", "sm_90")}
    assert all(code.startswith(b"\x7fELF") for code in codes.values())
    assert codes["sm_80"] != codes["sm_90"]
    entries = list((tmp_path / "kernels").iterdir())
    assert len(entries) == 2
    with monkeypatch.context() as patch:
        patch.setattr(cuda_cache, "compile_cubin", None)
        assert {arch: cuda.cubin(text, arch) for arch in codes} == codes
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-100])
    assert {arch: cuda.cubin(text, arch) for arch in codes} == codes


# -- sources -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "name"), [(OPS, "Exp"), (PRIMITIVES, "add"), (MONOIDS, "sum")], ids=["operation", "primitive", "monoid"]
)
def test_a_table_that_was_changed_is_in_no_file(process, tmp_path, monkeypatch, table, name):
    """Kernels are then neither read nor kept."""
    assert sources.digest()
    process()
    computed(problem())
    before = entries(tmp_path / "kernels")
    with monkeypatch.context() as patch:
        patch.setitem(table, name, object())
        assert sources.digest() is None
    with monkeypatch.context() as patch:
        patch.setitem(table, "New", table[name])
        assert sources.digest() is None
        count = process()
        computed(problem())
        assert len(count) == 1
    assert entries(tmp_path / "kernels") == before
    assert sources.digest()


def test_sources_that_were_changed_since_are_not_those_that_run(monkeypatch):
    files = sources._files.__wrapped__
    assert files() == files()
    monkeypatch.setattr(sources, "_LOADED", Path(sources.__file__).stat().st_mtime - 1)
    assert files() is None


def test_every_source_that_decides_a_kernel_counts(tmp_path, monkeypatch):
    root = Path(sources.__file__).parents[1]
    shutil.copytree(root, tmp_path / "dred", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "dred" / "kernel" / "sources.py"))
    monkeypatch.setattr(sources, "_LOADED", np.inf)
    files = sources._files.__wrapped__
    digests = [files()]
    for name in (
        "kernel/llvm_math.py",
        "kernel/cpu.py",
        "formula/table/functions.py",
        "formula/op.py",
        "reductions.py",
    ):
        with open(tmp_path / "dred" / name, "a") as file:
            file.write("\n# a change\n")
        digests.append(files())
    (tmp_path / "dred" / "kernel" / "new.py").write_text("")
    digests.append(files())
    assert len(set(digests)) == len(digests)
    shutil.rmtree(tmp_path / "dred" / "formula")
    (tmp_path / "dred" / "reductions.py").unlink()
    assert files() is None


# -- processes -----------------------------------------------------------------------------------------------------

SCRIPT = """
import sys, numpy as np
from dred import Genred
from dred.kernel import cpu
emitted, emit = [], cpu.emit
cpu.emit = lambda *args: emitted.append(args) or emit(*args)
x = np.linspace(0, 1, 3000).reshape(1000, 3)
out = Genred("Exp(-SqDist(x,y))*Log(2+x)", ["x = Vi(3)", "y = Vj(3)"], axis=1)(x, x, backend="cpu")
sys.stdout.write(f"{len(emitted)} {hash(out.tobytes())}")
"""


def start(folder, **more):
    env = {**os.environ, "DRED_CACHE_DIR": str(folder), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen([sys.executable, "-c", SCRIPT], env=env, stdout=subprocess.PIPE, text=True)


def ended(run):
    out, _ = run.communicate(timeout=300)
    assert run.returncode == 0
    return out.split()


def test_another_process_finds_the_kernel(tmp_path):
    """And one that is told another instruction set compiles it for that, without a change of any bit."""
    (first, cold), (second, warm) = (ended(start(tmp_path)) for _ in range(2))
    assert (first, second) == ("1", "0")
    assert cold == warm
    names = list(machine.runnable())
    others = [start(tmp_path, DRED_CPU=name) for name in names]
    assert [ended(other) for other in others] == [["1", cold]] * len(names)
    assert len(entries(tmp_path)) == 1 + len(names)


@pytest.mark.slow
def test_32_processes_at_once_on_an_empty_folder(tmp_path):
    runs = [start(tmp_path / "kernels") for _ in range(32)]
    results = [ended(run) for run in runs]
    assert len({out for _, out in results}) == 1
    assert len(entries(tmp_path / "kernels")) == 1
    assert ended(start(tmp_path / "kernels")) == ["0", results[0][1]]


def test_a_machine_that_llvm_does_not_know_is_an_exception():
    with pytest.raises(BackendError, match="LLVM cannot compile this kernel"):
        machine.emit("", machine.Machine("", "", "no-such-machine"), 0)
