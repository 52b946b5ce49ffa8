"""Instruction sets: the same bytes by each that this machine can run, and code for those that it cannot."""

import re
import threading

import numpy as np
import pytest

from dred.errors import BackendError, OptionError
from dred.formula.language import formula
from dred.kernel import cpu, cpu_calls, llvm, machine
from dred.kernel.lower import lower
from dred.kernel.machine import NAMED, Machine
from dred.kernel.output import empty
from dred.kernel.spec import KernelSpec

ALIASES = [
    "x = Vi(0, 3)",
    "y = Vj(1, 3)",
    "b = Vj(2, 1)",
    "g = Pm(3, 1)",
    "e = Vi(4, 1)",
    "u = Vi(5, 37)",
    "v = Vj(6, 37)",
]
GAUSSIAN = "Exp(-g*SqDist(x,y))*b"
CASES = {
    "gaussian": (GAUSSIAN, "Sum", None),
    "gradient": (f"Grad({GAUSSIAN},x,e)", "Sum", None),
    "functions": ("Log(1+SqDist(x,y))*Sin(e*b)+Pow(e,3)/(1+b)-Atan2(e,b)", "Sum", None),
    "softmax": ("-g*SqDist(x,y)", "LogSumExp", None),
    "variance": ("Sqrt(SqDist(x,y))*b", "Variance", 1),
    "nearest": ("SqDist(x,y)", "ArgKMin", 7),
    "long": ("Exp(-g*(SqNorm2(u)+SqNorm2(v)-2*(u|v)))*(u*g-v)", "Sum", None),
    "least": ("x-y", "Min_ArgMin", None),
    "histogram": ("Norm2(x-y)", "Histogram", (0.0, 0.3, 0.9)),
}
EVERY = pytest.mark.parametrize("name", CASES)
TYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


def problem(name, dtype, scaling=False, moderate=False):
    text, reduction, parameter = CASES[name]
    f = formula(text, ALIASES)
    spec = KernelSpec.of(f.node, reduction, 1, dtype, "float64", variables=f.variables, parameter=parameter)
    kernel = lower(spec, cpu.UNROLL, hoist=True)
    return spec, llvm.render(kernel, spec.dtype, spec.acc, spec.chain, scaling=scaling, moderate=moderate)


def computed(kernel, spec, M=37, N=150):
    rng = np.random.default_rng(3)
    arrays = []
    for v in spec.variables:
        rows = {0: (), 1: (M,), 2: (N,)}[spec.level(v.cat)]
        arrays.append(rng.uniform(0.1, 1, (*rows, v.dim)).astype(spec.dtype))
    out = tuple(np.array(field, order="C") for field in empty(spec, M))
    cpu._calls(
        kernel,
        spec.arrays(arrays),
        out,
        [cpu_calls.Call.of(kernel.program.plan, 0, M, 0, N)],
        (0, 0),
        threading.Event(),
    )
    return [field.tobytes() for field in out]


@TYPES
@EVERY
def test_every_instruction_set_gives_the_same_bytes(name, dtype):
    """Also the oldest, which has no fused multiply-add: LLVM calls the C library's there. AVX-512 has a text of its
    own, and so have moderate exponents."""
    results = {}
    for who in {machine.chosen(), *machine.runnable().values()}:
        for moderate in (False, True):
            spec, program = problem(name, dtype, who.scaling, moderate)
            results[who.cpu, moderate] = computed(cpu.build(program, 1.0, who.cpu, who.features), spec)
    first, *others = results.values()
    assert all(other == first for other in others), {which: r == first for which, r in results.items()}


def test_this_machine_runs_something():
    assert machine.runnable()


# -- other machines ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def every_target():
    import llvmlite.binding as binding

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in CASES), *((name, "float64") for name in ("gaussian", "softmax", "nearest"))],
)
@pytest.mark.parametrize(
    ("architecture", "name_of_set", "triple", "wide", "fused"),
    [
        ("x86_64", "avx512", "x86_64-unknown-linux-gnu", r"%zmm\d", r"vfn?m(add|sub)\w+ .*%zmm\d"),
        ("x86_64", "avx2", "x86_64-unknown-linux-gnu", r"%ymm\d", r"vfn?m(add|sub)\w+ .*%ymm\d"),
        ("aarch64", "neon", "aarch64-unknown-linux-gnu", r"\bv\d+\.(4s|2d)", r"fml[as]\s+v\d+\.(4s|2d)"),
        ("aarch64", "neon", "arm64-apple-darwin22.1.0", r"\.(4s|2d)", r"fml[as]\.(4s|2d)"),
    ],
    ids=["avx512", "avx2", "neon", "neon of macOS"],
)
def test_code_for_other_machines(every_target, architecture, name_of_set, triple, wide, fused, name, dtype):
    there = NAMED[architecture][name_of_set].machine._replace(triple=triple)
    _, program = problem(name, dtype)
    text = machine.emit(program.text, there, 2, assembly=True).replace("\t", " ")
    assert re.search(wide, text)
    assert re.search(fused, text) or name == "least"  # that is a difference alone
    if name == "gaussian":
        assert len(machine.emit(program.text, there, 2)) > 1000


