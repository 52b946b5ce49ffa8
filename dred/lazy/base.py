"""What LazyTensors of real and of complex numbers have in common: a formula and its arrays, shapes, reductions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dred import options
from dred.errors import ArgumentError, InputError, OptionError, human
from dred.formula import derive
from dred.formula.construct import arguments
from dred.formula.language import Variable
from dred.formula.node import Node, canonical, intern, toposort, var
from dred.formula.ops import OPS
from dred.formula.oracle import dense
from dred.formula.rewrite import expand
from dred.inputs import kind_of, native
from dred.lazy import indexing, kinds, pairs
from dred.lazy.call import Call, places, routine
from dred.lazy.given import Held, Read, read, renamed, what
from dred.lazy.refused import REFUSED
from dred.reductions import REDUCTIONS

if TYPE_CHECKING:
    from typing import Self

LARGEST = 1 << 28  # bytes of the dense array that `numpy.asarray` makes
_SWAPPED = {"IndexI": "IndexJ", "IndexJ": "IndexI", "IndexIParts": "IndexJParts", "IndexJParts": "IndexIParts"}


class Lazy:
    """A formula F(i, j) and the arrays of its variables; see `LazyTensor`, which is one of real numbers."""

    __slots__ = ("__weakref__", "held", "node")
    __array_ufunc__ = None  # array * lazy is for LazyTensor to compute
    __array_priority__ = 1000.0

    node: Node
    held: Mapping[Node, Held]
    is_complex: ClassVar[bool]
    _kinds: ClassVar[dict[bool, type[Any]]] = {}
    _call: ClassVar[type[Call]] = Call  # what a reduction is

    def __init_subclass__(cls, is_complex: bool | None = None) -> None:
        if is_complex is not None:
            cls.is_complex = is_complex
            Lazy._kinds[is_complex] = cls

    def __new__(cls, x: Any, axis: int | None = None, is_complex: bool = False) -> Self:
        found: Self = Lazy._made(read(x, axis, is_complex or cls.is_complex))
        return found

    @staticmethod
    def _made(read: Read) -> Any:
        """A LazyTensor, or a ComplexLazyTensor."""
        of = next((each.kinds for each in read.held.values() if each.kinds), Lazy._kinds)
        self = object.__new__(of[read.is_complex])
        object.__setattr__(self, "node", read.node)
        object.__setattr__(self, "held", read.held)
        return self

    @staticmethod
    def _of(node: Node, is_complex: bool, *parts: Lazy) -> Any:
        """A formula made of those of others."""
        return Lazy._made(Read(node, {k: each for part in parts for k, each in part.held.items()}, is_complex))

    def _like(self, node: Node, *others: Lazy) -> Self:
        """A formula made of this one and of others, of as real or complex numbers as this one."""
        found: Self = Lazy._of(node, self.is_complex, self, *others)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        reason = REFUSED.get(name, "nothing of a LazyTensor can be changed: make another one")
        raise AttributeError(f"{name} cannot be set: {reason}")

    if not TYPE_CHECKING:  # to type checkers, what is not there does not exist

        def __getattr__(self, name):
            kind = type(self).__name__
            if name in REFUSED:
                raise AttributeError(f"a {kind} has no {name}: {REFUSED[name]}")
            if self.is_complex and hasattr(Lazy._kinds[False], name):
                raise AttributeError(f"a {kind} has no {name}, which is for real numbers: {kinds.HINT}")
            raise AttributeError(f"{kind!r} object has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.node, dict(self.held), self.is_complex)

    # -- what it is ------------------------------------------------------------------------------------------------

    @property
    def _width(self) -> int:
        """Components of the formula for one of F(i, j)."""
        return 2 if self.is_complex else 1

    @property
    def D(self) -> int:
        """The components of F(i, j)."""
        return self.node.dim // self._width

    @property
    def batchdims(self) -> tuple[int, ...]:
        """What the dimensions in front of its arrays broadcast to.

        Raises
        ------
        InputError
            They do not.
        """
        lead = [each.batch for each in self.held.values()]
        try:
            return tuple(map(int, np.broadcast_shapes(*lead)))
        except ValueError:
            each = " and ".join(map(str, dict.fromkeys(filter(None, lead))))
            raise InputError(f"batch dimensions must be equal or 1: arrays have {each}") from None

    @property
    def nbatchdims(self) -> int:
        """How many dimensions a batch has: `axis` of reductions counts them too."""
        return max((len(each.batch) for each in self.held.values()), default=0)

    @property
    def _shape(self) -> tuple[int | None, ...]:
        """(..., M, N, D), also where D is 1."""
        return (*self.batchdims, self._rows(0), self._rows(1), self.D)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """(..., M, N, D), or (..., M, N) where D is 1, as that of the dense array.

        M (N) is 1 where it does not vary with i (j), None where no array says it.
        """
        return self._shape[:-1] if self.D == 1 else self._shape

    @property
    def ndim(self) -> int:
        """The dimensions of the dense array: without a batch 3, or 2 where D is 1."""
        return len(self.shape)

    def dim(self) -> int:
        """The dimensions of `_shape`, (..., M, N, D), as KeOps counts them: 3 without a batch."""
        return self.nbatchdims + 3

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """The type of its numbers, which is that of its arrays; None where it has none.

        Raises
        ------
        DtypeError
            Complex numbers, made of arrays of float16 or bfloat16.
        """
        found = next((each.rows.dtype for each in self.held.values() if each.rows is not None), None)
        return np.dtype(pairs.complex_type(found)) if self.is_complex and found is not None else found

    def _rows(self, cat: int) -> int | None:
        mine = [each.rows for n, each in self.held.items() if n.attrs[1] == cat]
        rows = sorted({int(n) for array in mine if array is not None and (n := array.shape[-2]) == n})  # NaN: unknown
        if len(rows) > 1:
            raise InputError(
                f"vectors for each {'ij'[cat]} come from arrays of {' and '.join(map(str, rows))} rows: they must have "
                "as many"
            )
        return rows[0] if rows else None if mine else 1

    def __repr__(self) -> str:
        *batch, M, N, D = self._shape
        front = f"batch={tuple(batch)}, " if batch else ""
        return f"{type(self).__name__}({front}M={M}, N={N}, D={D}, {'no type' if self.dtype is None else self.dtype})"

    def __bool__(self) -> bool:
        raise TypeError("a LazyTensor is no truth: it is a vector for every pair; reduce it, or use ifelse")

    def __len__(self) -> int:
        raise TypeError("a LazyTensor has no length: it has a shape, (M, N, D), or (M, N) where D is 1")

    def __iter__(self) -> Any:
        raise TypeError("a LazyTensor cannot be iterated over: x[:, :, k] is its k-th component")

    def __float__(self) -> float:
        raise TypeError("a LazyTensor is no number: reduce it first")

    def __complex__(self) -> complex:
        raise TypeError("a LazyTensor is no number: reduce it first")

    def __hash__(self) -> int:
        return id(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """The dense array (..., M, N, D), or (..., M, N) where D is 1, by the float64 references of the operations."""
        if copy is False:
            raise ValueError("a LazyTensor holds no dense array: one is computed, which is a copy")
        (M, N, D), batch, width = self._shape[-3:], self.batchdims, self.node.dim
        if M is None or N is None or any(each.rows is None for each in self.held.values()):
            raise InputError("a LazyTensor of variables without arrays has no dense array")
        if (size := prod(batch) * M * N * width * 8) > LARGEST:
            raise InputError(
                f"the dense array of {self!r} would take {human(size)}, more than {human(LARGEST)}: reduce it instead"
            )
        held = [(n.attrs[0], len(each.batch), _on_host(each.rows)) for n, each in self.held.items()]
        each = {ind: np.broadcast_to(rows, (*batch, *rows.shape[lead:])) for ind, lead, rows in held}
        values = np.empty((*batch, M, N, width))
        for place in np.ndindex(*batch):
            values[place] = dense(self.node, {ind: rows[place] for ind, rows in each.items()}, (M, N))
        found = values.view(complex) if self.is_complex else values
        found = found.astype(dtype or self.dtype or found.dtype)
        return found[..., 0] if D == 1 else found

    # -- operations ------------------------------------------------------------------------------------------------

    def call(self, operation: str, *args: Any) -> Any:
        """An operation of the table, of this and of other LazyTensors, arrays and numbers.

        Parameters
        ----------
        operation : str
            Its name in formulas, such as "SqDist".
        *args
            Its arguments in order; this tensor is one of them. Static ones are integers, or lists of them.

        Returns
        -------
        LazyTensor or ComplexLazyTensor
            What it is of complex numbers, where there are some.

        Raises
        ------
        FormulaError
            Too many arguments or too few, dimensions that do not fit, or complex numbers where they have no meaning.
        """
        op, first = OPS[operation], len(OPS[operation].args)
        parts = [lazy(each) for each in args[:first]]
        words = [*op.attrs, *[""] * len(args)]
        statics = [indexing.static(word in op.lists, each) for word, each in zip(words, args[first:], strict=False)]
        nodes, attrs = arguments(op, [*(part.node for part in parts), *statics], {})
        node, is_complex = kinds.apply(op, nodes, [part.is_complex for part in parts], attrs)
        return Lazy._of(node, is_complex, *parts)

    def derived(self, name: str, *args: Any) -> Any:
        """A derivative of the formula, by the name that it has in formulas, such as "Grad", and its other arguments.

        The first of them is the variable; complex vectors count as real ones of twice the components.

        Raises
        ------
        ArgumentError
            The variable is none, or complex numbers where they have no meaning.
        FormulaError
            Another number of arguments, or dimensions that do not fit.
        """
        words = derive.counted(derive.DERIVED[name].signature, [self, *args])
        parts = [self, *map(lazy, args)]
        if "v" in words and parts[1].node.op != "Var":
            what_it_is = "an expression" if isinstance(args[0], Lazy) else what(args[0])
            raise ArgumentError(
                f"{name}: derivatives are by a variable, which is a LazyTensor made of an array, got {what_it_is}"
            )
        node, is_complex = kinds.derived(name, [part.node for part in parts], [part.is_complex for part in parts])
        return Lazy._of(node, is_complex, *parts)

    def __pos__(self) -> Self:
        return self

    def __pow__(self, other: Any) -> Self:
        return self.power(other)

    def __rpow__(self, other: Any) -> Self:
        found: Self = lazy(other).power(self)  # type: ignore[assignment]
        return found

    def power(self, other: Any) -> Self:
        """To the power of a number or of a LazyTensor; of complex numbers, of an integer."""
        exponent = lazy(other)
        return self._like(kinds.power(self.node, self.is_complex, exponent.node, exponent.is_complex), exponent)

    def conj(self) -> Self:
        """The complex conjugate."""
        return self._like(self.call("Conj", self).node) if self.is_complex else self

    # -- components ------------------------------------------------------------------------------------------------

    def elem(self, i: int) -> Self:
        """Component i."""
        return self[..., indexing.component(i, self.D)]

    def extract(self, i: int, d: int) -> Self:
        """The d components from i on."""
        return self._components(range(*indexing.block(i, d, self.D)))

    def __getitem__(self, key: Any) -> Self:
        """Components: x[:, :, 2], x[..., -1], x[..., 1:4], x[..., ::-1], and x[2], x[1:4]; i and j have no index."""
        return self._components(indexing.chosen(key, self.D, self.nbatchdims + 2))

    def _components(self, chosen: range) -> Self:
        if chosen.step != 1:
            return joined([self._components(range(k, k + 1)) for k in chosen])  # type: ignore[no-any-return]
        first, size = chosen.start * self._width, len(chosen) * self._width
        attrs: tuple[int, ...] = (first, size) if size > 1 else (first,)
        return self._like(expand("Extract" if size > 1 else "Elem", (self.node,), attrs))

    # -- as a matrix, for SciPy's LinearOperator -------------------------------------------------------------------

    def __matmul__(self, v: Any, **how: Any) -> Any:
        """The sum over j of F(i, j) * v_j.

        v is an array (..., N, E) or (N,), or a LazyTensor. The result has shape (..., M, E); (..., M) for v (N,), where
        D is 1.
        """
        if isinstance(v, Lazy):
            product = self.call("Mult", self, v)
            return product.reduction("Sum", axis=product.nbatchdims + 1, **how)
        array = native(v, "the right side of @")
        if kind_of(array) is None or array.ndim == 0:
            raise InputError(f"the right side of @ is a LazyTensor or an array (..., N, E) or (N,), got {what(v)}")
        rows = array[:, None] if array.ndim == 1 else array
        front = [slice(None)] * (rows.ndim - 2)
        right = Lazy._made(read(rows, 1) if rows.ndim == 2 else read(rows[(*front, None)], None, cat=1))
        product = self.call("Mult", self, right)
        found = product.reduction("Sum", axis=product.nbatchdims + 1, **how)
        if array.ndim > 1 or self.D > 1 or isinstance(found, Call):
            return found
        return found[(*[slice(None)] * (found.ndim - 1), 0)]

    @property
    def T(self) -> Self:
        """The same with i and j exchanged."""
        new: dict[Node, Node] = {}
        for n in toposort([self.node]):
            if n.op in _SWAPPED:
                new[n] = intern(_SWAPPED[n.op], (), n.attrs, n.dim)
        for n in self.held:
            if n.attrs[1] < 2:
                new[n] = var(n.attrs[0], n.dim, 1 - n.attrs[1])
        held = {new.get(n, n): each for n, each in self.held.items()}
        found: Self = Lazy._made(Read(derive.substitute(self.node, new), held, self.is_complex))
        return found

    def t(self) -> Self:
        """The same with i and j exchanged."""
        return self.T

    def matvec(self, v: Any) -> Any:
        """`self @ v`, v of shape (N,) or (N, 1)."""
        return self @ v

    def rmatvec(self, v: Any) -> Any:
        """`self.T.conj() @ v`, v of shape (M,) or (M, 1)."""
        return self.T.conj() @ v

    matmat, rmatmat = matvec, rmatvec

    # -- reductions ------------------------------------------------------------------------------------------------

    def reduction(
        self,
        reduction_op: str,
        other: Any = None,
        opt_arg: Any = None,
        axis: int | None = None,
        dim: int | None = None,
        call: bool = True,
        *,
        dtype_acc: Any = "auto",
        use_double_acc: bool = False,
        sum_scheme: str = "auto",
        use_fast_math: bool = False,
        expand: bool = False,
        enable_chunks: bool = True,
        rec_multVar_highdim: bool = False,
        optional_flags: Any = None,
        backend: str = "auto",
        device_id: int = -1,
        ranges: Any = None,
        out: Any = None,
    ) -> Any:
        """Reduce over i or j.

        Parameters
        ----------
        reduction_op : str
            Its name in `Genred`.
        other : LazyTensor or array, optional
            The second formula G: weights.
        opt_arg
            As in `Genred`.
        axis, dim : int
            0: over i; 1: over j; of a batch the dimensions in front count. By either name.
        call : bool
            False: nothing is computed, and a `Call` is given.
        dtype_acc, use_double_acc, sum_scheme, use_fast_math, expand, enable_chunks, rec_multVar_highdim
            As in `Genred`.
        optional_flags
            None: no compiler is called that would take them.
        backend, device_id, ranges, out
            As in a call of `Genred`.

        Returns
        -------
        array or tuple of arrays
            As a call of `Genred` gives them; complex ones of complex numbers. A `Call`, where some variables have no
            array.

        Raises
        ------
        OptionError
            Another reduction or axis, an option that is not accepted, or a reduction that complex numbers have not.
        InputError, DtypeError
            Arrays of several types, or that have different numbers of rows.
        """
        if reduction_op not in REDUCTIONS:
            raise OptionError(f"unknown reduction {reduction_op!r}: there are {', '.join(REDUCTIONS)}")
        if optional_flags:
            raise OptionError(f"optional_flags={optional_flags!r}: no compiler is called that would take them")
        parts = [self] if other is None else [self, lazy(other)]
        over, first = axis if dim is None else dim, max(part.nbatchdims for part in parts)
        if (axis is not None and dim is not None) or isinstance(over, bool) or over not in (first, first + 1):
            raise OptionError(
                f"axis={axis!r}, dim={dim!r}: one of them is {first} (reduce over i) or {first + 1} (reduce over j)"
            )
        is_complex = kinds.reduced(reduction_op, [part.is_complex for part in parts])
        entry = REDUCTIONS[reduction_op]
        options.second(entry, canonical(parts[1].node) if parts[1:] else None)
        everything = {k: h for part in parts for k, h in part.held.items()}
        new, held = places([part.node for part in parts], everything)
        if is_complex and (half := [h.rows.dtype for h in held if h.rows is not None]):
            pairs.complex_type(half[0])
        roots = [derive.limited(derive.substitute(part.node, new)) for part in parts]
        variables = tuple(sorted({Variable(n.attrs[0], n.dim, n.attrs[1]) for n in new.values()}))
        weight, axis, parameter = roots[1] if roots[1:] else None, int(over) - first, options.parameter(entry, opt_arg)
        chosen = routine(
            reduction_op, roots[0], weight, axis, parameter, variables,
            (dtype_acc, use_double_acc, sum_scheme, use_fast_math), expand,
        )  # fmt: skip
        how = {"backend": backend, "device_id": device_id, "ranges": ranges, "out": out}
        lost = {n: h for n, h in everything.items() if n not in new}
        kind = next((part._call for part in parts if part._call is not Call), Call)
        found = kind(chosen, tuple(held), is_complex, how, {n: new[n].attrs[0] for n in new}, lost)
        return found() if call and all(h.array is not None for h in held) else found

    def _over(self, name: str, axis: int, dim: int | None, how: Mapping[str, Any]) -> Any:
        """What is both an operation on components (axis=-1, or 2 without a batch) and a reduction."""
        over, first = axis if dim is None else dim, self.nbatchdims
        if over not in (first + 2, -1):
            return self.reduction(name, axis=over, **how)
        if how:
            raise OptionError(
                f"{next(iter(how))} is for reductions over i or j (axis={first} or {first + 1}), not over components"
            )
        return self.call(name, self)


def lazy(x: Any) -> Lazy:
    """A LazyTensor as it is, anything else as one."""
    return x if isinstance(x, Lazy) else Lazy._made(read(x, None))


def joined(tensors: Sequence[Any], axis: int = -1) -> Any:
    """The components of several, one after another.

    Raises
    ------
    OptionError, InputError
        Another axis, or nothing.
    """
    parts = [*map(lazy, tensors)]
    last = max((part.nbatchdims for part in parts), default=0) + 2
    if axis not in (last, -1):
        raise OptionError(f"axis={axis!r}: components are concatenated, which is axis=-1 or {last}")
    if not parts:
        raise InputError("nothing to concatenate: pass a tuple of LazyTensors, arrays or numbers")
    first, *rest = parts
    for other in rest:
        first = first.call("Concat", first, other)
    return first


def _on_host(rows: Any) -> Any:
    return rows.get() if kind_of(rows) == "cupy" else np.asarray(rows)


def _again(node: Node, held: Mapping[Node, Held], is_complex: bool) -> Any:
    """What was pickled: its variables are renamed, since their numbers are those of another process."""
    new = renamed(held)
    return Lazy._made(Read(derive.substitute(node, new), {new.get(n, n): h for n, h in held.items()}, is_complex))
