"""Random formulas and derivatives of them, made of whatever the table of operations holds."""

from math import prod

from hypothesis import strategies as st

from dred.errors import FormulaError
from dred.formula.derive import jvp, vjp
from dred.formula.node import const, toposort, var
from dred.formula.ops import OPS
from dred.formula.rewrite import expand

VARIABLES = (var(0, 3, 0), var(1, 3, 1), var(2, 1, 2), var(3, 1, 0), var(4, 2, 1))
ALIASES = ["x = Vi(3)", "y = Vj(3)", "p = Pm(1)", "s = Vi(1)", "z = Vj(2)"]
LARGEST = 12  # dimension

# longer than what any target unrolls: kernels of these have loops over components
WIDE = (var(0, 20, 0), var(1, 20, 1), var(2, 1, 2), var(3, 1, 0), var(4, 17, 1))
WIDEST = 60

CELLS = 12  # of a time warping: each is some twenty operations


def _shape(rng, dim, rank):
    """A shape of `rank` axes with `dim` components."""
    shape = []
    for _ in range(rank - 1):
        rest = dim // prod(shape)
        shape.append(rng.choice([n for n in range(1, rest + 1) if rest % n == 0]))
    return (*shape, dim // prod(shape))


def _contraction(rng, df, dg):
    """Axes to contract, and an order of those of the result."""
    pairs = [(k, m) for k, n in enumerate(df) for m in range(len(dg)) if dg[m] == n]
    cf, cg = [], []
    for k, m in rng.sample(pairs, min(len(pairs), rng.randint(0, 2))):
        if k not in cf and m not in cg:
            cf.append(k)
            cg.append(m)
    order = list(range(len(df) + len(dg) - 2 * len(cf)))
    rng.shuffle(order)
    return tuple(cf), tuple(cg), rng.choice([(), tuple(order)])


def _attributes(rng, op, dims):
    """Static arguments that suit an operation more often than not."""
    if op.name in ("TensorDot", "ZeroTensorDot"):
        df, dg = (_shape(rng, d, rng.randint(1, 3)) for d in dims)
        return (df, dg, *_contraction(rng, df, dg))
    if op.name == "Kron":
        rank = rng.randint(1, 3)
        return tuple(_shape(rng, d, rank) for d in dims)
    return tuple(rng.randint(-1, max(4, *dims, 0)) for _ in op.attrs)


def random_formula(rng, names=tuple(OPS), build=expand, steps=12, variables=VARIABLES, largest=LARGEST):
    """Calls of operations on variables, constants and, more often, on what there is already: the largest of them.

    Operations on whole vectors are chosen more often, for they are the ones that make loops over components.
    """
    nodes = [*variables, *(const(rng.randint(-3, 5)) for _ in range(2))]
    leaves = len(nodes)
    wanted = leaves + rng.randint(1, steps)
    weights = [3 if OPS[name].dim else 1 for name in names]
    for _ in range(10 * steps):  # many calls are refused for their dimensions
        op = OPS[rng.choices(names, weights)[0]]
        args = [rng.choice(nodes[leaves:] if rng.random() < 0.7 and nodes[leaves:] else nodes) for _ in op.args]
        dims = [a.dim for a in args]
        if op.name == "SoftDTW_SqDist" and dims[0] * dims[1] > CELLS:
            continue
        try:
            made = build(op.name, args, _attributes(rng, op, dims))
        except FormulaError:
            continue
        if made.dim <= largest and made not in nodes and made.op != "Const":
            nodes.append(made)
        if len(nodes) == wanted:
            break
    return max(reversed(nodes), key=lambda n: len(toposort([n])))


def random_derivative(rng, variables=VARIABLES, **more):
    """A random formula, or its gradient or its derivative in a direction, by one of the variables that it reads."""
    f = random_formula(rng, variables=variables, **more)
    v = rng.choice([v for v in toposort([f]) if v.op == "Var"] or variables)
    kind = rng.choice(["value", "reverse", "forward"])
    if kind == "reverse":
        return vjp(f, [v], const(1))[0]
    return jvp(f, [v], [const(1)]) if kind == "forward" else f


def random_problem(rng):
    """A formula and its variables; many are sums over the components of one or two formulas, or products of all."""
    variables, largest = rng.choice([(VARIABLES, LARGEST), (WIDE, WIDEST)])
    more = {"variables": variables, "largest": largest}
    f, g = random_derivative(rng, **more), random_formula(rng, **more)
    kinds = {
        "none": lambda: f,
        "product": lambda: expand("Mult", (expand("Sum", (f,)), expand("Sum", (g,)))),
        "long": lambda: expand("Sum", (expand("Concat", (f, g)),)),
        "factor": lambda: expand("Mult", (f, expand("Sum", (g,)))),
        "outer": lambda: expand("TensorProd", (f, g)) if f.dim * g.dim <= largest**2 / 2 else f,
    }
    return kinds[rng.choice(list(kinds))](), variables


def formulas(*args, **more):
    """`random_formula` as a strategy; by seed alone, for choices one by one would make most formulas trivial."""
    return st.randoms(use_true_random=True).map(lambda rng: random_formula(rng, *args, **more))


def derivatives(*args, **more):
    """`random_derivative` as a strategy."""
    return st.randoms(use_true_random=True).map(lambda rng: random_derivative(rng, *args, **more))