# -- DRED_CPU ------------------------------------------------------------------------------------------------------


HOST = machine.host.__wrapped__  # asks each time


class Known:
    """What LLVM would say of a machine."""

    llvm_version_info = (22, 1, 0)

    def __init__(self, cpu, triple, features):
        self.cpu, self.triple, self.features = cpu, triple, features

    def get_default_triple(self):
        return self.triple

    def get_host_cpu_name(self):
        return self.cpu

    def get_host_cpu_features(self):
        if self.features is None:
            raise RuntimeError("failed to get host cpu features.")
        return self.features


@pytest.fixture
def zen3(monkeypatch):
    return pretend(monkeypatch, "znver3", "x86_64-unknown-linux-gnu", {"sse2", *machine._V3}, {"avx512f"})


def pretend(monkeypatch, name, triple, have, lack=()):
    known = Known(name, triple, {f: f in have for f in (*sorted(have), *lack)})
    monkeypatch.setattr(machine, "_llvm", lambda: known)
    monkeypatch.setattr(machine, "host", HOST)
    return known


def test_the_machine_itself_is_the_default(zen3, monkeypatch):
    for text in (None, "", "host", " HOST "):
        if text is not None:
            monkeypatch.setenv("DRED_CPU", text)
        here = machine.chosen()
        assert here.cpu == "znver3"
        assert "+avx2" in here.features
        assert "-avx512f" in here.features


def test_an_instruction_set_by_name(zen3, monkeypatch):
    for name, cpu_name in {"sse2": "x86-64", "avx2": "x86-64-v3", " AVX2": "x86-64-v3"}.items():
        monkeypatch.setenv("DRED_CPU", name)
        assert machine.chosen() == Machine(cpu_name)


@pytest.mark.parametrize("name", ["avx512", "neon", "znver3"])
def test_what_this_machine_cannot_run_is_refused(zen3, monkeypatch, name):
    monkeypatch.setenv("DRED_CPU", name)
    with pytest.raises(OptionError) as caught:
        machine.chosen()
    assert str(caught.value) == (
        f"DRED_CPU is {name!r}: this machine (znver3) can run host, sse2, avx2; set it to one of these, or unset it"
    )


@pytest.mark.parametrize("triple", ["aarch64-unknown-linux-gnu", "arm64-apple-darwin22.1.0"])
def test_names_of_another_architecture(monkeypatch, triple):
    pretend(monkeypatch, "apple-m1", triple, {"neon", "fp-armv8"})
    assert list(machine.runnable()) == ["neon"]
    monkeypatch.setenv("DRED_CPU", "avx2")
    with pytest.raises(OptionError, match=r"\(apple-m1\) can run host, neon;"):
        machine.chosen()
    pretend(monkeypatch, "power9", "powerpc64le-unknown-linux-gnu", {"vsx"})
    with pytest.raises(OptionError, match=r"\(power9\) can run host;"):
        machine.chosen()


def test_a_machine_that_llvm_cannot_ask(monkeypatch):
    known = pretend(monkeypatch, "generic", "aarch64-unknown-linux-gnu", {"neon"})
    known.features = None
    assert machine.chosen() == Machine("generic", "")
    assert list(machine.runnable()) == ["neon"]


def test_every_machine_has_its_own_key(monkeypatch):
    known = Known("znver3", "x86_64-unknown-linux-gnu", {})
    monkeypatch.setattr(machine, "_llvm", lambda: known)
    keys = [Machine("a", "+b").key, Machine("a").key, Machine("b").key, Machine("a", "+b", "aarch64-linux").key]
    known.llvm_version_info = (23, 0, 0)
    keys.append(Machine("a", "+b").key)
    known.triple = "x86_64-unknown-linux-musl"
    keys.append(Machine("a", "+b").key)
    assert len(set(keys)) == len(keys)


# -- object code ---------------------------------------------------------------------------------------------------


def test_what_is_no_object_code_is_refused():
    """LLVM would end the process for it."""
    for code in (b"", b"nonsense", b"\x7fELF" + bytes(100)):
        with pytest.raises(BackendError, match="LLVM cannot load this kernel"):
            machine.load(code, "fold")


def test_a_function_that_is_not_there_is_refused():
    _, program = problem("least", "float32")
    code = machine.emit(program.text, machine.chosen(), 0)
    with pytest.raises(BackendError, match="has no function 'unfold'"):
        machine.load(code, "unfold")


def test_the_text_does_not_depend_on_the_machine(monkeypatch):
    spec, program = problem("gaussian", "float32")
    monkeypatch.setenv("DRED_CPU", next(iter(machine.runnable())))
    assert cpu.source(spec) == program.text
