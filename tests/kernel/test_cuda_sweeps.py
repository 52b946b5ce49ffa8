"""Random sweeps through the CUDA sources, run by the shim: several reductions of several formulas, in one kernel, of
data of many sorts, against the interpreter, which computes every term as it is written.

A sweep is drawn from its seed alone. What differs is measured against what sums are of (their terms without signs),
against what other last bits of the data do to the interpreter's result and, where float32 overflows or underflows,
against the interpreter in float64: powers of e below 2^-126 may be 0 on CUDA.
"""

import random
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from dred.errors import DredError
from dred.formula.language import formula
from dred.kernel import interpret
from dred.kernel.cuda_source import rendered
from dred.kernel.output import Output, empty
from dred.kernel.spec import KernelSpec, Part
from dred.reductions import REDUCTIONS, monoid_name
from tests.monoid_cases import weightings
from tests.shim import shim

pytestmark = pytest.mark.skipif(not shim.available(), reason="no C++ compiler")

TOGETHER = 40  # kernels of one library
DIMS = (1, 2, 3, 3, 9, 40, 70)
UNROLL = (1, 2, 4, 8, 16, 32)
TYPES = (("float32", "float64"), ("float32", "float32"), ("float64", "float64"))
# whole numbers; any; NaN and infinities; huge and tiny factors; exponents out of range; equal rows; odd parameters
KINDS = ("whole", "whole lost", "any", "any", "lost", "factors", "exponents", "equal", "parameters")
EXTREME = ("factors", "exponents", "parameters")
EXACT = ("Min", "Max", "Any", "All", "Count", "Histogram")  # of whole numbers alone, to be right to the last bit
SUMS = ("Sum", "Mean", "Variance", "LogSumExp", "LogSumExpWeight", "SumSoftMaxWeight", "SoftMax", "Max_SumShiftExp",
        "Max_SumShiftExpWeight")  # fmt: skip
FAR = 2**33 + 5  # a row number beyond 32 bits


