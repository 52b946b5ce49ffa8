"""Derivatives on the shared graph: reverse mode in one backward pass, forward mode by transposing it entry by entry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from dred.errors import ArgumentError, DerivativeError, DimensionError, LimitError
from dred.formula.node import Node, const, toposort, var, variables
from dred.formula.op import Op, length
from dred.formula.ops import OPS
from dred.formula.rewrite import build, construct, entry_text, expand, named

MAX_NODES = 100_000


def limited(node: Node) -> Node:
    """The formula itself, within the limit on its size."""
    if (count := len(toposort([node]))) > MAX_NODES:
        raise LimitError(f"the formula has {count} operations, the limit is {MAX_NODES}")
    return node


def several(what: str, count: int) -> None:
    """So many derivatives are within the limit on the size of a formula."""
    if count > MAX_NODES:
        raise LimitError(f"{what} takes {count} derivatives, the limit is {MAX_NODES}")


def fit(node: Node, dim: int) -> Node:
    """A cotangent for a value of length `dim`: what was repeated is summed, what was summed is repeated."""
    if node.dim == dim:
        return node
    return build("Sum", (node,)) if dim == 1 else build("SumT", (node,), (dim,))


class Call(NamedTuple):
    """An operation on arguments, and its result."""

    op: Op
    args: tuple[Node, ...]
    attrs: tuple[Any, ...]
    result: Node


def called(n: Node) -> Call:
    return Call(OPS[n.op], n.args, n.attrs, n)


ANNIHILATING = {"Mult": "ZeroMult", "TensorDot": "ZeroTensorDot"}  # products, and those that keep the zeros of a mask


def guarded(name: str, args: Sequence[Any], named: dict[str, Any]) -> Node:
    """`construct` with products that keep zeros."""
    return construct(ANNIHILATING.get(name, name), args, named)


def text(source: str, call: Call, masked: bool = False, **more: Node) -> Node:
    """Formula text of an entry of the table, for one call of the operation."""
    names = named(call.op, call.args, call.attrs) | {"y": call.result} | more
    return entry_text(call.op, source, names, guarded if masked else construct)


def flow(call: Call, e: Node, k: int, masked: bool) -> Node | None:
    """What the cotangent `e` of a call gives to its argument k, not yet of its dimension; None where nothing flows.

    A masked cotangent is 0 where a mask has put it so, and stays 0 there whatever it is multiplied with.
    """
    op = call.op
    if op.vjp:
        sources = op.vjp(tuple(a.dim for a in call.args), call.attrs) if callable(op.vjp) else op.vjp
        source = sources[k]
        return None if source is None else text(source, call, masked, e=e)
    source = op.partial[k]
    return None if source is None else build("ZeroMult" if masked else "Mult", (e, text(source, call)))


def pullback(call: Call, e: Node, k: int, masked: bool = False) -> Node | None:
    """The cotangent of argument k."""
    g = flow(call, e, k, masked)
    return None if g is None else fit(g, call.args[k].dim)


def depending(order: Iterable[Node], wrt: Iterable[Node]) -> set[Node]:
    """The nodes that read one of `wrt`, and these."""
    active = set(wrt)
    for n in order:
        if any(a in active for a in n.args):
            active.add(n)
    return active


def add(total: dict[Node, Node], key: Node, more: Node) -> None:
    total[key] = build("Add", (total[key], more)) if key in total else more


def zero(dim: int) -> Node:
    return expand("Zero", (), (dim,))


# -- reverse mode ------------------------------------------------------------------------------------------------------


def vjp(y: Node, wrt: Sequence[Node], e: Node, masked: bool = False) -> tuple[Node, ...]:
    """The cotangents of `wrt` for the cotangent `e` of `y`: sum over c of e[c] * d y[c] / d v, for each v.

    Reverse-mode differentiation (Linnainmaa 1976): each node is visited once, after all its users.

    Parameters
    ----------
    y : Node
    wrt : sequence of Node
    e : Node
        Of dimension `y.dim`.
    masked : bool
        Whether e is masked, see `flow`.

    Returns
    -------
    tuple of Node
        One of dimension `v.dim` for each v; zeros where y does not depend on v.

    Examples
    --------
    >>> from dred.formula.language import read
    >>> x, e = read("x", ["x = Vi(3)"]), read("e", ["e = Vi(1, 1)"])
    >>> print(vjp(read("SqNorm2(x)", ["x = Vi(3)"]), [x], e)[0])
    Mult(Var(1,1,0), Mult(2, Var(0,3,0)))
    """
    order = toposort([y])
    active = depending(order, wrt)
    cotangent: dict[Node, Node] = {y: fit(e, y.dim)}
    covered = {y} if masked else set()
    for n in reversed(order):
        if n not in cotangent or n not in active or not n.args:
            continue
        call, behind = called(n), n in covered
        for k, a in enumerate(n.args):
            g = pullback(call, cotangent[n], k, behind) if a in active else None
            if g is not None:
                add(cotangent, a, g)
                if behind or call.op.mask:
                    covered.add(a)
    return tuple(limited(cotangent.get(v) or zero(v.dim)) for v in wrt)


# -- forward mode ------------------------------------------------------------------------------------------------------


def substitute(node: Node, values: Mapping[Node, Node]) -> Node:
    """The formula with other nodes in place of some."""
    new = dict(values)
    for n in toposort([node]):
        if n not in new:
            new[n] = build(n.op, [new[a] for a in n.args], n.attrs) if n.args else n
    return new[node]


E, U, Y = -1, -2, -3  # positions of placeholders: cotangent, tangent, result; -4, -5, ... are the arguments


@lru_cache(maxsize=4096)
def _transposed(
    name: str, dims: tuple[int, ...], attrs: tuple[Any, ...], dim: int, k: int, masked: bool
) -> Node | None:
    """What a tangent of argument k gives to the result, over placeholders: the transpose of its pullback.

    The pullback is linear in the cotangent, so its own derivative with respect to that is the push forward.
    """
    args = tuple(var(-4 - n, d, 2) for n, d in enumerate(dims))
    e = var(E, dim, 2)
    g = pullback(Call(OPS[name], args, attrs, var(Y, dim, 2)), e, k, masked)
    return None if g is None else vjp(g, (e,), var(U, dims[k], 2))[0]


def push(n: Node, u: Node, k: int, masked: bool = False) -> Node | None:
    """The tangent of `n` for the tangent `u` of its argument k; None where nothing flows."""
    dims = tuple(a.dim for a in n.args)
    pattern = _transposed(n.op, dims, n.attrs, n.dim, k, masked)
    if pattern is None:
        return None
    values = {var(-4 - m, d, 2): a for m, (a, d) in enumerate(zip(n.args, dims, strict=True))}
    return substitute(pattern, values | {var(Y, n.dim, 2): n, var(U, dims[k], 2): u})


def jvp(y: Node, wrt: Sequence[Node], tangents: Sequence[Node], masked: bool = False) -> Node:
    """The tangent of `y`: sum over v and k of u[k] * d y / d v[k].

    Forward-mode differentiation (Wengert 1964).

    Parameters
    ----------
    y : Node
    wrt, tangents : sequence of Node
        Each tangent of the dimension of its node.
    masked : bool
        Whether the tangents are: as masked cotangents, they are 0 here and there, and stay so.

    Returns
    -------
    Node
        Of dimension `y.dim`.

    Examples
    --------
    >>> from dred.formula.language import read
    >>> x, u = read("x", ["x = Vi(3)"]), read("u", ["u = Vi(1, 3)"])
    >>> print(jvp(read("Sin(x)", ["x = Vi(3)"]), [x], [u]))
    Mult(Var(1,3,0), Cos(Var(0,3,0)))
    """
    order = toposort([y])
    active = depending(order, wrt)
    tangent = {v: fit(u, v.dim) for v, u in zip(wrt, tangents, strict=True)}
    covered = set(wrt) if masked else set()
    for n in order:
        if n not in active or n in tangent:
            continue
        for k, a in enumerate(n.args):
            t = push(n, tangent[a], k, a in covered) if a in tangent else None
            if t is not None:
                add(tangent, n, t)
                if a in covered or OPS[n.op].mask:
                    covered.add(n)
    return limited(tangent.get(y) or zero(y.dim))


def trace(y: Node, u: Node, w: Node) -> Node:
    """Sum over k of w[k] * d y[k] / d u[k], for y linear in u and of the same dimension.

    Weights flow back through element-wise operations component by component, as cotangents do; those of a scalar that
    is repeated are a direction, in which it is differentiated; all else is, component by component.
    """
    order = toposort([y])
    active = depending(order, [u])
    weight: dict[Node, Node] = {y: w}
    covered: set[Node] = set()
    total = const(0)
    for n in reversed(order):
        if n not in weight or n not in active:
            continue
        behind = n in covered
        if n is u:
            total = build("Add", (total, build("Sum", (fit(weight[n], u.dim),))))
        elif n.op == "SumT" or OPS[n.op].partial or OPS[n.op].dim is None:
            for k, a in enumerate(n.args):
                g = weight[n] if n.op == "SumT" else flow(called(n), weight[n], k, behind) if a in active else None
                if g is None:
                    continue
                after = behind or OPS[n.op].mask
                if a.dim != u.dim:
                    total = build("Add", (total, jvp(a, (u,), (g,), after)))
                    continue
                add(weight, a, g)
                if after:
                    covered.add(a)
        else:
            several(f"the trace of {n.op}", u.dim)
            for k in range(u.dim):
                share = build("Elem", (fit(weight[n], u.dim),), (k,))
                (slope,) = vjp(n, (u,), build("ElemT", (share,), (u.dim, k)), behind)
                total = build("Add", (total, build("Elem", (slope,), (k,))))
    return limited(total)


# -- as operations of the language -------------------------------------------------------------------------------------


def wrt(name: str, v: Node) -> Node:
    """The variable of a derivative."""
    if v.op != "Var":
        hint = "its second argument is the name of a variable, or Var(ind, dim, cat)"
        raise DerivativeError(f"{name} differentiates with respect to a variable", hint=hint)
    return v


def same(name: str, what: str, dim: int, to: str, other: int, scalar: bool = False) -> None:
    """Two dimensions that must agree."""
    if dim != other and not (scalar and dim == 1):
        or_one = " or 1" if scalar and other != 1 else ""
        raise DimensionError(f"the {what} of {name} has dimension {dim}, {to} {other}: it must be {other}{or_one}")


def linear(name: str, f: Node, v: Node) -> Node:
    """The image of the placeholder U under the linear map v -> f.

    Raises
    ------
    DerivativeError
        Where the derivative of f with respect to v still reads v: the map is not linear, or not seen to be.
    """
    image = jvp(f, (v,), (var(U, v.dim, 2),))
    if v in variables(image):
        raise DerivativeError(
            f"{name} needs a formula that is linear in its second argument, but its derivative depends on that",
            hint="Grad and Diff differentiate any formula",
        )
    return image


def cotangent(f: Node, v: Node) -> Node:
    """The variable that `Grad(f, v)` makes: after the last one that f reads, of the other category than v."""
    if v.attrs[1] == 2:
        message = "the gradient with respect to a parameter needs its third argument, the cotangent"
        raise DerivativeError(message, hint="write Grad(F, v, e)")
    # v counts where f does not read it: the new variable must not stand in its place
    position = 1 + max(n.attrs[0] for n in [*variables(f), v])
    return var(position, f.dim, 1 - v.attrs[1])


def grad(f: Node, v: Node, e: Node | None = None) -> Node:
    """`Grad(f, v, e)`; without e, that variable which `cotangent` makes.

    Raises
    ------
    DerivativeError
        For a derivative with respect to anything but a variable.
    DimensionError
        Where e has another dimension than f.
    """
    wrt("Grad", v)
    e = cotangent(f, v) if e is None else e
    same("Grad", "cotangent", e.dim, "the formula", f.dim)
    return vjp(f, (v,), e)[0]


def grad_matrix(f: Node, v: Node) -> Node:
    """The Jacobian, row by row: component c * dim(v) + k is the derivative of f[c] with respect to v[k]."""
    wrt("GradMatrix", v)
    if v.dim == 1:
        return jvp(f, (v,), (const(1),))
    length(f.dim * v.dim)
    several("GradMatrix", f.dim)
    rows = [vjp(f, (v,), expand("ElemT", (const(1),), (f.dim, c)))[0] for c in range(f.dim)]
    while len(rows) > 1:  # two by two: a component of the result is found in few steps
        rows = [build("Concat", rows[k : k + 2]) if rows[k + 1 :] else rows[k] for k in range(0, len(rows), 2)]
    return limited(rows[0])


def diff(f: Node, v: Node, u: Node) -> Node:
    """The derivative of f in the direction u of the variable v."""
    wrt("Diff", v)
    same("Diff", "direction", u.dim, "the variable", v.dim)
    return jvp(f, (v,), (u,))


def divergence(f: Node, v: Node) -> Node:
    """Sum over k of the derivatives of f[k] with respect to v[k]."""
    wrt("Divergence", v)
    same("Divergence", "formula", f.dim, "the variable", v.dim)
    u = var(U, v.dim, 2)
    return trace(jvp(f, (v,), (u,)), u, const(1))


def laplacian(f: Node, v: Node) -> Node:
    """Sum over k of the second derivatives of the scalar f with respect to v[k]."""
    wrt("Laplacian", v)
    if f.dim != 1:
        hint = "Sum(F) adds its components up, Elem(F, m) takes one"
        raise DimensionError(f"Laplacian takes a formula of dimension 1, got {f.dim}", hint=hint)
    return divergence(vjp(f, (v,), const(1))[0], v)


def adjoint_operator(f: Node, v: Node, u: Node) -> Node:
    """The transpose of the linear map v -> f, applied to u."""
    wrt("AdjointOperator", v)
    same("AdjointOperator", "third argument", u.dim, "the formula", f.dim)
    linear("AdjointOperator", f, v)
    return vjp(f, (v,), u)[0]


def trace_operator(f: Node, v: Node, w: Node | None = None) -> Node:
    """The trace of the linear map v -> f, its diagonal weighted by w."""
    wrt("TraceOperator", v)
    same("TraceOperator", "formula", f.dim, "the variable", v.dim)
    w = const(1) if w is None else w
    same("TraceOperator", "weight", w.dim, "the variable", v.dim, scalar=True)
    return trace(linear("TraceOperator", f, v), var(U, v.dim, 2), w)


def sum_lin_operator(f: Node, v: Node, wl: Node | None = None, wr: Node | None = None) -> Node:
    """The sum of the entries of the matrix of the linear map v -> f, rows weighted by wl, columns by wr."""
    wrt("SumLinOperator", v)
    wl, wr = (const(1) if w is None else w for w in (wl, wr))
    same("SumLinOperator", "left weight", wl.dim, "the formula", f.dim, scalar=True)
    same("SumLinOperator", "right weight", wr.dim, "the variable", v.dim, scalar=True)
    linear("SumLinOperator", f, v)
    return build("Scalprod", (fit(wl, f.dim), jvp(f, (v,), (wr,))))


def factorize(f: Node, g: Node) -> Node:
    """f: whatever occurs several times in a formula is computed once."""
    return f


def auto_factorize(f: Node) -> Node:
    """f: whatever occurs several times in a formula is computed once."""
    return f


class Derived(NamedTuple):
    """An operation on formulas: how it is written, what it is, and the function that makes it of nodes."""

    signature: str  # arguments that may be left out end in "?"
    doc: str
    make: Callable[..., Node]

    @property
    def name(self) -> str:
        return self.signature.partition("(")[0]


DERIVED: dict[str, Derived] = {
    entry.name: entry
    for entry in (
        Derived("Grad(F, v, e?)", "sum over c of e[c] * dF[c] / dv", grad),
        Derived("GradMatrix(F, v)", "dF[c] / dv[k] at c * dim(v) + k", grad_matrix),
        Derived("Diff(F, v, u)", "sum over k of u[k] * dF / dv[k]", diff),
        Derived("Divergence(F, v)", "sum over k of dF[k] / dv[k]", divergence),
        Derived("Laplacian(F, v)", "sum over k of the second derivatives of F with respect to v[k]", laplacian),
        Derived("AdjointOperator(F, v, u)", "A^T u for F = A v, linear in v", adjoint_operator),
        Derived("TraceOperator(F, v, w?)", "sum over k of w[k] * A[k, k] for F = A v", trace_operator),
        Derived("SumLinOperator(F, v, wl?, wr?)", "sum over k, l of wl[k] * A[k, l] * wr[l] for F = A v",
                sum_lin_operator),
        Derived("Factorize(F, G)", "F, with G computed once", factorize),
        Derived("AutoFactorize(F)", "F, with whatever occurs several times in it computed once", auto_factorize),
    )
}  # fmt: skip


def counted(signature: str, args: Sequence[Any], note: str = "") -> list[str]:
    """The names of the arguments of a call as a user wrote it; the note goes to whoever wrote too many or too few.

    Raises
    ------
    ArgumentError
        For a wrong number of arguments.

    Examples
    --------
    >>> counted("Grad(F, v, e?)", ["...", "..."])
    ['F', 'v']
    """
    name, _, inner = signature.rstrip(")").partition("(")
    words = inner.split(", ")
    optional = [word for word in words if word.endswith("?")]
    missing = len(words) - len(args)
    if not 0 <= missing <= len(optional):
        most, fewest = len(words), len(words) - len(optional)
        between = "or" if most == fewest + 1 else "to"
        takes = f"{most} argument{'s' * (most > 1)}" if fewest == most else f"{fewest} {between} {most} arguments"
        raise ArgumentError(f"{name} takes {takes}, got {len(args)}", hint=f"it is {signature}{note}")
    left_out = optional[len(optional) - missing :]
    return [word.rstrip("?") for word in words if word not in left_out]


def derived(name: str, args: Sequence[Any]) -> Node:
    """A call of `DERIVED` as a user wrote it.

    Raises
    ------
    ArgumentError
        For a wrong number of arguments, or a list among them.
    """
    entry = DERIVED[name]
    for word, a in zip(counted(entry.signature, args), args, strict=True):
        if not isinstance(a, Node):
            message = f"argument {word!r} of {name} must be a formula, got a list"
            raise ArgumentError(message, hint=f"it is {entry.signature}")
    return entry.make(*args)
