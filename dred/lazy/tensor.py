"""LazyTensor: formulas written as arithmetic on arrays of points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from dred import options
from dred.errors import ArgumentError, IndexRangeError, InputError, OptionError, human
from dred.formula import derive
from dred.formula.construct import arguments, number
from dred.formula.language import Variable
from dred.formula.node import Node, canonical, intern, toposort, var
from dred.formula.op import Op
from dred.formula.ops import OPS
from dred.formula.oracle import dense
from dred.formula.rewrite import expand, power
from dred.inputs import kind_of, native
from dred.lazy.call import Call, joined, places, routine
from dred.lazy.given import read, what, written
from dred.reductions import REDUCTIONS

LARGEST = 1 << 28  # bytes of the dense array that `numpy.asarray` makes
_SWAPPED = {"IndexI": "IndexJ", "IndexJ": "IndexI", "IndexIParts": "IndexJParts", "IndexJParts": "IndexIParts"}


@dataclass(frozen=True, eq=False, repr=False, init=False)
class LazyTensor:
    """A vector F(i, j) for every pair of rows, of which nothing is computed until it is reduced.

    Parameters
    ----------
    x : array, number, list of numbers, or (ind, dim, cat)
        A NumPy, dask or CuPy array (or one of PyTorch, JAX, ..., by DLPack) of shape (M, 1, D), a vector for each i;
        (1, N, D), for each j; (D,) or (1, 1, D), a parameter; or of two dimensions with `axis`. Numbers are constants,
        exact in every type. A tuple of three integers is a variable without an array: argument `ind` of what a
        reduction then gives, of `dim` components and category `cat` (0: for each i, 1: for each j, 2: a parameter).
    axis : {0, 1}, optional
        Of an array of two dimensions: 0, a row for each i; 1, for each j.

    Attributes
    ----------
    node : Node
        The formula.
    held : mapping of Node to array
        The variables that it was made of, with their arrays of rows (None: symbolic ones); also those that the formula
        has lost, as x * 0 has: they say how many rows there are.

    Raises
    ------
    InputError
        Another shape, or something that is no array.

    Examples
    --------
    >>> import numpy as np
    >>> from dred import Vi, Vj
    >>> rng = np.random.default_rng(0)
    >>> x, y, b = Vi(rng.random((1000, 3))), Vj(rng.random((2000, 3))), rng.random((2000, 2))
    >>> K = (-((x - y) ** 2).sum(-1)).exp()
    >>> K
    LazyTensor(M=1000, N=2000, D=1, float64)
    >>> (K @ b).shape, K.sum(axis=0).shape, x.sqdist(y).argKmin(5, axis=1).shape
    ((1000, 2), (2000, 1), (1000, 5))
    """

    node: Node
    held: Mapping[Node, Any]

    function = staticmethod(lambda routine: routine)  # what its reductions are computed by
    __array_ufunc__ = None  # array * lazy is for LazyTensor to compute
    __array_priority__ = 1000.0

    def __init__(self, x: Any, axis: int | None = None) -> None:
        node, held = read(x, axis)
        object.__setattr__(self, "node", node)
        object.__setattr__(self, "held", held)

    @classmethod
    def _of(cls, node: Node, *parts: LazyTensor) -> LazyTensor:
        self: LazyTensor = object.__new__(joined([cls, *map(type, parts)]))
        object.__setattr__(self, "node", node)
        object.__setattr__(self, "held", {k: array for part in parts for k, array in part.held.items()})
        return self

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """D, the components of F(i, j)."""
        return self.node.dim

    @property
    def shape(self) -> tuple[int | None, ...]:
        """(M, N, D), or (M, N) where D is 1, as that of the dense array.

        M (N) is 1 where it does not vary with i (j), None where no array says it.
        """
        rows = (self._rows(0), self._rows(1))
        return rows if self.dim == 1 else (*rows, self.dim)

    @property
    def ndim(self) -> int:
        """3, or 2 where D is 1."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The type of its arrays; None where it has none."""
        return next((array.dtype for array in self.held.values() if array is not None), None)

    def _rows(self, cat: int) -> int | None:
        mine = [array for n, array in self.held.items() if n.attrs[1] == cat]
        rows = sorted({int(array.shape[0]) for array in mine if array is not None})
        if len(rows) > 1:
            raise InputError(
                f"vectors for each {'ij'[cat]} come from arrays of {' and '.join(map(str, rows))} rows: they must have "
                "as many"
            )
        return rows[0] if rows else None if mine else 1

    def __repr__(self) -> str:
        M, N = self.shape[:2]
        return f"LazyTensor(M={M}, N={N}, D={self.dim}, {'no type' if self.dtype is None else self.dtype})"

    def __bool__(self) -> bool:
        raise TypeError("a LazyTensor is no truth: it is a vector for every pair; reduce it, or use ifelse")

    def __len__(self) -> int:
        raise TypeError("a LazyTensor has no length: it has a shape, (M, N, D), or (M, N) where D is 1")

    def __iter__(self) -> Any:
        raise TypeError("a LazyTensor cannot be iterated over: x[:, :, k] is its k-th component")

    def __float__(self) -> float:
        raise TypeError("a LazyTensor is no number: reduce it first")

    def __hash__(self) -> int:
        return id(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """The dense array (M, N, D), or (M, N) where D is 1, by the float64 references of the operations."""
        if copy is False:
            raise ValueError("a LazyTensor holds no dense array: one is computed, which is a copy")
        (M, N), D = self.shape[:2], self.dim
        if M is None or N is None or any(array is None for array in self.held.values()):
            raise InputError("a LazyTensor of variables without arrays has no dense array")
        if (size := M * N * D * 8) > LARGEST:
            raise InputError(
                f"the dense array of {self!r} would take {human(size)}, more than {human(LARGEST)}: reduce it instead"
            )
        arrays = {n.attrs[0]: np.asarray(array) for n, array in self.held.items()}
        values = np.broadcast_to(dense(self.node, arrays, (M, N)), (M, N, D)).astype(dtype or self.dtype or float)
        return values[..., 0] if D == 1 else values

    # -- operations ------------------------------------------------------------------------------------------------

    def call(self, operation: str, *args: Any, **named: Any) -> LazyTensor:
        """An operation of the table, of this and of other LazyTensors, arrays and numbers.

        Parameters
        ----------
        operation : str
            Its name in formulas, such as "SqDist".
        *args, **named
            Its arguments in order, or by the names that `docs/operations.md` gives them; this tensor is one of them.
            Static ones are integers, or lists of them.

        Raises
        ------
        FormulaError
            Too many arguments or too few, or dimensions that do not fit.
        """
        op = OPS[operation]
        parts: list[LazyTensor] = []

        def given(word: str, value: Any) -> Any:
            if word in op.attrs:
                return _static(op, word, value)
            parts.append(lazy(value))
            return parts[-1].node

        words = [*op.args, *op.attrs]
        plain = [given(words[k] if k < len(words) else "", value) for k, value in enumerate(args)]
        nodes, attrs = arguments(op, plain, {word: given(word, value) for word, value in named.items()})
        return LazyTensor._of(expand(op.name, nodes, attrs), *parts)

    def __add__(self, other: Any) -> LazyTensor:
        return self.call("Add", self, other)

    def __radd__(self, other: Any) -> LazyTensor:
        return self.call("Add", other, self)

    def __sub__(self, other: Any) -> LazyTensor:
        return self.call("Subtract", self, other)

    def __rsub__(self, other: Any) -> LazyTensor:
        return self.call("Subtract", other, self)

    def __mul__(self, other: Any) -> LazyTensor:
        return self.call("Mult", self, other)

    def __rmul__(self, other: Any) -> LazyTensor:
        return self.call("Mult", other, self)

    def __truediv__(self, other: Any) -> LazyTensor:
        return self.call("Divide", self, other)

    def __rtruediv__(self, other: Any) -> LazyTensor:
        return self.call("Divide", other, self)

    def __or__(self, other: Any) -> LazyTensor:
        return self.call("Scalprod", self, other)

    def __ror__(self, other: Any) -> LazyTensor:
        return self.call("Scalprod", other, self)

    def __mod__(self, other: Any) -> LazyTensor:
        return self.mod(other)

    def __pow__(self, other: Any) -> LazyTensor:
        return self.power(other)

    def __rpow__(self, other: Any) -> LazyTensor:
        return lazy(other).power(self)

    def __neg__(self) -> LazyTensor:
        return self.call("Minus", self)

    def __pos__(self) -> LazyTensor:
        return self

    def __abs__(self) -> LazyTensor:
        return self.call("Abs", self)

    def __lt__(self, other: Any) -> LazyTensor:
        return self.call("LessThan", self, other)

    def __le__(self, other: Any) -> LazyTensor:
        return self.call("LessOrEqual", self, other)

    def __gt__(self, other: Any) -> LazyTensor:
        return self.call("LessThan", other, self)

    def __ge__(self, other: Any) -> LazyTensor:
        return self.call("LessOrEqual", other, self)

    def __eq__(self, other: Any) -> LazyTensor:  # type: ignore[override]
        return self.call("Equal", self, other)

    def __ne__(self, other: Any) -> LazyTensor:  # type: ignore[override]
        return self.call("NotEqual", self, other)

    def mod(self, modulus: Any, offset: Any = 0) -> LazyTensor:
        """The remainder in [offset, offset + modulus)."""
        return self.call("Mod", self, modulus, offset)

    def round(self, d: int = 0) -> LazyTensor:
        """To d decimals."""
        return self.call("Round", self, d)

    def power(self, exponent: Any) -> LazyTensor:
        """To the power of a number or of a LazyTensor."""
        other = lazy(exponent)
        return LazyTensor._of(power(self.node, other.node), self, other)

    def __matmul__(self, v: Any) -> Any:
        """The sum over j of F(i, j) * v_j.

        v is an array (N, E) or (N,), or a LazyTensor. The result has shape (M, E); (M,) for v (N,), where D is 1.
        """
        if isinstance(v, LazyTensor):
            return (self * v).reduce("Sum", axis=1)
        array = native(v, "the right side of @")
        if kind_of(array) is None or array.ndim not in (1, 2):
            raise InputError(f"the right side of @ is a LazyTensor or an array (N, E) or (N,), got {what(v)}")
        found = (self * Vj(array if array.ndim == 2 else array[:, None])).reduce("Sum", axis=1)
        return found[:, 0] if array.ndim == 1 and self.dim == 1 else found

    @property
    def T(self) -> LazyTensor:
        """The same with i and j exchanged."""
        new = {n: intern(_SWAPPED[n.op], (), n.attrs, n.dim) for n in toposort([self.node]) if n.op in _SWAPPED}
        new |= {n: var(n.attrs[0], n.dim, 1 - n.attrs[1]) for n in self.held if n.attrs[1] < 2}
        swapped = LazyTensor._of(derive.substitute(self.node, new), self)
        object.__setattr__(swapped, "held", {new.get(n, n): array for n, array in self.held.items()})
        return swapped

    def t(self) -> LazyTensor:
        """The same with i and j exchanged."""
        return self.T

    def __getitem__(self, key: Any) -> LazyTensor:
        """Components: x[:, :, 2], x[..., -1], x[..., 1:4], x[..., ::-1]. i and j cannot be indexed."""
        words = key if isinstance(key, tuple) else (key,)
        if any(word is Ellipsis for word in words):
            words = tuple(word for word in words if word is not Ellipsis)
            words = (slice(None),) * (3 - len(words)) + words
        rows = [word for word in words[:2] if not (isinstance(word, slice) and word == slice(None))]
        if len(words) != 3 or rows:
            raise IndexRangeError(f"x[{written(key)}]: only components are taken, as in x[:, :, 2] and x[..., 1:4]")
        last = words[2]
        if isinstance(last, slice):
            chosen = range(self.dim)[last]
            if not chosen:
                raise IndexRangeError(f"x[{written(key)}] has no components: x has {self.dim}")
            if chosen.step == 1:
                return self.call("Extract", self, chosen.start, len(chosen))
            return LazyTensor.concatenate([self.call("Elem", self, k) for k in chosen])
        if isinstance(last, bool) or not isinstance(last, int | np.integer):
            raise IndexRangeError(f"x[{written(key)}]: components are taken by integers and slices")
        if not -self.dim <= last < self.dim:
            raise IndexRangeError(f"x[{written(key)}]: x has {self.dim} components")
        return self.call("Elem", self, int(last) % self.dim)

    @staticmethod
    def concatenate(tensors: Sequence[Any], axis: int = -1) -> LazyTensor:
        """The components of several, one after another."""
        if axis not in (2, -1):
            raise OptionError(f"axis={axis!r}: components are concatenated, which is axis=-1 or 2")
        first, *rest = map(lazy, tensors)
        for other in rest:
            first = first.call("Concat", first, other)
        return first

    def derived(self, name: str, v: Any, *more: Any) -> LazyTensor:
        """A derivative of the formula, by the name that it has in formulas, such as "Grad"; v is a variable.

        Raises
        ------
        ArgumentError
            v is no variable.
        FormulaError
            Another number of arguments, or dimensions that do not fit.
        """
        if not isinstance(v, LazyTensor) or v.node.op != "Var":
            what_it_is = "an expression" if isinstance(v, LazyTensor) else what(v)
            raise ArgumentError(
                f"{name}: derivatives are by a variable, which is a LazyTensor made of an array, got {what_it_is}"
            )
        others = [*map(lazy, more)]
        node = derive.derived(name, [self.node, v.node, *(other.node for other in others)])
        return LazyTensor._of(node, self, v, *others)

    # -- as a matrix, for SciPy's LinearOperator -------------------------------------------------------------------

    def matvec(self, v: Any) -> Any:
        """`self @ v`, v of shape (N,) or (N, 1)."""
        return self @ v

    def rmatvec(self, v: Any) -> Any:
        """`self.T @ v`, v of shape (M,) or (M, 1)."""
        return self.T @ v

    matmat, rmatmat = matvec, rmatvec

    # -- reductions ------------------------------------------------------------------------------------------------

    def reduce(
        self,
        reduction: str,
        axis: int | None = None,
        opt_arg: Any = None,
        weight: Any = None,
        *,
        dim: int | None = None,
        call: bool = True,
        dtype_acc: Any = "auto",
        use_double_acc: bool = False,
        sum_scheme: str = "auto",
        use_fast_math: bool = False,
        expand: bool = False,
        enable_chunks: bool = True,
        rec_multVar_highdim: bool = False,
        **how: Any,
    ) -> Any:
        """Reduce over i or j.

        Parameters
        ----------
        reduction : str
            Its name in `Genred`.
        axis, dim : int
            0: over i; 1: over j. By either name.
        opt_arg
            As in `Genred`.
        weight : LazyTensor or array, optional
            The second formula G.
        call : bool
            False: nothing is computed, and a `Call` is given.
        dtype_acc, use_double_acc, sum_scheme, use_fast_math, expand, enable_chunks, rec_multVar_highdim
            As in `Genred`.
        **how
            backend, device_id, ranges and out, as in a call of `Genred`.

        Returns
        -------
        array or tuple of arrays
            As a call of `Genred` gives them. A `Call`, where some variables have no array.

        Raises
        ------
        OptionError
            Another reduction or axis, or an option that is not accepted.
        InputError, DtypeError
            Arrays of several types, or that have different numbers of rows.
        """
        if reduction not in REDUCTIONS:
            raise OptionError(f"unknown reduction {reduction!r}: there are {', '.join(REDUCTIONS)}")
        over = axis if dim is None else dim
        if (axis is not None and dim is not None) or isinstance(over, bool) or over not in (0, 1):
            raise OptionError(f"axis={axis!r}, dim={dim!r}: one of them is 0 (reduce over i) or 1 (reduce over j)")
        parts = [self] if weight is None else [self, lazy(weight)]
        entry = REDUCTIONS[reduction]
        options.second(entry, canonical(parts[1].node) if parts[1:] else None)
        new, arrays = places([part.node for part in parts], {k: a for part in parts for k, a in part.held.items()})
        roots = [derive.limited(derive.substitute(part.node, new)) for part in parts]
        variables = tuple(sorted({Variable(n.attrs[0], n.dim, n.attrs[1]) for n in new.values()}))
        chosen = routine(
            reduction, roots[0], roots[1] if roots[1:] else None, int(over), options.parameter(entry, opt_arg),
            variables, (dtype_acc, use_double_acc, sum_scheme, use_fast_math), expand,
        )  # fmt: skip
        found = Call(joined(map(type, parts)).function(chosen), tuple(arrays))
        return found(**how) if call and all(array is not None for array in arrays) else found

    def sum(self, axis: int = -1, **how: Any) -> Any:
        """Of the components (axis=-1 or 2), a LazyTensor; over i or j (axis=0 or 1), see `reduce`."""
        return self._over("Sum", axis, how)

    def max(self, axis: int = -1, **how: Any) -> Any:
        """The largest component (axis=-1 or 2), a LazyTensor; over i or j (axis=0 or 1), see `reduce`."""
        return self._over("Max", axis, how)

    def min(self, axis: int = -1, **how: Any) -> Any:
        """The smallest component (axis=-1 or 2), a LazyTensor; over i or j (axis=0 or 1), see `reduce`."""
        return self._over("Min", axis, how)

    def argmax(self, axis: int = -1, **how: Any) -> Any:
        """The place of the largest component (axis=-1 or 2), a LazyTensor; over i or j (axis=0 or 1), see `reduce`."""
        return self._over("ArgMax", axis, how)

    def argmin(self, axis: int = -1, **how: Any) -> Any:
        """The place of the smallest component (axis=-1 or 2), a LazyTensor; over i or j (axis=0 or 1), see `reduce`."""
        return self._over("ArgMin", axis, how)

    def _over(self, name: str, axis: int, how: dict[str, Any]) -> Any:
        """What is both an operation and a reduction."""
        over = how.pop("dim", axis)
        if over not in (2, -1):
            return self.reduce(name, over, **how)
        if how:
            raise OptionError(f"{next(iter(how))} is for reductions over i or j (axis=0 or 1), not over components")
        return self.call(name, self)


def lazy(x: Any) -> LazyTensor:
    """A LazyTensor as it is, anything else as one."""
    return x if isinstance(x, LazyTensor) else LazyTensor(x)


def Vi(x: Any, dim: int | None = None) -> LazyTensor:
    """A vector for each i: of an array (M, D) or (M, 1, D); or `Vi(ind, dim)`, argument `ind` of a reduction."""
    return _variable(x, dim, 0)


def Vj(x: Any, dim: int | None = None) -> LazyTensor:
    """A vector for each j: of an array (N, D) or (1, N, D); or `Vj(ind, dim)`, argument `ind` of a reduction."""
    return _variable(x, dim, 1)


def Pm(x: Any, dim: int | None = None) -> LazyTensor:
    """A parameter: of an array (D,), a number or a list; or `Pm(ind, dim)`, argument `ind` of a reduction."""
    return _variable(x, dim, 2)


def _variable(x: Any, dim: int | None, cat: int) -> LazyTensor:
    if dim is not None:
        return LazyTensor((x, dim, cat))
    found = LazyTensor(x, axis=cat if cat < 2 and getattr(x, "ndim", 0) == 2 else None)
    kinds = ("vectors for each i", "vectors for each j", "a parameter")
    if found.node.op == "Var" and found.node.attrs[1] != cat:
        raise InputError(f"{what(x)} is {kinds[found.node.attrs[1]]}, not {kinds[cat]}")
    if found.node.op != "Var" and cat < 2:
        raise InputError(f"{kinds[cat]} are an array (rows, D), got {what(x)}")
    return found


def _static(op: Op, word: str, value: Any) -> Any:
    """A static argument as formulas have it: a tuple where a list is due, else a constant."""
    if word in op.lists:
        return tuple(int(each) for each in value)
    return number(Fraction(int(value))) if isinstance(value, int | np.integer) else lazy(value).node
