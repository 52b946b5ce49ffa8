"""Every way in which a formula can be wrong: its own class, the whole text of its error, the place; errors travel."""

import inspect
import pickle

import pytest

from dred import errors
from dred.formula.derive import DERIVED
from dred.formula.language import formula
from dred.formula.op import one
from dred.formula.ops import OPS
from dred.formula.syntax import BINARY
from dred.reductions import REDUCTIONS

ALIASES = ["x = Vi(3)", "y = Vj(3)", "p = Pm(1)", "z = Vi(4)", "A = Pm(6)"]

BAD = {  # class -> text -> message, carets below the text, what to do
    errors.FormulaSyntaxError: {
        # texts
        "": ("expected a formula, got the end of the formula", "^"),
        "x +": ("expected a formula, got the end of the formula", "   ^"),
        "* x": ("expected a formula, got '*'", "^"),
        "x y": ("expected an operator, got 'y'", "  ^", "is '*' or ',' missing?"),
        "2x": ("expected an operator, got 'x'", " ^", "is '*' or ',' missing?"),
        "2(x+y)": ("expected an operator, got '('", " ^", "is '*' or ',' missing?"),
        "SqDist(x y)": ("expected an operator, got 'y'", "         ^", "is '*' or ',' missing?"),
        "SqDist(x [1])": ("subscripts are not part of the language",
            "         ^", "Elem(f, m) takes one component of f"),
        "1.5.2": ("expected an operator, got '.2'", "   ^^", "is '*' or ',' missing?"),
        "lambda: 0": ("unexpected character ':'", "      ^"),
        "é": ("unexpected character 'é'", "^"),
        "x²": ("unexpected character '²'", " ^"),
        "x\x00": ("unexpected character '\\x00'", " ^"),
        "__import__('os')": ('unexpected character "\'"', "           ^"),
        "Exp(x": ("this parenthesis is never closed", "   ^"),
        "Exp (x": ("this parenthesis is never closed", "    ^"),
        "Exp((x + y)": ("this parenthesis is never closed", "   ^"),
        "Exp((x + y": ("this parenthesis is never closed", "    ^"),
        "(x": ("this parenthesis is never closed", "^"),
        "x)": ("this parenthesis was never opened", " ^"),
        "()": ("expected a formula, got ')'", " ^"),
        "x, y": ("unexpected ','", " ^", "Concat(x, y) joins vectors"),
        "(x, y)": ("unexpected ','", "  ^", "Concat(x, y) joins vectors"),
        "Exp((x, y))": ("unexpected ','", "      ^", "Concat(x, y) joins vectors"),
        "[x, y]": ("a list is accepted only as an argument of an operation", "^", "Concat(x, y) joins vectors"),
        "Add(x,, y)": ("expected a formula, got ','", "      ^"),
        "Exp(x,)": ("expected a formula, got ')'", "      ^"),
        "x[0]": ("subscripts are not part of the language", " ^", "Elem(f, m) takes one component of f"),
        "x = y": ("unexpected '='", "  ^", "write 'let r = x-y; ...' to name a part, '==' to compare"),
        "r = x-y; r|r": ("unexpected '='", "  ^", "write 'let r = x-y; ...' to name a part, '==' to compare"),
        "x + = y": ("expected a formula, got '='", "    ^", "write 'let r = x-y; ...' to name a part, '==' to compare"),
        "x ** 2 ** 3": ("powers of powers are ambiguous", "       ^^", "use parentheses"),
        "9**9**9": ("powers of powers are ambiguous", "    ^^", "use parentheses"),
        "x;": ("unexpected ';'", " ^"),
        "let t = x": ("expected ';' and a formula after the binding", "         ^"),
        "Exp(let t = x; t)": ("'let' begins a formula, never a part of one", "    ^^^"),
        "let t = [1]; x": ("a list is accepted only as an argument of an operation",
            "        ^", "Concat(x, y) joins vectors"),
        "let t = x t": ("expected an operator, got 't'", "          ^", "is '*' or ',' missing?"),
        "let x": ("'let' is no operator", "^^^", "write 'let r = x-y; ...' to name a part, '==' to compare"),
        "x let": ("expected an operator, got 'let'",
            "  ^^^", "write 'let r = x-y; ...' to name a part, '==' to compare"),
        "Exp(x;y)": ("unexpected ';'", "     ^"),
        "x = Vi(3)": ("unexpected '='", "  ^", "write 'let r = x-y; ...' to name a part, '==' to compare"),
        # words and symbols of other languages
        "x % y": ("unexpected character '%'", "  ^", "Mod(f, n, 0) is the remainder of f by n"),
        "x // y": ("unexpected '//'", "  ^^", "Floor(f / g) rounds a quotient down"),
        "x @ y": ("unexpected character '@'",
            "  ^", "MatVecMult(A, b) and VecMatMult(b, A) multiply matrices, (f | g) vectors"),
        "x ^ 2": ("unexpected character '^'", "  ^", "'**' is the power"),
        "x & y": ("unexpected character '&'", "  ^", "And(f, g) is 1 where f and g are not 0"),
        "x && y": ("unexpected character '&'", "  ^", "And(f, g) is 1 where f and g are not 0"),
        "x || y": ("unexpected '||'", "  ^^", "Or(f, g) is 1 where f or g is not 0"),
        "!x": ("unexpected character '!'", "^", "Not(f) is the negation, '!=' compares"),
        "~x": ("unexpected character '~'", "^", "Not(f) is the negation"),
        "x and y": ("expected an operator, got 'and'", "  ^^^", "And(f, g) is 1 where f and g are not 0"),
        "x or y": ("expected an operator, got 'or'", "  ^^", "Or(f, g) is 1 where f or g is not 0"),
        "not x": ("'not' is no operator", "^^^", "Not(f) is 1 where f is 0"),
        "x + not y": ("'not' is no operator", "    ^^^", "Not(f) is 1 where f is 0"),
        "x if y else p": ("expected an operator, got 'if'", "  ^^", "IfElse(f, g, h) is g where f >= 0, else h"),
        "x.real": ("unexpected character '.'", " ^", "functions are written f(x), not x.f()"),
        "if x": ("'if' is no operator", "^^", "IfElse(f, g, h) is g where f >= 0, else h"),
        "x ? y : p": ("unexpected character '?'", "  ^", "IfElse(f, g, h) is g where f >= 0, else h"),
        "x <> y": ("unexpected '<>'", "  ^^", "'!=' compares"),
        "x < > y": ("expected a formula, got '>'", "    ^"),
        "x =< y": ("unexpected '=<'", "  ^^", "'<=' compares"),
        "x = < y": ("unexpected '='", "  ^", "write 'let r = x-y; ...' to name a part, '==' to compare"),
        "x => y": ("unexpected '=>'", "  ^^", "'>=' compares"),
        "x === y": ("unexpected '==='", "  ^^^", "'==' compares"),
        "x | | y": ("expected a formula, got '|'", "    ^", "|x| is Abs(x), or Norm2(x)"),
        "|x|": ("expected a formula, got '|'", "^", "|x| is Abs(x), or Norm2(x)"),
        "2 * ||x||": ("expected a formula, got '|'", "    ^", "|x| is Abs(x), or Norm2(x)"),
        "Exp(1j * x)": ("unexpected '1j'", "    ^^", "Imag2Complex(f) is f times the imaginary unit"),
        "1 j": ("expected an operator, got 'j'", "  ^", "is '*' or ',' missing?"),
        "x \u2212 y": ("unexpected character '\u2212'", "  ^", "write '-'"),
        # operators
        "x < y < p": ("comparisons cannot be chained", "      ^", "combine two comparisons with '*'"),
        "x < y == p": ("comparisons cannot be chained", "      ^^", "combine two comparisons with '*'"),
        "x == y != p": ("comparisons cannot be chained", "       ^^", "combine two comparisons with '*'"),
        "x < -y < p": ("comparisons cannot be chained", "       ^", "combine two comparisons with '*'"),
        "x < y + p > x": ("comparisons cannot be chained", "          ^", "combine two comparisons with '*'"),
        "(x < y < p)": ("comparisons cannot be chained", "       ^", "combine two comparisons with '*'"),
        "x ** -y": ("after '** -' only a number is accepted", "      ^", "write the exponent in parentheses"),
        "x ** --2": ("after '** -' only a number is accepted", "      ^", "write the exponent in parentheses"),
        "x ** +2": ("expected a formula, got '+'", "     ^"),
        "x ** -(2)": ("after '** -' only a number is accepted", "      ^", "write the exponent in parentheses"),
        "+": ("expected a formula, got the end of the formula", " ^"),
        "+ * x": ("expected a formula, got '*'", "  ^"),
        "x +* y": ("expected a formula, got '*'", "   ^"),
        # lists
        "[1]": ("a list is accepted only as an argument of an operation", "^", "Concat(x, y) joins vectors"),
        "x + [1]": ("a list is accepted only as an argument of an operation", "    ^", "Concat(x, y) joins vectors"),
        "([1])": ("a list is accepted only as an argument of an operation", " ^", "Concat(x, y) joins vectors"),
        "Exp([1, x])": ("expected an integer of the list, got 'x'",
            "        ^", "a list is written [2, 0, 3], Concat(x, y) joins vectors"),
        "Exp([1, -2])": ("expected an integer of the list, got '-'", "        ^", "a list is written [2, 0, 3]"),
        "Exp([1.5])": ("expected an integer of the list, got '1.5'", "     ^^^", "a list is written [2, 0, 3]"),
        "Exp([1 2])": ("expected ',' or ']'", "       ^"),
        "Exp([1,])": ("expected an integer of the list, got ']'", "       ^", "a list is written [2, 0, 3]"),
        "Exp([,1])": ("expected an integer of the list, got ','", "     ^", "a list is written [2, 0, 3]"),
        "Exp([1": ("expected ',' or ']'", "      ^"),
        "Exp([": ("expected an integer of the list, got the end of the formula",
            "     ^", "a list is written [2, 0, 3]"),
        "Exp([1]": ("a list is a whole argument, never a part of one", "       ^"),
        "Exp([1]**2)": ("a list is a whole argument, never a part of one", "       ^^"),
        "Exp(-[1])": ("a list is accepted only as an argument of an operation", "     ^", "Concat(x, y) joins vectors"),
        "Exp([[1]])": ("expected an integer of the list, got '['", "     ^", "a list is written [2, 0, 3]"),
        # counts
        "Add(f=x, f=y, g=p)": ("the argument 'f' is given twice", "         ^"),
        "Sum(f=x, 2)": ("an argument without name follows one with a name", "         ^"),
    },
    errors.UnknownNameError: {
        # texts
        "__import__(os)": ("unknown name 'os'", "           ^^", "the aliases are: x, y, p, z, A"),
        "Expp(x)": ("unknown operation 'Expp'", "^^^^", "did you mean 'Exp'?"),
        "sqdist(x, y)": ("unknown operation 'sqdist'", "^^^^^^", "did you mean 'SqDist'?"),
        "Power(x, 2)": ("unknown operation 'Power'", "^^^^^", "f ** g, or Pow(f, m)"),
        "max(x)": ("unknown operation 'max'", "^^^", "did you mean 'Max'?"),
        "x + q": ("unknown name 'q'", "    ^", "the aliases are: x, y, p, z, A"),
        "x + Exp": ("unknown name 'Exp'", "    ^^^", "the operation is written Exp(...)"),
        "x * IndexI": ("unknown name 'IndexI'", "    ^^^^^^", "it is written IndexI()"),
        "x + Zero": ("unknown name 'Zero'", "    ^^^^", "the operation is written Zero(...)"),
        "not(x)": ("unknown operation 'not'", "^^^", "did you mean 'Not'?"),
        # names of KeOps
        "Vx(0, 3)": ("unknown operation 'Vx'", "^^", "write Vi(...)"),
        "x + Vy(1, 3)": ("unknown operation 'Vy'", "    ^^", "write Vj(...)"),
        "Kron(x, y, Ind(3), Ind(3))": ("unknown operation 'Ind'", "           ^^^", "lists are written [2, 3]"),
        "Dot(x, y)": ("unknown operation 'Dot'", "^^^", "(f | g), or Scalprod(f, g)"),
        **{f"{name}(x, 0)": (f"unknown operation '{name}'", "^" * len(name),
            f"a reduction, which cannot stand inside a formula; offered are: {', '.join(REDUCTIONS)}")
            for name in ("logsumexp", "argkmin_reduction", "sum_reduction")},
    },
    errors.AliasError: {
        # texts
        "Vi(3)": ("Vi got 1 argument", "^^", "it is Vi(ind, dim); or declare an alias, 'x = Vi(3)'"),
        "Vj(2)": ("Vj got 1 argument", "^^", "it is Vj(ind, dim); or declare an alias, 'y = Vj(2)'"),
        "x * Pm(1)": ("Pm got 1 argument", "    ^^", "it is Pm(ind, dim); or declare an alias, 'p = Pm(1)'"),
        "Vi()": ("Vi got 0 arguments", "^^", "it is Vi(ind, dim)"),
        "Var(3)": ("Var got 1 argument", "^^^", "it is Var(ind, dim, cat)"),
        "Var(0, 3)": ("Var got 2 arguments", "^^^", "it is Var(ind, dim, cat)"),
        "Var(3, 1, 3)": ("category 3 is none of 0 (Vi), 1 (Vj) and 2 (Pm)", "^^^"),
        "Pm(-1, 3)": ("position -1 is negative: positions start at 0", "^^"),
        "Vi(5, 0)": ("dimension 0 is outside 1 ... 1000000", "^^"),
        "Var(0, 3, 1, 2)": ("Var got 4 arguments", "^^^", "it is Var(ind, dim, cat)"),
    },
    errors.ArgumentError: {
        # texts
        "Var(x, 3, 0)": ("the arguments of Var must be integers", "^^^"),
        "Vi(ind=0, dim=3)": ("Vi takes no named arguments", "^^"),
        "Vi(0, x)": ("the arguments of Vi must be integers", "^^"),
        # lists
        "Exp(f=[1])": ("argument 'f' of Exp must be a formula, got a list", "^^^", "it is Exp(f)"),
        "Exp([1])": ("argument 'f' of Exp must be a formula, got a list", "^^^", "it is Exp(f)"),
        "Elem(x, [1])": ("argument 'm' of Elem must be an integer constant, got a list", "^^^^", "it is Elem(f, m)"),
        "Kron(x, y, 3, [3])": ("argument 'df' of Kron must be a list of integers, such as [2, 3], got 3",
            "^^^^", "it is Kron(f, g, df[], dg[])"),
        "Kron(x, y, [3], dg=3)": ("argument 'dg' of Kron must be a list of integers, such as [2, 3], got 3",
            "^^^^", "it is Kron(f, g, df[], dg[])"),
        "Kron(x, y, [3], x)": (
            "argument 'dg' of Kron must be a list of integers, such as [2, 3], got a formula of dimension 3",
            "^^^^", "it is Kron(f, g, df[], dg[])"),
        "TensorDot(x, y, [3], [3], [0], 0)": (
            "argument 'cg' of TensorDot must be a list of integers, such as [2, 3], got 0",
            "^^^^^^^^^", "it is TensorDot(f, g, df[], dg[], cf[], cg[], perm[]?)"),
        "Grad(x, [1], x)": ("argument 'v' of Grad must be a formula, got a list", "^^^^", "it is Grad(F, v, e?)"),
        "Grad([1], x, x)": ("argument 'F' of Grad must be a formula, got a list", "^^^^", "it is Grad(F, v, e?)"),
        "Vi([1], 3)": ("the arguments of Vi must be integers", "^^"),
        "IfElse([0], x, y)": ("argument 'f' of IfElse must be a formula, got a list",
            "^^^^^^", "it is IfElse(f, g, h)"),
        "SumT(p, [3])": ("argument 'n' of SumT must be an integer constant, got a list", "^^^^", "it is SumT(f, n)"),
        # counts
        "Exp()": ("Exp takes 1 argument, got 0", "^^^", "it is Exp(f)"),
        "Add(x, y, p)": ("Add takes 2 arguments, got 3", "^^^", "it is Add(f, g)"),
        "Elem(x)": ("Elem takes 2 arguments, got 1", "^^^^", "it is Elem(f, m)"),
        "IfElse(x, y)": ("IfElse takes 3 arguments, got 2", "^^^^^^", "it is IfElse(f, g, h)"),
        "Clamp(x, 0)": ("Clamp takes 3 arguments, got 2", "^^^^^", "it is Clamp(f, a, b)"),
        "Mod(x, 2)": ("Mod takes 3 arguments, got 2", "^^^", "it is Mod(f, n, o)"),
        "IndexI(x)": ("IndexI takes 0 arguments, got 1", "^^^^^^", "it is IndexI()"),
        "IndexJ(0)": ("IndexJ takes 0 arguments, got 1", "^^^^^^", "it is IndexJ()"),
        "IndexIParts(x)": ("IndexIParts takes 0 arguments, got 1", "^^^^^^^^^^^", "it is IndexIParts()"),
        "IndexJParts(x)": ("IndexJParts takes 0 arguments, got 1", "^^^^^^^^^^^", "it is IndexJParts()"),
        **{f"{name}(x, 0)": (f"a formula contains no reduction, got {name}", "^" * len(name),
            "give the text to dred.Reduction, or to Genred the formula alone, with reduction_op and axis")
            for name in ("LogSumExp", "Max_SumShiftExp", "Max_SumShiftExp_Reduction", "Max_Reduction", "KMin_ArgKMin",
                         "ArgMin_Reduction")},
        "Pow(x)": ("Pow takes 2 arguments, got 1", "^^^", "it is Pow(f, m)"),
        "Round(x)": ("Round takes 2 arguments, got 1", "^^^^^", "it is Round(f, n)"),
        "SumT(p)": ("SumT takes 2 arguments, got 1", "^^^^", "it is SumT(f, n)"),
        "Sign(x, y)": ("Sign takes 1 argument, got 2", "^^^^", "it is Sign(f)"),
        "IntCst()": ("IntCst takes 1 argument, got 0", "^^^^^^", "it is IntCst(n)"),
        "TensorDot(x, y, [3], [3], [0])": ("TensorDot takes 6 or 7 arguments, got 5",
            "^^^^^^^^^", "it is TensorDot(f, g, df[], dg[], cf[], cg[], perm[]?)"),
        "TensorDot(x, y, [3], [3], [0], [0], [], [])": ("TensorDot takes 6 or 7 arguments, got 8",
            "^^^^^^^^^", "it is TensorDot(f, g, df[], dg[], cf[], cg[], perm[]?)"),
        "Kron(x, y, [3])": ("Kron takes 4 arguments, got 3", "^^^^", "it is Kron(f, g, df[], dg[])"),
        "BSpline(x, p)": ("BSpline takes 3 arguments, got 2", "^^^^^^^", "it is BSpline(t, x, k)"),
        "Elem(x, q=1)": ("Elem has no argument 'q'", "^^^^", "it is Elem(f, m)"),
        "TensorDot(x, y, [3], [3], [0], [0], order=[0])": ("TensorDot has no argument 'order'",
            "^^^^^^^^^", "it is TensorDot(f, g, df[], dg[], cf[], cg[], perm[]?)"),
        "Elem(x, 1, m=1)": ("Elem got its argument 'm' twice", "^^^^", "it is Elem(f, m)"),
        # integers
        "Elem(x, y)": ("argument 'm' of Elem must be an integer constant, got a formula of dimension 3",
            "^^^^", "it is Elem(f, m)"),
        "Elem(x, 1/2)": ("argument 'm' of Elem must be an integer constant, got 1/2", "^^^^", "it is Elem(f, m)"),
        "Elem(x, Exp(1))": ("argument 'm' of Elem must be an integer constant, got a formula of dimension 1",
            "^^^^", "it is Elem(f, m)"),
        "Zero(x)": ("argument 'n' of Zero must be an integer constant, got a formula of dimension 3",
            "^^^^", "it is Zero(n)"),
        "IntCst(1/2)": ("argument 'n' of IntCst must be an integer constant, got 1/2", "^^^^^^", "it is IntCst(n)"),
        "IntCst(p)": ("argument 'n' of IntCst must be an integer constant, got a formula of dimension 1",
            "^^^^^^", "it is IntCst(n)"),
        "RatCst(1, 0)": ("division by the constant 0", "^^^^^^"),
        "RatCst(1/2, 3)": ("argument 'p' of RatCst must be an integer constant, got 1/2",
            "^^^^^^", "it is RatCst(p, q)"),
        "IntInv(0)": ("division by the constant 0", "^^^^^^"),
        "Round(x, p)": ("argument 'n' of Round must be an integer constant, got a formula of dimension 1",
            "^^^^^", "it is Round(f, n)"),
        "Round(x, 1/2)": ("argument 'n' of Round must be an integer constant, got 1/2", "^^^^^", "it is Round(f, n)"),
        "ClampInt(x, 0.5, 1)": ("argument 'a' of ClampInt must be an integer constant, got 1/2",
            "^^^^^^^^", "it is ClampInt(f, a, b)"),
        "ClampInt(x, p, 1)": ("argument 'a' of ClampInt must be an integer constant, got a formula of dimension 1",
            "^^^^^^^^", "it is ClampInt(f, a, b)"),
        "DiffClampInt(x, 0, y)": (
            "argument 'b' of DiffClampInt must be an integer constant, got a formula of dimension 3",
            "^^^^^^^^^^^^", "it is DiffClampInt(f, a, b)"),
        "Pow(x, 1/2)": ("argument 'm' of Pow must be an integer constant, got 1/2",
            "^^^", "it is Pow(f, m); x ** y and Powf(x, y) take any exponent"),
        "Pow(x, y)": ("argument 'm' of Pow must be an integer constant, got a formula of dimension 3",
            "^^^", "it is Pow(f, m); x ** y and Powf(x, y) take any exponent"),
        "BSpline(A, p, 1/2)": ("argument 'k' of BSpline must be an integer constant, got 1/2",
            "^^^^^^^", "it is BSpline(t, x, k)"),
        # matrices and tensors
        "TensorDot(x, A, [3], [2, 3], [0], [])": ("cf and cg list 1 and 0 axes: they are contracted in pairs",
            "^^^^^^^^^"),
        "TensorDot(A, A, [2, 3], [2, 3], [0, 0], [0, 0])": ("the contracted axes [0, 0] of f are not all different",
            "^^^^^^^^^"),
        "TensorDot(A, A, [2, 3], [2, 3], [0, 1], [1, 1])": ("the contracted axes [1, 1] of g are not all different",
            "^^^^^^^^^"),
        "TensorDot(x, A, [3], [2, 3], [0], [1], [1])": (
            "perm is [1]: it must hold the axes of the result, [0], each once", "^^^^^^^^^"),
        "TensorDot(x, y, [3], [3], [], [], [0, 0])": (
            "perm is [0, 0]: it must hold the axes of the result, [0, 1], each once", "^^^^^^^^^"),
        "TensorDot(x, y, [3], [3], [], [], [0])": (
            "perm is [0]: it must hold the axes of the result, [0, 1], each once", "^^^^^^^^^"),
        "TensorDot(x, y, [3], [3], [], [], [1, 2])": (
            "perm is [1, 2]: it must hold the axes of the result, [0, 1], each once", "^^^^^^^^^"),
        "TensorDot(x, y, [3], [3], [0], [0], [0])": ("perm is [0]: it must hold the axes of the result, [], each once",
            "^^^^^^^^^"),
        # constants
        "x / 0": ("division by the constant 0", "  ^"),
        "x / (1 - 1)": ("division by the constant 0", "  ^"),
        "Divide(x, 0)": ("division by the constant 0", "^^^^^^"),
        "Inv(0)": ("division by the constant 0", "^^^"),
        "0 ** -1": ("division by the constant 0", "  ^^"),
        "Pow(0, -2)": ("division by the constant 0", "^^^"),
        # derivatives
        "Grad(x)": ("Grad takes 2 or 3 arguments, got 1", "^^^^", "it is Grad(F, v, e?)"),
        "Grad(x, x, x, x)": ("Grad takes 2 or 3 arguments, got 4", "^^^^", "it is Grad(F, v, e?)"),
        "Diff(x, x)": ("Diff takes 3 arguments, got 2", "^^^^", "it is Diff(F, v, u)"),
        "Divergence(x)": ("Divergence takes 2 arguments, got 1", "^^^^^^^^^^", "it is Divergence(F, v)"),
        "Laplacian(p, x, y)": ("Laplacian takes 2 arguments, got 3", "^^^^^^^^^", "it is Laplacian(F, v)"),
        "GradMatrix(x)": ("GradMatrix takes 2 arguments, got 1", "^^^^^^^^^^", "it is GradMatrix(F, v)"),
        "AdjointOperator(x, x)": ("AdjointOperator takes 3 arguments, got 2",
            "^^^^^^^^^^^^^^^", "it is AdjointOperator(F, v, u)"),
        "TraceOperator(x)": ("TraceOperator takes 2 or 3 arguments, got 1",
            "^^^^^^^^^^^^^", "it is TraceOperator(F, v, w?)"),
        "TraceOperator(x, x, y, y)": ("TraceOperator takes 2 or 3 arguments, got 4",
            "^^^^^^^^^^^^^", "it is TraceOperator(F, v, w?)"),
        "SumLinOperator(x)": ("SumLinOperator takes 2 to 4 arguments, got 1",
            "^^^^^^^^^^^^^^", "it is SumLinOperator(F, v, wl?, wr?)"),
        "SumLinOperator(x, x, p, p, p)": ("SumLinOperator takes 2 to 4 arguments, got 5",
            "^^^^^^^^^^^^^^", "it is SumLinOperator(F, v, wl?, wr?)"),
        "Factorize(x)": ("Factorize takes 2 arguments, got 1", "^^^^^^^^^", "it is Factorize(F, G)"),
        "AutoFactorize(x, y)": ("AutoFactorize takes 1 argument, got 2", "^^^^^^^^^^^^^", "it is AutoFactorize(F)"),
        "Grad(x, v=x)": ("Grad takes no named arguments", "^^^^"),
        "Diff(F=x, v=x, u=x)": ("Diff takes no named arguments", "^^^^"),
        "Grad(Exp(x), [0])": ("argument 'v' of Grad must be a formula, got a list", "^^^^", "it is Grad(F, v, e?)"),
        "Grad(x)+1": ("Grad takes 2 or 3 arguments, got 1", "^^^^", "it is Grad(F, v, e?)"),
        "1 + Diff(x, x)": ("Diff takes 3 arguments, got 2", "    ^^^^", "it is Diff(F, v, u)"),
    },
    errors.DimensionError: {
        # texts
        "(x | Concat(x, y))": ("dimensions (3, 6) do not broadcast: each must be 1 or 6", "   ^"),
        # dimensions
        "x + z": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "  ^"),
        "x + Concat(x, y)": ("dimensions (3, 6) do not broadcast: each must be 1 or 6", "  ^"),
        "x * z": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "  ^"),
        "x / z": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "  ^"),
        "x < z": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "  ^"),
        "x <= z": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "  ^^"),
        "x > z": ("dimensions (4, 3) do not broadcast: each must be 1 or 4", "  ^"),
        "x >= z": ("dimensions (4, 3) do not broadcast: each must be 1 or 4", "  ^^"),
        "x == z": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "  ^^"),
        "x != z": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "  ^^"),
        "x - z": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "  ^"),
        "x ** z": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "  ^^"),
        "Powf(x, z)": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "^^^^"),
        "Atan2(x, z)": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "^^^^^"),
        "Hypot(x, z)": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "^^^^^"),
        "Clamp(x, 0, z)": ("dimensions (3, 1, 4) do not broadcast: each must be 1 or 4", "^^^^^"),
        "IfElse(z, x, y)": ("dimensions (4, 3, 3) do not broadcast: each must be 1 or 4", "^^^^^^"),
        "Mod(x, z, 0)": ("dimensions (3, 4, 1) do not broadcast: each must be 1 or 4", "^^^"),
        "And(x, z)": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "^^^"),
        "Or(x, z)": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "^^"),
        "Equal(x, z)": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "^^^^^"),
        "ZeroMult(x, z)": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "^^^^^^^^"),
        "(x | z)": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "   ^"),
        "SqDist(x, z)": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "^^^^^^"),
        "SumT(x, 3)": ("the argument must have dimension 1, got 3", "^^^^"),
        "Routed(x, A, IndexJParts(), 2)": ("the vector has dimension 3, which is no multiple of n = 2", "^^^^^^"),
        "Routed(x, x, IndexJParts(), 1)": (
            "the row numbers q have dimension 3: two halves for 3 components are 6", "^^^^^^"),
        "Routed(x, A, IndexJ(), 1)": (
            "the row number parts has dimension 1: it has two halves, as IndexJParts()", "^^^^^^"),
        "Placed(x, A, IndexJParts(), 2)": (
            "the row numbers q have dimension 6: two halves for 6 components are 12", "^^^^^^"),
        "Placed(x, A, x, 1)": (
            "the row number parts has dimension 3: it has two halves, as IndexJParts()", "^^^^^^"),
        "ElemT(x, 4, 0)": ("the argument must have dimension 1, got 3", "^^^^^"),
        "OneHot(x, 3)": ("the argument must have dimension 1, got 3", "^^^^^^"),
        "SqNormIso(x, y)": ("the weight must have dimension 1, got 3", "^^^^^^^^^"),
        "SqNormDiag(z, x)": ("the weights have dimension 4, the vector 3: they must be equal", "^^^^^^^^^^"),
        "SqNormDiag(p, x)": ("the weights have dimension 1, the vector 3: they must be equal", "^^^^^^^^^^"),
        "SymSqNorm(A, x)": ("the matrix has dimension 6: a vector of dimension 3 needs 9", "^^^^^^^^^"),
        "SymSqNorm(x, x)": ("the matrix has dimension 3: a vector of dimension 3 needs 9", "^^^^^^^^^"),
        "WeightedSqNorm(A, x)": ("the weights have dimension 6: a vector of dimension 3 takes 1, 3 or 9",
            "^^^^^^^^^^^^^^"),
        "WeightedSqNorm(x, p)": ("the weights have dimension 3: a vector of dimension 1 takes 1", "^^^^^^^^^^^^^^"),
        "WeightedSqDist(A, x, y)": ("the weights have dimension 6: a vector of dimension 3 takes 1, 3 or 9",
            "^^^^^^^^^^^^^^"),
        "WeightedSqDist(p, x, z)": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "^^^^^^^^^^^^^^"),
        # matrices and tensors
        "MatVecMult(z, x)": ("the matrix has dimension 4, which is no multiple of the vector's, 3", "^^^^^^^^^^"),
        "MatVecMult(x, A)": ("the matrix has dimension 3, which is no multiple of the vector's, 6", "^^^^^^^^^^"),
        "VecMatMult(x, z)": ("the matrix has dimension 4, which is no multiple of the vector's, 3", "^^^^^^^^^^"),
        "TensorDot(x, y, [2], [3], [], [])": ("the shape [2] of f has 2 components, the vector 3", "^^^^^^^^^"),
        "TensorDot(x, A, [3], [2, 2], [], [])": ("the shape [2, 2] of g has 4 components, the vector 6", "^^^^^^^^^"),
        "TensorDot(x, y, [], [3], [], [])": ("the shape [] of f has 1 components, the vector 3", "^^^^^^^^^"),
        "TensorDot(x, y, [3, 0], [3], [], [])": ("the shape [3, 0] of f has 0 components, the vector 3", "^^^^^^^^^"),
        "TensorDot(x, A, [3], [2, 3], [0], [0])": (
            "axis 0 of f has size 3, axis 0 of g 2: axes that are contracted have equal sizes", "^^^^^^^^^"),
        "Kron(x, A, [3], [2, 3])": ("the shapes [3] and [2, 3] have 1 and 2 axes: both must have as many", "^^^^"),
        "Kron(x, A, [2], [6])": ("the shape [2] of f has 2 components, the vector 3", "^^^^"),
        "Kron(x, A, [3], [5])": ("the shape [5] of g has 5 components, the vector 6", "^^^^"),
        # complex
        "ComplexReal(x)": ("a complex vector has an even dimension, got 3", "^^^^^^^^^^^"),
        "ComplexImag(x)": ("a complex vector has an even dimension, got 3", "^^^^^^^^^^^"),
        "Conj(x)": ("a complex vector has an even dimension, got 3", "^^^^"),
        "ComplexAdd(x, z)": ("a complex vector has an even dimension, got 3", "^^^^^^^^^^"),
        "ComplexAdd(z, A)": ("dimensions (4, 6) do not broadcast: each must be 2 or 6", "^^^^^^^^^^"),
        "ComplexSubtract(z, p)": ("a complex vector has an even dimension, got 1", "^^^^^^^^^^^^^^^"),
        "ComplexMult(z, A)": ("dimensions (4, 6) do not broadcast: each must be 2 or 6", "^^^^^^^^^^^"),
        "ComplexDivide(z, A)": ("dimensions (4, 6) do not broadcast: each must be 2 or 6", "^^^^^^^^^^^^^"),
        "ComplexMult(x, x)": ("a complex vector has an even dimension, got 3", "^^^^^^^^^^^"),
        "ComplexSquareAbs(x)": ("a complex vector has an even dimension, got 3", "^^^^^^^^^^^^^^^^"),
        "ComplexAbs(p)": ("a complex vector has an even dimension, got 1", "^^^^^^^^^^"),
        "ComplexAngle(x)": ("a complex vector has an even dimension, got 3", "^^^^^^^^^^^^"),
        "ComplexExp(x)": ("a complex vector has an even dimension, got 3", "^^^^^^^^^^"),
        "ComplexSum(x)": ("a complex vector has an even dimension, got 3", "^^^^^^^^^^"),
        "ComplexSumT(z, 4)": ("the argument must be a complex number, of dimension 2, got 4", "^^^^^^^^^^^"),
        "ComplexSumT(p, 4)": ("the argument must be a complex number, of dimension 2, got 1", "^^^^^^^^^^^"),
        "ComplexSumT(Extract(z, 0, 2), 3)": ("a complex vector has an even dimension, got 3", "^^^^^^^^^^^"),
        "ComplexRealScal(x, z)": ("one of the arguments must be a real number, of dimension 1, got dimensions (3, 4)",
            "^^^^^^^^^^^^^^^"),
        "ComplexRealScal(p, x)": ("a complex vector has an even dimension, got 3", "^^^^^^^^^^^^^^^"),
        "ComplexRealScal(p, p)": ("a complex vector has an even dimension, got 1", "^^^^^^^^^^^^^^^"),
        "ComplexPair(x, z)": ("dimensions (3, 4) do not broadcast: each must be 1 or 4", "^^^^^^^^^^^"),
        "ComplexPair(z, Extract(z, 0, 2))": ("dimensions (4, 2) do not broadcast: each must be 1 or 4", "^^^^^^^^^^^"),
        # curves
        "BSpline(A, x, 2)": ("the place x must have dimension 1, got 3", "^^^^^^^"),
        "BSpline(A, p, 5)": ("splines of degree 5 need at least 7 knots, got 6", "^^^^^^^"),
        "SoftDTW_SqDist(x, y, z)": ("the smoothing g must have dimension 1, got 4", "^^^^^^^^^^^^^^"),
        # derivatives
        "Grad(x, x, p)": ("the cotangent of Grad has dimension 1, the formula 3: it must be 3", "^^^^"),
        "Grad(Sum(x), x, x)": ("the cotangent of Grad has dimension 3, the formula 1: it must be 1", "^^^^"),
        "Diff(x, x, p)": ("the direction of Diff has dimension 1, the variable 3: it must be 3", "^^^^"),
        "Diff(x, x, z)": ("the direction of Diff has dimension 4, the variable 3: it must be 3", "^^^^"),
        "Divergence(Sum(x), x)": ("the formula of Divergence has dimension 1, the variable 3: it must be 3",
            "^^^^^^^^^^"),
        "Divergence(x, p)": ("the formula of Divergence has dimension 3, the variable 1: it must be 1", "^^^^^^^^^^"),
        "Laplacian(x, x)": ("Laplacian takes a formula of dimension 1, got 3",
            "^^^^^^^^^", "Sum(F) adds its components up, Elem(F, m) takes one"),
        "AdjointOperator(x, x, p)": (
            "the third argument of AdjointOperator has dimension 1, the formula 3: it must be 3", "^^^^^^^^^^^^^^^"),
        "TraceOperator(Concat(x, x), x)": ("the formula of TraceOperator has dimension 6, the variable 3: it must be 3",
            "^^^^^^^^^^^^^"),
        "TraceOperator(x, x, z)": ("the weight of TraceOperator has dimension 4, the variable 3: it must be 3 or 1",
            "^^^^^^^^^^^^^"),
        "TraceOperator(p, p, z)": ("the weight of TraceOperator has dimension 4, the variable 1: it must be 1",
            "^^^^^^^^^^^^^"),
        "SumLinOperator(x, x, z)": (
            "the left weight of SumLinOperator has dimension 4, the formula 3: it must be 3 or 1", "^^^^^^^^^^^^^^"),
        "SumLinOperator(x, x, 1, z)": (
            "the right weight of SumLinOperator has dimension 4, the variable 3: it must be 3 or 1", "^^^^^^^^^^^^^^"),
    },
    errors.IndexRangeError: {
        # integers
        "Elem(x, 3)": ("component 3 is outside a vector of dimension 3: 0 ... 2", "^^^^"),
        "Elem(x, -1)": ("component -1 is outside a vector of dimension 3: 0 ... 2", "^^^^"),
        "ElemT(p, 3, 3)": ("component 3 is outside a vector of dimension 3: 0 ... 2", "^^^^^"),
        "Extract(x, 1, 3)": ("components 1 ... 3 are not inside a vector of dimension 3", "^^^^^^^"),
        "Extract(x, -1, 2)": ("components -1 ... 0 are not inside a vector of dimension 3", "^^^^^^^"),
        "ExtractT(x, 1, 3)": ("components 1 ... 3 are not inside a vector of dimension 3", "^^^^^^^^"),
        "ExtractT(x, -1, 5)": ("components -1 ... 1 are not inside a vector of dimension 5", "^^^^^^^^"),
        "BSpline(A, p, -1)": ("the degree of a spline is at least 0, got -1", "^^^^^^^"),
        # matrices and tensors
        "TensorDot(x, A, [3], [2, 3], [1], [1])": ("axis 1 of f is contracted, its shape [3] has the axes 0 ... 0",
            "^^^^^^^^^"),
        "TensorDot(x, A, [3], [2, 3], [0], [2])": ("axis 2 of g is contracted, its shape [2, 3] has the axes 0 ... 1",
            "^^^^^^^^^"),
        "TensorDot(p, A, [], [2, 3], [0], [0])": ("axis 0 of f is contracted, its shape [] has no axis", "^^^^^^^^^"),
    },
    errors.LimitError: {
        # integers
        "ElemT(p, 0, 0)": ("dimension 0 is outside 1 ... 1000000", "^^^^^"),
        "Extract(x, 0, 0)": ("dimension 0 is outside 1 ... 1000000", "^^^^^^^"),
        "ExtractT(x, 0, 0)": ("dimension 0 is outside 1 ... 1000000", "^^^^^^^^"),
        "OneHot(p, 0)": ("dimension 0 is outside 1 ... 1000000", "^^^^^^"),
        "OneHot(p, 1000001)": ("dimension 1000001 is outside 1 ... 1000000", "^^^^^^"),
        "SumT(p, 0)": ("dimension 0 is outside 1 ... 1000000", "^^^^"),
        "Zero(0)": ("dimension 0 is outside 1 ... 1000000", "^^^^"),
        "Zero(10**12)": ("dimension 1000000000000 is outside 1 ... 1000000", "^^^^"),
        "Round(x, 31)": ("the number of decimals 31 is outside -30 ... 30", "^^^^^"),
        "Round(x, -31)": ("the number of decimals -31 is outside -30 ... 30", "^^^^^"),
        "Pow(x, 1000001)": ("the exponent 1000001 is outside -1000000 ... 1000000", "^^^"),
        "x ** 1000001": ("the exponent 1000001 is outside -1000000 ... 1000000", "  ^^"),
        "BSpline(A, p, 101)": ("the degree of a spline is 101, the limit is 100", "^^^^^^^"),
        # dimensions
        "Concat(Zero(999999), z)": ("dimension 1000003 is outside 1 ... 1000000", "^^^^^^"),
        # matrices and tensors
        "TensorProd(Zero(1001), Zero(1000))": ("dimension 1001000 is outside 1 ... 1000000", "^^^^^^^^^^"),
        "Kron(Zero(1001), Zero(1000), [1001], [1000])": ("dimension 1001000 is outside 1 ... 1000000", "^^^^"),
        # complex
        "ComplexSumT(Extract(z, 0, 2), 0)": ("dimension 0 is outside 1 ... 1000000", "^^^^^^^^^^^"),
        "ComplexSumT(Extract(z, 0, 2), -2)": ("dimension -2 is outside 1 ... 1000000", "^^^^^^^^^^^"),
        "ComplexExp1j(Zero(500001))": ("dimension 1000002 is outside 1 ... 1000000", "^^^^^^^^^^^^"),
        "Real2Complex(Zero(500001))": ("dimension 1000002 is outside 1 ... 1000000", "^^^^^^^^^^^^"),
        "Imag2Complex(Zero(500001))": ("dimension 1000002 is outside 1 ... 1000000", "^^^^^^^^^^^^"),
        # curves
        "SoftDTW_SqDist(Zero(100), Zero(41), p)": (
            "series of lengths 100 and 41 are warped over 4100 cells, the limit is 4000", "^^^^^^^^^^^^^^"),
        # constants
        "9**(9**9)": ("the exponent 387420489 is outside -1000000 ... 1000000", " ^^"),
        "9 ** 999999": ("the constant would have about 954242 digits, the limit is 400", "  ^^"),
        "1e401": ("a constant has more than 400 digits", "^^^^^"),
        "1e-999999999": ("a constant has more than 400 digits", "^^^^^^^^^^^^"),
        "1e300 * 1e300": ("a constant has more than 400 digits", "      ^"),
        # derivatives
        "GradMatrix(Zero(200000)*Sum(x), x)": ("GradMatrix takes 200000 derivatives, the limit is 100000",
            "^^^^^^^^^^"),
        "GradMatrix(Zero(1001) + Sum(Vi(5, 1000)), Vi(5, 1000))": ("dimension 1001000 is outside 1 ... 1000000",
            "^^^^^^^^^^"),
    },
    errors.DerivativeError: {
        # derivatives
        "Grad(Exp(x), x + y, x)": ("Grad differentiates with respect to a variable",
            "^^^^", "its second argument is the name of a variable, or Var(ind, dim, cat)"),
        "Grad(Exp(x), 3, x)": ("Grad differentiates with respect to a variable",
            "^^^^", "its second argument is the name of a variable, or Var(ind, dim, cat)"),
        "GradMatrix(x, Exp(x))": ("GradMatrix differentiates with respect to a variable",
            "^^^^^^^^^^", "its second argument is the name of a variable, or Var(ind, dim, cat)"),
        "Diff(x, -x, x)": ("Diff differentiates with respect to a variable",
            "^^^^", "its second argument is the name of a variable, or Var(ind, dim, cat)"),
        "Divergence(x, x * 2)": ("Divergence differentiates with respect to a variable",
            "^^^^^^^^^^", "its second argument is the name of a variable, or Var(ind, dim, cat)"),
        "Laplacian(p, x + x)": ("Laplacian differentiates with respect to a variable",
            "^^^^^^^^^", "its second argument is the name of a variable, or Var(ind, dim, cat)"),
        "AdjointOperator(x, Sum(x), x)": ("AdjointOperator differentiates with respect to a variable",
            "^^^^^^^^^^^^^^^", "its second argument is the name of a variable, or Var(ind, dim, cat)"),
        "TraceOperator(x, Zero(3))": ("TraceOperator differentiates with respect to a variable",
            "^^^^^^^^^^^^^", "its second argument is the name of a variable, or Var(ind, dim, cat)"),
        "SumLinOperator(x, x | y)": ("SumLinOperator differentiates with respect to a variable",
            "^^^^^^^^^^^^^^", "its second argument is the name of a variable, or Var(ind, dim, cat)"),
        "Grad(x, p)": ("the gradient with respect to a parameter needs its third argument, the cotangent",
            "^^^^", "write Grad(F, v, e)"),
        "Grad(x, Pm(5, 2))": ("the gradient with respect to a parameter needs its third argument, the cotangent",
            "^^^^", "write Grad(F, v, e)"),
        "AdjointOperator(Square(x), x, x)": (
            "AdjointOperator needs a formula that is linear in its second argument, but its derivative depends on that",
            "^^^^^^^^^^^^^^^", "Grad and Diff differentiate any formula"),
        "TraceOperator(x * Sum(x), x)": (
            "TraceOperator needs a formula that is linear in its second argument, but its derivative depends on that",
            "^^^^^^^^^^^^^", "Grad and Diff differentiate any formula"),
        "SumLinOperator(Exp(x), x)": (
            "SumLinOperator needs a formula that is linear in its second argument, but its derivative depends on that",
            "^^^^^^^^^^^^^^", "Grad and Diff differentiate any formula"),
    },
}  # fmt: skip

