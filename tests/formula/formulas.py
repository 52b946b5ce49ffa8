"""Random formulas, made of whatever the table of operations holds."""

from hypothesis import strategies as st

from dred.errors import FormulaError
from dred.formula.node import const, var
from dred.formula.ops import OPS
from dred.formula.rewrite import expand

VARIABLES = (var(0, 3, 0), var(1, 3, 1), var(2, 1, 2), var(3, 1, 0), var(4, 2, 1))
ALIASES = ["x = Vi(3)", "y = Vj(3)", "p = Pm(1)", "s = Vi(1)", "z = Vj(2)"]
LARGEST = 12  # dimension

# longer than what any target unrolls: kernels of these have loops over components
WIDE = (var(0, 20, 0), var(1, 20, 1), var(2, 1, 2), var(3, 1, 0), var(4, 17, 1))
WIDEST = 60


@st.composite
def formulas(draw, names=tuple(OPS), build=expand, steps=12, variables=VARIABLES, largest=LARGEST):
    """A formula over `variables`: calls of the operations `names` on what there is already, where they are allowed."""
    integers = st.integers(-3, 5)
    nodes = [*variables, *(const(draw(integers)) for _ in range(2))]
    for _ in range(draw(st.integers(1, steps))):
        op = OPS[draw(st.sampled_from(names))]
        args = [draw(st.sampled_from(nodes)) for _ in op.args]
        attrs = tuple(draw(integers) for _ in op.attrs)
        try:
            made = build(op.name, args, attrs)
        except FormulaError:
            continue
        if made.dim <= largest:
            nodes.append(made)
    return nodes[-1]