class Text:
    """Random formulas as pairs: the text, and the same where what every power of e is multiplied with stands alone."""

    LEAVES = ("s", "t", "p", "2", "(-3)", "Sum(x)", "Sum(y)", "Elem(y, 0)", "Elem(q, 0)", "(IndexI() - IndexJ())")
    SCALARS = ("({0} + {1})", "({0} - {1})", "{0} * {1}", "{0} * {1}", "{0} / (1 + Square({1}))", "IfElse({0}, {1}, 1)",
               "Max({0} | {1})", "({0} < {1})", "Abs({0})", "Sqrt(1 + Square({0}))", "{0} / Norm2(x - y + 1)",
               "Log(1 + Square({0}))", "Sum({0} * x * y)", "Step({0}) * {1}", "Square({0})", "Inv({0} + 0.25)",
               "{0} * Rsqrt(SqDist(x, y))", "Sum(Square(x - y) * {0})", "Tanh({0})", "{0} / ({1} + 0.25)")  # fmt: skip
    POWERS = ("-SqDist(x, y)", "-p * SqDist(x, y)", "-SqDist(x, y) / (2 * Square(s))", "(x | y)", "-Norm2(x - y)",
              "s * t", "-Square(s - t)", "p * (s + t)", "-Sum(Square(q * (x - y)))", "s", "t", "p",
              "Sum(x) * t")  # fmt: skip
    FACTORS = ("s", "t", "p", "Inv(s)", "Sum(x)", "Sum(x * y)", "1 / (1 + SqDist(x, y))", "Norm2(x - y)", "(-2)",
               "Rsqrt(1 + SqDist(x, y))", "Sqrt(SqDist(x, y))", "Square(s)", "0.1", "Square(s * t)")  # fmt: skip
    VECTORS = ("x", "y", "x * y", "(x - y)", "q * x", "q", "Square(y)", "Normalize(x - y + 3)", "Exp(-Square(x - y))")

    def __init__(self, rng):
        self.rng = rng

    def scalar(self, depth):
        chance = self.rng.random()
        if depth == 0 or chance < 0.1:
            return (self.rng.choice(self.LEAVES),) * 2
        if chance < 0.3:
            exponent, _ = self.scalar(depth - 1) if self.rng.random() < 0.3 else (self.rng.choice(self.POWERS),) * 2
            return f"Exp({exponent})", "1"
        if chance < 0.45:
            return (self.rng.choice(self.FACTORS),) * 2
        form = self.rng.choice(self.SCALARS)
        a, b = self.scalar(depth - 1), self.scalar(depth - 1)
        return form.format(a[0], b[0]), form.format(a[1], b[1])

    def product(self, D, vector):
        """Products of factors of all sorts, in any order: what is rewritten."""
        parts = [self.scalar(self.rng.choice((1, 1, 2))) for _ in range(self.rng.randint(1, 3))]
        if self.rng.random() < 0.6:
            parts.append((f"Exp({self.rng.choice(self.POWERS)})", "1"))
        if vector:
            parts.append((self.rng.choice(self.VECTORS),) * 2)
        self.rng.shuffle(parts)
        if not vector and D <= 9 and self.rng.random() < 0.1:
            return (f"Sum(Grad({' * '.join(a for a, _ in parts)}, x, s))",) * 2
        return " * ".join(a for a, _ in parts), " * ".join(b for _, b in parts)

    def whole(self, level, depth):
        """Exact on small whole numbers."""
        if depth == 0 or self.rng.random() < 0.2:
            return self.rng.choice({1: ["s", "t", "p", "2", "-1"], 2: ["x", "y", "x", "y", "s", "t", "q"]}[level])
        if level == 1 and self.rng.random() < 0.3:
            return self.rng.choice(["Sum({})", "Max({})", "Min({})"]).format(self.whole(2, depth - 1))
        if self.rng.random() < 0.3:
            form = self.rng.choice(["Abs({})", "-{}", "Sign({})", "Square({})", "ReLU({})", "({})"])
            return form.format(self.whole(level, depth - 1))
        form = self.rng.choice(["({} + {})", "({} - {})", "{} * {}", "Step({}) * {}", "IfElse({}, {}, 1)", "({} < {})"])
        return form.format(self.whole(level, depth - 1), self.whole(level, depth - 1))


