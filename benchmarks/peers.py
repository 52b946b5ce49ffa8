"""The peers of `cpu.py`: what each of them runs for a row of the table, in the configuration that its manual advises.

    pykeops   the same formula; C++ compiled for this machine by g++
    torch     torch.compile (Inductor, C++ by g++), a block of rows per call: distances, profile and sum are one loop
    jax       jit, one block of rows at a time in lax.map, sums by dot
    numpy     chunks of rows of a megabyte, in place where that is possible, sums by BLAS
    numba     plain loops, njit, compiled for the row's dimensions, one thread, no fast math
    scipy     as numpy, with scipy.spatial.distance.cdist and scipy.special.logsumexp
    sklearn   pairwise_distances_argmin, NearestNeighbors(algorithm="brute")
    faiss     IndexFlatL2

There are two forms of squared distances: by differences, and expanded (|x|² + |y|² - 2 x·y), which is a matrix product
and loses digits. Rows say which; scikit-learn and FAISS only have the second. Gradients sum w (x - y) as
x sum w - w y, by matrix products, in both forms (but for numba, and for torch where D is small: one loop is faster).

A peer is a function of a row; it returns a `Run`, or None where it has nothing to offer. Imports are inside: what is
not installed is found out when asked for.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dred.kernel.work import WORK

MEGABYTE = 1_000_000
SHORT = 16  # components that are written out


class Task(NamedTuple):
    """A row of the table."""

    name: str
    formula: str
    aliases: tuple[str, ...]
    kind: str
    profile: str = "gaussian"
    D: int = 3
    E: int = 1  # columns of b
    K: int | None = None
    reduction: str = "Sum"
    axis: int = 1
    expanded: bool = False
    dtype: str = "float32"
    few: int = 0  # rows, where there are few of them and many columns
    calls: int = 1
    columns: int = 10_000
    fast: bool = False  # use_fast_math

    @property
    def title(self):
        return f"{self.name}{', expanded' if self.expanded else ''}{', fast' if self.fast else ''}"

    @property
    def variables(self):
        """Category and dimension of each variable by name, in the order of the aliases."""
        out = {}
        for alias in self.aliases:
            name, meaning = alias.format(D=self.D, E=self.E).split("=")
            out[name] = (meaning[:2], int(meaning[3:-1]))
        return out

    @property
    def texts(self):
        return [f"{name} = {cat}({dim})" for name, (cat, dim) in self.variables.items()]

    def of(self, rows):
        """Names of the variables that have one row per row of the result, or per column."""
        cat = "Vi" if (self.axis == 1) == rows else "Vj"
        return [name for name, (c, _) in self.variables.items() if c == cat]

    @property
    def most(self):
        """Rows of the largest measurement."""
        return self.few or max(256, min(40_960, 8_000_000 // max(self.D, self.E) // 256 * 256))

    @property
    def fma(self):
        """Multiply-adds that a pair needs at least: none counted for additions, comparisons and square roots."""
        if self.calls > 1 or self.profile != "gaussian":
            return None
        return WORK[self.kind](self.D, self.E).fma(self.dtype)


class Run(NamedTuple):
    """How a rival computes a row: arrays by name to result; the number of rows must be a multiple of `unit`."""

    work: Callable[[dict], np.ndarray]
    unit: int = 16


def part(v, names, first, last):
    return {name: a[first:last] if name in names else a for name, a in v.items()}


# What NumPy, torch and JAX share: the mathematics of one block of pairs, on arrays of any of the three.


class NumPy:
    """Operations that they spell differently; `exp` and `sqrt` may overwrite what they are given."""

    def exp(self, a):
        return np.exp(a, out=a)

    def sqrt(self, a):
        return np.sqrt(a, out=a)

    def positive(self, a):
        return np.maximum(a, 0, out=a)

    def join(self, columns):
        return np.concatenate(columns, axis=1)

    def product(self, k, b):
        return k @ b

    def logsumexp(self, a):
        largest = a.max(1)[:, None]
        a -= largest
        return np.log(self.exp(a).sum(1))[:, None] + largest

    def argmin(self, a):
        return a.argmin(1)[:, None]

    def smallest(self, a, K):
        found = np.argpartition(a, K, axis=1)[:, :K]
        return np.take_along_axis(found, np.take_along_axis(a, found, 1).argsort(1), 1)

    def weighted_difference(self, w, x, y):
        return w.sum(1)[:, None] * x - self.product(w, y)

    def differences(self, x, y):
        y = np.ascontiguousarray(y.T)
        s = np.zeros((len(x), y.shape[1]), x.dtype)
        d = np.empty_like(s)
        for k in range(x.shape[1]):
            np.subtract(x[:, k, None], y[k], out=d)
            np.multiply(d, d, out=d)
            s += d
        return s

    def squares(self, t, x, y):
        if not t.expanded:
            return self.differences(x, y)
        s = x @ y.T
        s *= -2
        s += (x * x).sum(1)[:, None]
        s += (y * y).sum(1)
        return self.positive(s)


class SciPy(NumPy):
    def differences(self, x, y):
        from scipy.spatial.distance import cdist

        return cdist(x, y, "sqeuclidean").astype(x.dtype, copy=False)

    def logsumexp(self, a):
        from scipy.special import logsumexp

        return logsumexp(a, axis=1, keepdims=True)


class Torch(NumPy):
    def __init__(self):
        import torch

        self.exp, self.sqrt = torch.exp, torch.sqrt
        self.torch = torch

    def positive(self, a):
        return a.clamp(min=0)

    def join(self, columns):
        return self.torch.cat(columns, 1)

    def product(self, k, b):
        return k @ b if b.shape[1] > 1 else (k * b[:, 0]).sum(1)[:, None]  # fused with what makes k

    def logsumexp(self, a):
        return self.torch.logsumexp(a, 1)[:, None]

    def smallest(self, a, K):
        return self.torch.topk(a, K, 1, largest=False)[1]

    def weighted_difference(self, w, x, y):
        if x.shape[1] > SHORT:
            return super().weighted_difference(w, x, y)
        return self.join([(w * (x[:, k, None] - y[:, k])).sum(1)[:, None] for k in range(x.shape[1])])

    def differences(self, x, y):
        if x.shape[1] <= SHORT:
            return sum((x[:, k, None] - y[:, k]) ** 2 for k in range(x.shape[1]))
        return ((x[:, None] - y) ** 2).sum(-1)


class Jax(NumPy):
    def __init__(self):
        import jax
        import jax.numpy as jnp

        self.exp, self.sqrt = jnp.exp, jnp.sqrt
        self.jax, self.jnp = jax, jnp

    def positive(self, a):
        return self.jnp.maximum(a, 0)

    def join(self, columns):
        return self.jnp.concatenate(columns, 1)

    def logsumexp(self, a):
        return self.jax.nn.logsumexp(a, 1)[:, None]

    def smallest(self, a, K):
        return self.jax.lax.top_k(-a, K)[1]

    def differences(self, x, y):
        if x.shape[1] <= SHORT:
            return sum((x[:, k, None] - y[:, k]) ** 2 for k in range(x.shape[1]))
        x, y = x.T, y.T
        zero = self.jnp.zeros((x.shape[1], y.shape[1]), x.dtype)
        return self.jax.lax.fori_loop(0, len(x), lambda k, s: s + (x[k][:, None] - y[k]) ** 2, zero)


def gaussian(xp, s, g):
    s *= -g
    return xp.exp(s)


def laplacian(xp, s, g):
    return xp.exp(-xp.sqrt(s))


def matern(xp, s, g):
    s *= 5
    r = xp.sqrt(s)
    return (3 + 3 * r + r * r) * xp.exp(-r)


def inverse(xp, s, g):
    return 1 / xp.sqrt(s)


PROFILES = {"gaussian": gaussian, "laplacian": laplacian, "matern": matern, "inverse": inverse}


def profile(xp, t, v):
    return PROFILES[t.profile](xp, xp.squares(t, v["x"], v["y"]), v["g"])


def block_sum(xp, t, v):
    return xp.product(profile(xp, t, v), v["b"])


def block_gradient(xp, t, v):
    w = profile(xp, t, v) * v["b"][:, 0]
    return xp.weighted_difference(w, v["x"], v["y"]) * (-2 * v["g"] * v["e"])


def block_tutorial(xp, t, v):
    factor = (v["p"] - v["a"]) ** 2
    return xp.join([xp.product(xp.exp(v["x"][:, k, None] + v["y"][:, k]), factor) for k in range(3)])


def block_tutorial_gradient(xp, t, v):
    sums = [xp.product(xp.exp(v["y"][:, k, None] + v["x"][:, k]), v["e"][:, k, None]) for k in range(3)]
    return xp.join(sums) * (v["p"] - v["a"]) ** 2


def block_logsumexp(xp, t, v):
    return xp.logsumexp(-xp.squares(t, v["x"], v["y"]))


def block_nearest(xp, t, v):
    s = xp.squares(t, v["x"], v["y"])
    return xp.argmin(s) if t.K is None else xp.smallest(s, t.K)


BLOCKS = {
    "sum": block_sum,
    "gradient": block_gradient,
    "tutorial": block_tutorial,
    "tutorial_gradient": block_tutorial_gradient,
    "logsumexp": block_logsumexp,
    "nearest": block_nearest,
}


def chunks(t, xp, concatenate, size, function=None):
    """A reduction in blocks: of rows, whose results lie below each other; of columns where there are few rows."""
    names = t.of(rows=not t.few)
    function = function or (lambda v: BLOCKS[t.kind](xp, t, v))

    def work(v):
        whole = len(v[names[0]])
        parts = [function(part(v, names, k, k + size)) for k in range(0, whole, size)]
        return sum(parts) if t.few else concatenate(parts)

    return work


def megabyte(t):
    """Rows or columns of a chunk whose matrix of pairs is that large."""
    return max(16, MEGABYTE // (np.dtype(t.dtype).itemsize * (t.few or t.columns)))


def numpy(t):
    return Run(chunks(t, NumPy(), np.concatenate, megabyte(t)))


def scipy(t):
    import scipy.special  # noqa: F401

    if t.kind.startswith("tutorial") or (t.expanded and t.kind != "logsumexp"):
        return None  # the same as NumPy
    return Run(chunks(t, SciPy(), np.concatenate, megabyte(t)))


def torch(t):
    import torch

    torch.set_num_threads(1)
    torch._dynamo.reset()  # a row's functions count as versions of the last row's
    xp = Torch()
    fused = t.E == 1 and not t.expanded and t.kind in ("sum", "tutorial", "tutorial_gradient", "logsumexp")
    size = 100_000 if t.few else 256 if fused or max(t.D, t.E) > 64 else 32

    function = torch.compile(lambda v: BLOCKS[t.kind](xp, t, v), dynamic=False)
    work = chunks(t, xp, torch.cat, size, function)

    def run(v):
        v = {name: torch.from_numpy(a) for name, a in v.items()}
        if t.D <= SHORT and not t.expanded:
            v["y"] = v["y"].T.contiguous().T  # components that lie together
        return work(v).numpy()

    return Run(run, 256)


def jax(t):
    import jax

    xp, names = Jax(), t.of(rows=True)
    size = 64 if max(t.D, t.E) <= 64 else 256

    @jax.jit
    def run(v):
        whole = len(v[names[0]])
        if t.few or whole <= size:  # few rows are fastest as a whole
            return BLOCKS[t.kind](xp, t, v)
        out = jax.lax.map(
            lambda some: BLOCKS[t.kind](xp, t, v | some),
            {name: v[name].reshape(-1, size, v[name].shape[1]) for name in names},
        )
        return out.reshape(whole, -1)

    return Run(lambda v: np.asarray(run(v)), 256)


def numba(t):
    from numba import njit

    D, E, K = t.D, t.E, t.K or 1
    total = np.dtype("float64" if t.few else t.dtype)  # millions of float32 terms lose too many digits

    @njit
    def square(x, y, i, j):
        s = x[i, 0] - x[i, 0]  # a zero of the type
        for k in range(D):
            d = x[i, k] - y[j, k]
            s += d * d
        return s

    values = {
        "gaussian": lambda s, g: math.exp(-g * s),
        "laplacian": lambda s, g: math.exp(-math.sqrt(s)),
        "matern": lambda s, g: (3 + 3 * math.sqrt(5 * s) + 5 * s) * math.exp(-math.sqrt(5 * s)),
        "inverse": lambda s, g: 1 / math.sqrt(s),
    }
    value = njit(values[t.profile])

    @njit
    def loop_sum(x, y, b, g):
        out = np.zeros((len(x), E), total)
        for i in range(len(x)):
            for j in range(len(y)):
                w = value(square(x, y, i, j), g[0])
                for c in range(E):
                    out[i, c] += w * b[j, c]
        return out

    @njit
    def loop_gradient(x, y, b, g, e):
        out = np.zeros((len(x), D), x.dtype)
        for i in range(len(x)):
            for j in range(len(y)):
                w = -2 * g[0] * e[i, 0] * value(square(x, y, i, j), g[0]) * b[j, 0]
                for k in range(D):
                    out[i, k] += w * (x[i, k] - y[j, k])
        return out

    @njit
    def loop_tutorial(x, y, a, p):
        out = np.zeros((len(x), 3), x.dtype)
        for i in range(len(x)):
            for j in range(len(y)):
                factor = (p[0] - a[j, 0]) * (p[0] - a[j, 0])
                for k in range(3):
                    out[i, k] += factor * math.exp(x[i, k] + y[j, k])
        return out

    @njit
    def loop_tutorial_gradient(x, y, a, p, e):
        out = np.zeros((len(y), 3), x.dtype)
        for j in range(len(y)):
            factor = (p[0] - a[j, 0]) * (p[0] - a[j, 0])
            for i in range(len(x)):
                for k in range(3):
                    out[j, k] += e[i, k] * factor * math.exp(x[i, k] + y[j, k])
        return out

    @njit
    def loop_logsumexp(x, y):
        out = np.zeros((len(x), 1), x.dtype)
        for i in range(len(x)):
            largest, scaled = -square(x, y, i, 0), 1.0
            for j in range(1, len(y)):
                f = -square(x, y, i, j)
                if f > largest:
                    scaled = scaled * math.exp(largest - f) + 1
                    largest = f
                else:
                    scaled += math.exp(f - largest)
            out[i, 0] = largest + math.log(scaled)
        return out

    @njit
    def loop_nearest(x, y):
        out = np.zeros((len(x), K), np.int64)
        best = np.empty(K, x.dtype)
        for i in range(len(x)):
            best[:] = np.inf
            for j in range(len(y)):
                s = square(x, y, i, j)
                if s < best[K - 1]:
                    k = K - 1
                    while k > 0 and s < best[k - 1]:
                        best[k], out[i, k] = best[k - 1], out[i, k - 1]
                        k -= 1
                    best[k], out[i, k] = s, j
        return out

    if t.expanded:
        return None
    loops = (loop_sum, loop_gradient, loop_tutorial, loop_tutorial_gradient, loop_logsumexp, loop_nearest)
    loop = dict(zip(BLOCKS, loops, strict=True))[t.kind]
    names = tuple(t.variables)
    return Run(lambda v: loop(*[v[name] for name in names]))


def pykeops(t):
    import pykeops
    from pykeops.numpy import Genred

    if t.expanded:
        return None
    pykeops.set_verbose(False)
    routine = Genred(t.formula, t.texts, reduction_op=t.reduction, axis=t.axis, opt_arg=t.K)
    names = tuple(t.variables)

    def run(v):
        out = routine(*[v[name] for name in names], backend="CPU")
        return out.astype(np.int64) if t.kind == "nearest" else out

    return Run(run)


def sklearn(t):
    from sklearn.metrics import pairwise_distances_argmin
    from sklearn.neighbors import NearestNeighbors

    if t.kind != "nearest" or not t.expanded:
        return None
    if t.K is None:
        return Run(lambda v: pairwise_distances_argmin(v["x"], v["y"])[:, None], 256)
    model = NearestNeighbors(n_neighbors=t.K, algorithm="brute")
    return Run(lambda v: model.fit(v["y"]).kneighbors(v["x"], return_distance=False), 256)


def faiss(t):
    import faiss

    if t.kind != "nearest" or not t.expanded or t.dtype != "float32":
        return None
    faiss.omp_set_num_threads(1)

    def run(v):
        index = faiss.IndexFlatL2(t.D)
        index.add(v["y"])
        return index.search(v["x"], t.K or 1)[1]

    return Run(run, 256)


PEERS = {  # by name: distribution, and what makes its runs
    "pykeops": ("pykeops", pykeops),
    "torch": ("torch", torch),
    "jax": ("jax", jax),
    "numpy": ("numpy", numpy),
    "numba": ("numba", numba),
    "scipy": ("scipy", scipy),
    "sklearn": ("scikit-learn", sklearn),
    "faiss": ("faiss-cpu", faiss),
}


def reference(t, v):
    """The result in float64, by differences, of rows that are few enough."""
    t = t._replace(dtype="float64", expanded=False)
    return chunks(t, NumPy(), np.concatenate, megabyte(t))({name: a.astype(np.float64) for name, a in v.items()})