CASES = [(kind, text) for kind, texts in BAD.items() for text in texts]
AXES = ", ".join(["1"] * 9)
SHOWN_IN_PART = {  # class, message, hint of texts that are long or have several lines, and the line that is shown
    "x +\n  Expp(y)\n + p": (errors.UnknownNameError, "unknown operation 'Expp'", "did you mean 'Exp'?", "  Expp(y)"),
    f"Kron(p, p, [{AXES}], [{AXES}])": (
        errors.LimitError, "the result has 18 axes, the limit is 16", "",
        "Kron(p, p, [1, 1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1,..."),
    f"TensorDot(x, p, [3], [{AXES}, {AXES}], [], [])": (
        errors.LimitError, "the shape of g has 18 axes, the limit is 16", "",
        "TensorDot(x, p, [3], [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,..."),
    "x + Divergence(ExtractT(Extract(Vi(5, 200000), 0, 3), 0, 200000), Vi(5, 200000))": (
        errors.LimitError, "the trace of ExtractT takes 200000 derivatives, the limit is 100000", "",
        "x + Divergence(ExtractT(Extract(Vi(5, 200000), 0, 3), 0, 200000), Vi(5, 20..."),
}  # fmt: skip


def node(text):
    return formula(text, ALIASES).node


def refused(text):
    with pytest.raises(errors.FormulaError) as caught:
        node(text)
    return caught.value