class Sweep:
    """One random problem: what it is called with, and what its results have to be near."""

    def __init__(self, seed):
        self.rng = rng = random.Random(seed)
        self.seed, self.kind = seed, rng.choice(KINDS)
        self.D, self.axis, (self.dtype, self.acc) = rng.choice(DIMS), rng.choice((0, 1)), rng.choice(TYPES)
        self.aliases = [f"x = Vi({self.D})", f"y = Vj({self.D})", "s = Vi(1)", "t = Vj(1)", "p = Pm(1)",
                        f"q = Pm({self.D})"]  # fmt: skip
        self.unroll, self.chain = rng.choice(UNROLL), rng.choice((1, 4, 16, 16, 16, 32))
        self.items = [self.item() for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))]
        self.spec = self.made([f for f, _ in self.items])

    def item(self):
        """Name, F, G, parameter, compensated; and the same where sums are of absolute values, and powers are 1."""
        rng, text = self.rng, Text(self.rng)
        while True:
            name = rng.choice((*REDUCTIONS, *SUMS, "Sum", "Sum", "Sum", "Mean", "LogSumExp"))
            entry = REDUCTIONS[name]
            weighted = rng.choice(weightings(name))
            vector = self.D <= 40 and rng.random() < 0.3
            exact = any(word in name for word in EXACT) and "Shift" not in name
            if exact and self.kind.startswith("whole"):
                f = (text.whole(1 if entry.scalar or weighted or rng.random() < 0.5 else 2, 3),) * 2
            elif name.startswith(("Sum", "Mean", "Variance")) and not weighted:
                f = text.product(self.D, vector)
            elif rng.random() < 0.5:
                f = (rng.choice(text.POWERS),) * 2
            else:
                f = text.scalar(2)
            g = text.product(self.D, vector and name != "Histogram") if weighted else None
            edges = sorted({*(rng.randint(-6, 7) for _ in range(rng.choice((2, 5, 30)))), -7, 8})
            parameter = {"": None, "K": rng.choice((1, 2, 5, 20)), "ddof": rng.choice((0, 1)),
                         "edges": tuple(edges)}[entry.parameter]  # fmt: skip
            kahan = rng.random() < 0.15 and bool(monoid_name(entry, weighted, True))
            item = name, f[0], g and g[0], parameter, kahan
            alone = g is None and not re.search("Exp|SoftMax", name)  # what is added up is F
            size, flush = (
                (name, f"Abs({f[n]})" if alone else f[n], g and f"Abs({g[n]})", parameter, False) for n in (0, 1)
            )
            if name == "Variance":
                size = "Mean", f"Square({f[0]})", None, None, False
                flush = "Mean", f"Abs({f[1]})", None, None, False
            try:
                for one in (item, size, flush):
                    rendered(self.made([one]), "k", self.unroll)
            except DredError:
                continue
            return item, (size, flush)

    def made(self, items, dtype=""):
        """The spec of items; of another type, with sums in float64, where it is the measure of another one."""
        parse = lambda text: text and formula(text, self.aliases).node  # noqa: E731
        parts = tuple(Part.of(name, parse(f), parse(g), p, kahan) for name, f, g, p, kahan in items)
        known = formula(" + ".join(f"Sum({alias[0]})" for alias in self.aliases), self.aliases).variables
        types = (dtype, "float64") if dtype else (self.dtype, self.acc)
        return KernelSpec(parts, self.axis, *types, self.chain, known, fast=self.seed % 4 == 0)

    def sizes(self, source):
        """Rows and columns of the kernel: around the edges of tiles and chains."""
        TJ, tile = source.tile_columns, source.tile_rows
        N = self.rng.choice((0, 1, 2, 15, 16, 17, 47, TJ - 1, TJ, TJ + 1, 2 * TJ + 19))
        M = self.rng.choice((1, 5, 127, 129, tile - 1, tile + 1))
        few = 40_000 if self.D <= 9 else 8_000
        return max(1, min(M, few // max(1, N))), N

    def arrays(self, M, N):
        """By position: x, y, s, t, p, q."""
        rng = np.random.default_rng(self.seed)
        I, J = (M, N) if self.axis == 1 else (N, M)
        shapes = ((I, self.D), (J, self.D), (I, 1), (J, 1), (1,), (self.D,))
        small, kind = self.D**-0.5, self.kind
        if kind.startswith("whole"):
            out = [rng.integers(-2, 3, shape).astype(self.dtype) for shape in shapes]
        else:
            out = [rng.uniform(-2, 2, shape) * (small if shape[-1] > 1 else 1) for shape in shapes]
        huge = {"float32": 1e30, "float64": 1e250}[self.dtype]
        some = lambda a, chance: rng.random(a.shape) < chance  # noqa: E731
        if "lost" in kind:
            for a in out[:4]:
                a[some(a, rng.choice([0.002, 0.05]) / a.shape[-1])] = rng.choice([np.nan, np.inf, -np.inf])
        elif kind == "factors":
            for a in (out[2], out[3]):
                for value in (huge, 1 / huge, 0):
                    a[some(a, 0.02)] *= value
        elif kind == "exponents":
            out[0] *= np.where(rng.random((I, 1)) < 0.1, 50, 1)
            out[1] *= np.where(rng.random((J, 1)) < 0.1, 30, 1)
        elif kind == "equal":
            out[0][:], out[2][:] = out[0][:1], out[2][:1]
            if rng.random() < 0.5:
                out[1][:], out[3][:] = out[1][:1], out[3][:1]
        elif kind == "parameters":
            out[4][:] = rng.choice([0, np.nan, np.inf, -np.inf, huge, -huge, 1 / huge, -1])
        return [a.astype(self.dtype) for a in out]

    def results(self, spec, state, items):
        return [
            Output.read(o, spec, state) for n, (name, _, _, p, _) in enumerate(items) for o in Output.of(name, n, p)
        ]

    def interpreted(self, items, arrays, M, N, base, dtype=""):
        spec = self.made(items, dtype)
        arrays = spec.arrays([a.astype(spec.dtype) for a in arrays])
        state = interpret.fold(spec, empty(spec, M), arrays, M, N, i0=base, j0=base)
        return self.results(spec, state, items)

    def run(self, library, source):
        """What is wrong, as text."""
        M, N = self.sizes(source)
        arrays, rng, base = self.arrays(M, N), self.rng, self.rng.choice((0, 7, FAR if self.kind == "whole" else 100))
        spec, J = self.spec, [k for k, alias in enumerate(self.aliases) if f"V{'ij'[self.axis]}" in alias]
        at = rng.choice((0, 0, N // 2, min(N, 16)))  # the state goes on from here
        state = None
        with shim.fibers(reverse=rng.random() < 0.5):
            for first, last in ((0, at), (at, N))[at == 0 :]:
                cut = [a[first:last] if k in J else a for k, a in enumerate(arrays)]
                state = shim.run(library, source, spec.arrays(cut), M, last - first, state=state,
                                 splits=rng.choice((1, 1, 2, 3)), row0=base, column0=base + first)  # fmt: skip
        items = [item for item, _ in self.items]
        got = self.results(spec, state, items)
        want = self.interpreted(items, arrays, M, N, base)
        shaken, noise = [want], np.random.default_rng(self.seed + 1)
        if not self.kind.startswith("whole"):
            for _ in range(3):
                near = [a * (1 + 4 * np.finfo(a.dtype).eps * noise.uniform(-1, 1, a.shape)) for a in arrays]
                shaken.append(self.interpreted(items, [a.astype(self.dtype) for a in near], M, N, base))
        wide = self.interpreted(items, arrays, M, N, base, "float64") if self.dtype == "float32" else None
        out, n = [], 0
        for item, measures in self.items:
            sizes = [self.interpreted([m], arrays, M, N, base, "float64")[0] for m in measures]
            for _ in Output.of(item[0], 0, item[3]):
                found = self.differs(item[0], got[n], [s[n] for s in shaken], wide and wide[n], sizes)
                if found:
                    out.append(f"seed {self.seed}: {item}, {self.D} components, {self.kind}, axis {self.axis}, "
                               f"{self.dtype}, {self.acc}, {M} rows, {N} columns: {found}")  # fmt: skip
                n += 1
        return out

    def differs(self, name, got, shaken, wide, sizes):
        """What differs, as text, or nothing."""
        want = shaken[0]
        if got.shape != want.shape or got.dtype != want.dtype:
            return f"{got.shape}, {got.dtype} for {want.shape}, {want.dtype}"
        if got.dtype.kind != "f":
            bad = (got != want) & np.all([s == want for s in shaken], axis=0)
            return f"{got[bad][:3]} for {want[bad][:3]}" if bad.any() else ""
        got, shaken = got.astype("f8"), [s.astype("f8") for s in shaken]
        want = shaken[0]
        with np.errstate(all="ignore"):
            allowed = self.allowed(name, want, shaken, sizes)
            fine = np.isfinite(want)
            same = np.where(fine, np.abs(got - want) <= allowed, (got == want) | (np.isnan(got) & np.isnan(want)))
            # what other last bits make infinite, or NaN, may be so
            odd = lambda a: np.where(np.isfinite(a), 0.0, np.where(np.isnan(a), 2.0, np.sign(a)))  # noqa: E731
            same |= ~np.all([odd(s) == odd(want) for s in shaken], axis=0) | np.isnan(allowed) & fine
            if self.kind in EXTREME:
                if wide is None:  # products in another order need not overflow, or may
                    same |= ~fine | (~np.isfinite(got) & (sizes[0] > 1e290))
                else:
                    exact = wide.astype("f8")
                    same |= np.isfinite(got) & (np.abs(got - exact) <= self.allowed(name, exact, shaken, sizes))
                    same |= ~np.isfinite(got) & ((np.abs(exact) > 1e35) | (sizes[0] > 1e35) | np.isnan(exact))
        bad = np.argwhere(~same)
        if len(bad):
            at = tuple(bad[0])
            return f"{len(bad)} of {got.size}, at {at} {got[at]!r} for {want[at]!r}, within {allowed[at]!r}"
        return ""

    def allowed(self, name, want, shaken, sizes):
        low = "float32" if "float32" in (self.dtype, self.acc) else "float64"
        eps = np.finfo(low).eps * {"float32": 500, "float64": 5000}[low]
        size, flush = (np.abs(s.astype("f8")) if s.shape == want.shape else np.zeros(want.shape) for s in sizes)
        slack = np.max([np.abs(s - want) for s in shaken], axis=0)
        slack = 30 * np.where(np.isfinite(slack), slack, np.inf if len(shaken) > 1 else 0)
        if name.startswith("LogSumExp"):
            size = 1 + np.exp(np.clip(sizes[0].astype("f8") - want, 0, 600))
        floor = np.finfo(self.dtype).tiny * 4
        out = eps * (np.abs(want) + np.where(np.isfinite(size), size, 0)) + slack
        return out + floor * (1 + np.where(np.isfinite(flush), flush, 0))


def built(seeds, change=lambda text: text):
    """Sweeps and their sources by seed, in one library; compiled without optimization, for that takes the time."""
    sweeps = {seed: Sweep(seed) for seed in seeds}
    sources = {seed: rendered(s.spec, f"k{seed}", s.unroll) for seed, s in sweeps.items()}
    sources = {seed: replace(source, text=change(source.text)) for seed, source in sources.items()}
    return sweeps, sources, shim.compile_sources(list(sources.values()), ["-O0"])


def check(first, count):
    def made(start):
        return built(range(start, min(start + TOGETHER, first + count)))

    wrong = []
    with ThreadPoolExecutor(2) as pool:
        for sweeps, sources, library in pool.map(made, range(first, first + count, TOGETHER)):
            for seed, sweep in sweeps.items():
                wrong += sweep.run(library, sources[seed])
    assert not wrong, f"{len(wrong)} results of {count} sweeps:\n" + "\n".join(wrong[:20])


def test_a_sum_beside_a_ranking():
    """Whose groups of columns are parts of the sum's chains."""
    check(226, 1)


def test_random_sweeps_briefly():
    check(0, 10)


@pytest.mark.slow
def test_random_sweeps_at_fixed_seeds():
    check(10, 300)


@pytest.mark.soak
def test_random_sweeps(record_property):
    first = random.randrange(10**6, 10**9)
    record_property("sweeps", 5000)
    record_property("first_seed", first)
    check(first, 5000)


BUGS = {  # what is replaced, and what by; sweeps that it is in
    "none": ("", "", (1, 3, 24)),
    "what does not hold is not done again": ("bad >> [qr] & 1", "false", (1, 6, 7)),
    "factors are left out": (r" \* h\d+\[r\];", ";", (3, 16, 21)),
    "columns beyond the last one": (r"if \(c >= left\) break;", "", (0, 1, 5)),
    "the first of several columns": (r"\? t \+ c : ", "? t : ", (24, 45)),
}


@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_found(bug):
    old, new, seeds = BUGS[bug]
    sweeps, sources, library = built(seeds, lambda text: re.sub(old, new, text) if old else text)
    for seed, sweep in sweeps.items():
        assert bool(sweep.run(library, sources[seed])) == bool(old), seed
