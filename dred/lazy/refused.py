"""Names of KeOps' LazyTensors that those of dred have not, and why."""

from __future__ import annotations

from collections.abc import Mapping

_INTERNAL = "it is a part of KeOps' own code; `call` applies an operation of the table, `reduction` a reduction"

REFUSED: Mapping[str, str] = {
    "ranges": "pass ranges= to the reduction",
    "backend": "pass backend= to the reduction",
    "difference_matrix": "KeOps' formulas have none; it is x.tensorprod(0 * y + 1) - (0 * x + 1).tensorprod(y)",
    "KernelSolve": "`solve` solves a system; dred.KernelSolve takes formulas as texts",
    "formula": "`node` is the formula, str(x.node) its text",
    "formula2": "the second formula is the argument `other` of `reduction`",
    "variables": "`held` has the arrays",
    "symbolic_variables": "`held` has the variables without arrays, too",
    "ni": "`shape` has the numbers of rows",
    "nj": "`shape` has the numbers of rows",
    "axis": "a LazyTensor may vary with both i and j",
    "Genred": "`call=False` gives a reduction that is not computed, whose `routine` is called like one of Genred",
    **dict.fromkeys(
        (
            "tools", "lt_constructor", "get_tools", "new_variable_index", "fixvariables", "separate_kwargs", "promote",
            "init", "join", "unary", "binary", "ternary", "addop", "subop", "mulop", "divop",
        ),
        _INTERNAL,
    ),
}  # fmt: skip