@pytest.mark.parametrize(("kind", "text"), CASES)
def test_a_bad_formula_is_refused_with_its_place(kind, text):
    message, carets, *hint = BAD[kind][text]
    error = refused(text)
    assert type(error) is kind
    assert str(error) == "\n".join([message, f"    {text}", f"    {carets}", *hint])
    assert error.text == text


@pytest.mark.parametrize("text", SHOWN_IN_PART)
def test_a_bad_formula_is_shown_in_part(text):
    kind, message, hint, line = SHOWN_IN_PART[text]
    error = refused(text)
    assert type(error) is kind
    start, end = error.span
    name = text[start:end]
    carets = " " * line.index(name) + "^" * len(name)
    assert str(error) == "\n".join([message, f"    {line}", f"    {carets}", *([hint] if hint else [])])


@pytest.mark.parametrize(("kind", "text"), CASES)
def test_errors_travel(kind, text):
    sent = refused(text)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        got = pickle.loads(pickle.dumps(sent, protocol))
        assert type(got) is kind
        assert (str(got), got.message, got.text, got.span, got.hint) == (
            str(sent), sent.message, sent.text, sent.span, sent.hint)  # fmt: skip


# -- the list is complete ----------------------------------------------------------------------------------------------


def blamed():
    """The operations under the carets of the list, operators by their names."""
    names = {symbol: name for symbol, (_, name, _) in BINARY.items()}
    texts = [text[carets.index("^") :][: carets.count("^")] for texts in BAD.values()
             for text, (_, carets, *_) in texts.items()]  # fmt: skip
    return {names.get(text, text) for text in texts}


