"""Kernels stay inside their arrays: each ends right before a page that nobody may touch, in a process of its own."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are protected by Linux's calls")

SCRIPT = r"""
import ctypes, faulthandler, mmap, sys
import numpy as np
from dred.formula.language import formula
from dred.formula.node import I, J
from dred.kernel import cpu
from dred.kernel.output import empty
from dred.kernel.spec import KernelSpec

faulthandler.disable()
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
PAGE = mmap.PAGESIZE


class Guarded:
    # arrays between two pages that nobody may touch: at the end of what lies between them, or at its beginning
    def __init__(self, most):
        self.size = -(-most // PAGE) * PAGE
        self.map = mmap.mmap(-1, self.size + 2 * PAGE)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.map)) + PAGE
        for page in (self.start - PAGE, self.start + self.size):
            assert libc.mprotect(page, PAGE, 0) == 0

    def place(self, nbytes, front=False, align=1):
        at = self.start if front else self.start + self.size - nbytes
        return at - at % align

    def copy(self, a, front=False):
        at = self.place(a.nbytes, front)
        out = np.ctypeslib.as_array(ctypes.cast(at, ctypes.POINTER(ctypes.c_char)), (max(a.nbytes, 1),))
        out = out[: a.nbytes].view(a.dtype).reshape(a.shape)
        out[...] = a
        return out


def run(spec, along, M, N, rng, small=0, front=False):
    kernel = cpu.compiled(spec, along)
    hoists = [kernel] + ([cpu.compiled(spec, along, hoist=False)] if kernel.program.hoisted else [])
    lanes = kernel.program.plan.lanes if along == J else 1
    given = []
    for v in spec.variables:
        rows = {0: (), 1: (M,), 2: (N,)}[spec.level(v.cat)]
        given.append(rng.normal(size=(*rows, v.dim)).astype(spec.dtype))
    results = []
    for kernel in hoists:
        program = kernel.program
        for guarded in (True, False):
            arrays = spec.arrays(given)
            state = empty(spec, M * lanes)
            redo = np.full((-(-M // program.plan.tile) if program.hoisted else 0, 2), -1, np.int64)
            items = np.array([[0, 0, M, 0, 1, 0]], np.int64)
            intervals, strides = np.array([[0, N]], np.int64), np.zeros(1 + len(arrays), np.int64)
            scratch = np.full(program.scratch + 64 - small, 0xFF if guarded else 0x3C, np.uint8)
            keep = []

            def held(a):
                if not guarded:
                    return a
                keep.append(Guarded(a.nbytes))
                return keep[-1].copy(a, front)

            arrays, state = [held(a) for a in arrays], [held(a) for a in state]
            items, intervals, strides, redo = (held(a) for a in (items, intervals, strides, redo))
            if guarded:
                keep.append(Guarded(program.scratch - small))
                at = keep[-1].place(program.scratch - small, front, 64)
                ctypes.memset(at, 0xFF, program.scratch - small)
            else:
                at = scratch.ctypes.data + -scratch.ctypes.data % 64
            pointers = [(ctypes.c_void_p * len(s))(*(a.ctypes.data for a in s)) for s in (arrays, state)]
            s, i, v, r = (a.ctypes.data for a in (strides, items, intervals, redo))
            a, b = map(ctypes.addressof, pointers)
            words = np.array([a, s, i, 0, 1, v, b, M * lanes, at, 0, 0, r, 0, 0, 0, 0], np.int64)
            kernel.call(words.ctypes.data)
            results.append(b"".join(a.tobytes() for a in state))
    pairs = zip(results[::2], results[1::2])
    assert all(a == b for a, b in pairs), "bits depend on what memory held"
    return sum(map(len, results))


def problem(reduction, text, D, dtype="float32", weight="", axis=1, acc="float64", **more):
    aliases = [f"x=Vi({D})", f"y=Vj({D})", "b=Vj(1)", "e=Vi(1)", "g=Pm(1)"]
    read = " + ".join(f"Sum({n})" for n in "xybeg")
    f, g = formula(text, aliases).node, formula(weight, aliases).node if weight else None
    variables = formula(read, aliases).variables
    return KernelSpec.of(f, reduction, axis, dtype, acc, variables=variables, weight=g, **more)


FORMULAS = [
    ("Sum", "e*Exp(-g*g*SqDist(x,y))*b", ""),
    ("Sum", "Grad(Exp(-SqDist(x,y))*b,x,e)", ""),
    ("Sum", "e*x*y", ""),
    ("LogSumExp", "-SqDist(x,y)", ""),
    ("SoftMax", "(x|y)", "y"),
    ("Min_ArgMin", "x*y+Sum(x)", ""),
    ("ArgKMin", "x*y+Sum(x)", "", dict(parameter=3)),
    ("Variance", "x*y", "", dict(parameter=0)),
    ("Mean", "x*y*e", ""),
    ("Histogram", "(x|y)", "", dict(parameter=(-1.0, 0.0, 0.5, 2.0))),
    ("Sum", "x*y", "", dict(kahan=True)),
    ("Sum", "IfElse(b*e, IndexI() - IndexJ(), x)", ""),
]


def main(which, dims, sizes, dtypes, small):
    rng = np.random.default_rng(0)
    total = 0
    for reduction, text, weight, *more in FORMULAS[which]:
        for D in dims:
            for dtype in dtypes:
                for axis in (1, 0):
                    if axis == 0 and D not in (2, 8):
                        continue
                    spec = problem(reduction, text, D, dtype, weight, axis, **(more[0] if more else {}))
                    for along in (I, J):
                        for M, N in sizes:
                            for front in (False, True):
                                total += run(spec, along, M, N, rng, small, front)
    print(total)
"""

EDGES = [(1, 1), (15, 16), (16, 17), (17, 63), (3, 64), (2, 273)]


def child(which, dims, sizes, dtypes, small=0):
    call = f"main({which}, {dims!r}, {sizes!r}, {dtypes!r}, {small})"
    env = {**os.environ, "DRED_CACHE_DIR": "off"}
    done = subprocess.run([sys.executable, "-c", f"{SCRIPT}\n{call}"], env=env, capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize("which", [0, 1, 4, 6])
def test_nothing_outside_is_touched(which):
    assert child(f"slice({which}, {which + 1})", (1, 9), EDGES, ["float32"]) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("D", [1, 2, 3, 8, 9, 40])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_outside_is_touched_at_any_edge(D, dtype):
    sizes = [
        *EDGES,
        *((M, N) for M in (1, 7, 8, 9, 31, 33, 1025) for N in (2, 15, 65, 255, 1025)),
        (2, 4097),
        (1, 8193),
    ]
    assert child("slice(0, 12)", (D,), sizes, [dtype]) == (0, "")


def test_a_touch_outside_is_noticed():
    """The test above can fail: it does where scratch memory is a page smaller than the kernel takes it to be."""
    code, _ = child("slice(0, 1)", (3,), [(1025, 4097)], ["float32"], 1 << 16)
    assert code < 0