def test_every_operation_that_can_be_called_wrongly_has_an_example():
    """Beyond a wrong number of arguments: with dimensions, integers or lists that do not fit."""
    able = {name for name, op in OPS.items() if len(op.args) > 1 or op.attrs or op.dim not in (None, one)}
    assert (able | DERIVED.keys()) - blamed() == {"ZeroTensorDot"}  # all of TensorDot's


CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.DredError)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_every_error_class_travels(kind):
    required = [p for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    taken = [p for p in required if p.kind is p.POSITIONAL_OR_KEYWORD]
    given = [7 if p.annotation in ("int", "float") else p.name for p in taken] or ["what is wrong"]
    sent = kind(*given)
    got = pickle.loads(pickle.dumps(sent))
    assert type(got) is kind
    assert str(got) == str(sent)
    assert given[0] in str(got)
    assert vars(got) == vars(sent)


def test_every_kind_of_formula_error_has_an_example():
    shown = {*BAD, errors.VariableError}  # the latter: test_language.py
    assert shown == {c for c in CLASSES if issubclass(c, errors.FormulaError)} - {errors.FormulaError}


@pytest.mark.parametrize("name", ["zzzzzz", "Gaussian", "Foo"])
def test_an_unknown_operation_without_a_near_one_lists_them_all(name):
    hint = refused(f"{name}(x)").hint
    names = sorted([*OPS, *DERIVED, "Var", "Vi", "Vj", "Pm"])
    assert hint.replace("\n", " ") == f"known are: {', '.join(names)}"
    assert all(80 < len(line) <= 100 for line in hint.split("\n")[:-1])
