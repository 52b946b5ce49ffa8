"""Text to a postfix program: lexer and explicit-stack parser with positions, without recursion."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from dred.errors import FormulaError, FormulaSyntaxError, LimitError

MAX_DIGITS = 400  # of a constant
MAX_NAME = 200
MAX_TOKENS = 1_000_000

_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<symbol>\*\*|<=|>=|==|!=|[-+*/|<>()\[\],=;])"
)
_BLANK = re.compile(r"[ \t\r\n]*")


class Token(NamedTuple):
    kind: str  # "number", "name", "symbol" or "end"
    text: str
    start: int
    end: int

    @property
    def span(self) -> tuple[int, int]:
        return self.start, self.end


class Step(NamedTuple):
    """One instruction of the stack machine: push a number, a name or a list, call an operation, bind a name."""

    kind: str  # "number", "name", "list", "call", "bind"
    value: Any
    nargs: int  # arguments that a call takes from the stack
    keywords: tuple[str, ...]  # names of the last arguments of a call
    span: tuple[int, int]


@dataclass(frozen=True)
class Program:
    """A parsed formula: its text and its instructions in postfix order."""

    text: str
    steps: tuple[Step, ...]


POWER = "**"  # as an operation: no name of the language, so no user can call it

# symbol -> (precedence, operation, operands exchanged)
BINARY: dict[str, tuple[int, str, bool]] = {
    "<": (1, "LessThan", False),
    "<=": (1, "LessOrEqual", False),
    ">": (1, "LessThan", True),
    ">=": (1, "LessOrEqual", True),
    "==": (1, "Equal", False),
    "!=": (1, "NotEqual", False),
    "|": (2, "Scalprod", False),
    "+": (3, "Add", False),
    "-": (3, "Subtract", False),
    "*": (4, "Mult", False),
    "/": (4, "Divide", False),
    "**": (6, POWER, False),
}
UNARY_PRECEDENCE = 5

# what other languages write, and what is written here
_LET = "write 'let r = x-y; ...' to name a part, '==' to compare"
ELSEWHERE = {
    "=": _LET,
    "let": _LET,
    "===": "'==' compares",
    "=<": "'<=' compares",
    "=>": "'>=' compares",
    "<>": "'!=' compares",
    "\u2212": "write '-'",  # the minus sign of typeset texts
    "|": "|x| is Abs(x), or Norm2(x)",
    "1j": "Imag2Complex(f) is f times the imaginary unit",
    "?": "IfElse(f, g, h) is g where f >= 0, else h",
    "%": "Mod(f, n, 0) is the remainder of f by n",
    "//": "Floor(f / g) rounds a quotient down",
    "@": "MatVecMult(A, b) and VecMatMult(b, A) multiply matrices, (f | g) vectors",
    "^": "'**' is the power",
    "!": "Not(f) is the negation, '!=' compares",
    "~": "Not(f) is the negation",
    "&": "And(f, g) is 1 where f and g are not 0",
    "&&": "And(f, g) is 1 where f and g are not 0",
    "||": "Or(f, g) is 1 where f or g is not 0",
    "and": "And(f, g) is 1 where f and g are not 0",
    "or": "Or(f, g) is 1 where f or g is not 0",
    "not": "Not(f) is 1 where f is 0",
    "if": "IfElse(f, g, h) is g where f >= 0, else h",
    ".": "functions are written f(x), not x.f()",
}
_LIST, _JOIN = "a list is written [2, 0, 3]", "Concat(x, y) joins vectors"
EXCHANGED = ("<>",)  # in place of keywords: no name of the language, so no user can write it


def tokenize(text: str) -> list[Token]:
    """Tokens of `text`, ended by one of kind "end".

    Raises
    ------
    FormulaSyntaxError
        At a character that starts no token.
    LimitError
        For more than a million tokens, or a name of more than 200 characters.
    """
    tokens: list[Token] = []
    at = 0
    while True:
        at = _BLANK.match(text, at).end()  # type: ignore[union-attr]  # matches the empty string
        if at == len(text):
            tokens.append(Token("end", "", at, at))
            return tokens
        found = _TOKEN.match(text, at)
        if found is None:
            word = text[at : at + 2] if text[at : at + 2] in ELSEWHERE else text[at]
            raise FormulaSyntaxError(f"unexpected character {text[at]!r}", text, (at, at + 1), ELSEWHERE.get(word, ""))
        token = Token(str(found.lastgroup), found.group(), at, found.end())
        if token.kind == "name" and len(token.text) > MAX_NAME:
            raise LimitError(f"a name has more than {MAX_NAME} characters", text, token.span)
        tokens.append(token)
        at = found.end()
        if len(tokens) > MAX_TOKENS:
            raise LimitError(f"the formula has more than {MAX_TOKENS} tokens")


def number(token: Token, text: str) -> Fraction:
    """The exact value of a literal of at most `MAX_DIGITS` digits, exponent included."""
    mantissa, _, exponent = token.text.lower().partition("e")
    size = abs(int(exponent)) if exponent and len(exponent) <= 6 else 0 if not exponent else MAX_DIGITS + 1
    if len(mantissa) > MAX_DIGITS + 2 or size > MAX_DIGITS:  # 10^400 and a point are within the limit
        raise LimitError(f"a constant has more than {MAX_DIGITS} digits", text, token.span)
    return Fraction(token.text)


class _Open(NamedTuple):
    """An open parenthesis: of a call (name) or of a group."""

    name: str | None
    token: Token  # of the name, where there is one
    parenthesis: Token
    args: list[str]  # keyword of each argument that has begun, "" without


class _Pending(NamedTuple):
    """An operator that waits for its right operand."""

    precedence: int
    op: str
    nargs: int
    exchanged: bool
    token: Token


def parse(text: str) -> Program:
    """Parse a formula.

    Parameters
    ----------
    text : str

    Returns
    -------
    Program

    Raises
    ------
    FormulaSyntaxError
        Where the text leaves the grammar.
    LimitError
        For constants or texts beyond the limits.

    Examples
    --------
    >>> [step.value for step in parse("Exp(x - y)").steps]
    ['x', 'y', 'Subtract', 'Exp']
    """
    return _Parser(text).run()


# for the texts of tables, which are few and read again and again
parse_once = lru_cache(maxsize=4096)(parse)


class _Parser:
    """Operator-precedence parsing with an explicit stack of open parentheses and pending operators."""

    def __init__(self, text: str) -> None:
        self.text, self.tokens, self.at = text, tokenize(text), 0
        self.stack: list[_Open | _Pending] = []
        self.out: list[Step] = []
        self.binding: Token | None = None

    def fail(self, message: str, token: Token, hint: str = "") -> FormulaError:
        return FormulaSyntaxError(message, self.text, token.span, hint)

    def peek(self, ahead: int = 0) -> Token:
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)]

    def run(self) -> Program:
        while True:
            self.operand()
            while (token := self.peek()).text == ")":
                self.close(token)
            if token.kind == "end":
                break
            if token.text == ",":
                self.comma(token)
            elif token.text == ";":
                self.bind(token)
            elif token.text in BINARY:
                self.binary(token)
            else:
                raise self.stray(token)
        self.reduce(0)
        if self.stack and isinstance(frame := self.stack[-1], _Open):
            raise self.fail("this parenthesis is never closed", frame.parenthesis)
        if self.binding is not None:
            raise self.fail("expected ';' and a formula after the binding", token)
        return Program(self.text, tuple(self.out))

    def stray(self, token: Token) -> FormulaError:
        """The error of a token where an operator is due."""
        before = self.tokens[self.at - 1]
        self.pair(before, token)
        self.pair(token, self.peek(1))
        if token.text == "[":
            return self.fail("subscripts are not part of the language", token, "Elem(f, m) takes one component of f")
        if token.text == "=":
            return self.fail("unexpected '='", token, _LET)
        if before.text in ELSEWHERE:  # an alias may have this name, but none stands here
            return self.fail(f"{before.text!r} is no operator", before, ELSEWHERE[before.text])
        missing = "is '*' or ',' missing?" if token.kind != "symbol" or token.text == "(" else ""
        return self.fail(f"expected an operator, got {token.text!r}", token, ELSEWHERE.get(token.text, missing))

    def pair(self, first: Token, second: Token) -> None:
        """Refuse two tokens that are one symbol elsewhere, where no blank is between them."""
        both = first._replace(text=first.text + second.text, end=second.end)
        if first.end == second.start and second.text and both.text in ELSEWHERE:
            raise self.fail(f"unexpected {both.text!r}", both, ELSEWHERE[both.text])

    # -- operands --------------------------------------------------------------------------------------------------

    def operand(self) -> None:
        """Prefix operators and open parentheses up to, and with, one complete atom (or an empty call)."""
        while True:
            token = self.peek()
            power = bool(self.stack) and isinstance(self.stack[-1], _Pending) and self.stack[-1].op == POWER
            self.at += 1
            if token.kind == "number":
                self.out.append(Step("number", number(token, self.text), 0, (), token.span))
                return
            if token.kind == "name":
                if token.text == "let" and self.peek().kind == "name" and self.peek(1).text == "=":
                    self.begin_binding(token)
                elif self.peek().text == "(":
                    if self.open(token):
                        return
                else:
                    self.out.append(Step("name", token.text, 0, (), token.span))
                    return
            elif token.text == "(":
                self.stack.append(_Open(None, token, token, []))
            elif token.text == "[":
                self.integers(token)
                return
            elif token.text == "-" and power:
                self.negative_exponent()
                return
            elif token.text == "-":
                self.stack.append(_Pending(UNARY_PRECEDENCE, "Minus", 1, False, token))
            elif token.text != "+" or power:
                if self.at > 1:
                    self.pair(self.tokens[self.at - 2], token)
                what = "the end of the formula" if token.kind == "end" else repr(token.text)
                raise self.fail(f"expected a formula, got {what}", token, ELSEWHERE.get(token.text, ""))

    def negative_exponent(self) -> None:
        token = self.peek()
        if token.kind != "number":
            raise self.fail("after '** -' only a number is accepted", token, "write the exponent in parentheses")
        self.at += 1
        self.out.append(Step("number", -number(token, self.text), 0, (), token.span))

    def integers(self, bracket: Token) -> None:
        """`[1, 0, 2]`: a list of integers, as an argument of a call."""
        frame = self.stack[-1] if self.stack else None
        if not (isinstance(frame, _Open) and frame.name):
            raise self.fail("a list is accepted only as an argument of an operation", bracket, _JOIN)
        values: list[int] = []
        due = self.peek().text != "]"
        while due:
            token = self.peek()
            if token.kind != "number" or not token.text.isdigit():
                what = "the end of the formula" if token.kind == "end" else repr(token.text)
                hint = f"{_LIST}, {_JOIN}" if token.kind == "name" else _LIST
                raise self.fail(f"expected an integer of the list, got {what}", token, hint)
            values.append(int(number(token, self.text)))
            self.at += 1
            due = self.peek().text == ","
            self.at += due
        token = self.peek()
        if token.text != "]":
            raise self.fail("expected ',' or ']'", token)
        self.at += 1
        if self.peek().text not in (",", ")"):
            raise self.fail("a list is a whole argument, never a part of one", self.peek())
        self.out.append(Step("list", tuple(values), 0, (), (bracket.start, token.end)))

    # -- calls ------------------------------------------------------------------------------------------------------

    def open(self, name: Token) -> bool:
        """Begin a call; True where it has no arguments and is complete."""
        parenthesis, self.at = self.peek(), self.at + 1
        if self.peek().text == ")":
            self.at += 1
            self.out.append(Step("call", name.text, 0, (), name.span))
            return True
        frame = _Open(name.text, name, parenthesis, [])
        self.stack.append(frame)
        self.keyword(frame)
        return False

    def keyword(self, frame: _Open) -> None:
        word = ""
        if self.peek().kind == "name" and self.peek(1).text == "=":
            word = self.peek().text
            if word in frame.args:
                raise self.fail(f"the argument {word!r} is given twice", self.peek())
            self.at += 2
        elif any(frame.args):
            raise self.fail("an argument without name follows one with a name", self.peek())
        frame.args.append(word)

    def frame(self, token: Token, what: str, hint: str = "") -> _Open:
        self.reduce(0)
        if not self.stack or not isinstance(frame := self.stack[-1], _Open):
            raise self.fail(what, token, hint)
        return frame

    def comma(self, token: Token) -> None:
        frame = self.frame(token, "unexpected ','", _JOIN)
        if frame.name is None:
            raise self.fail("unexpected ','", token, _JOIN)
        self.at += 1
        self.keyword(frame)

    def close(self, token: Token) -> None:
        frame = self.frame(token, "this parenthesis was never opened")
        self.at += 1
        self.stack.pop()
        if frame.name is not None:
            words = tuple(word for word in frame.args if word)
            self.out.append(Step("call", frame.name, len(frame.args), words, frame.token.span))

    # -- operators --------------------------------------------------------------------------------------------------

    def binary(self, token: Token) -> None:
        precedence, op, exchanged = BINARY[token.text]
        self.reduce(precedence + (op == POWER))
        top = self.stack[-1] if self.stack else None
        if isinstance(top, _Pending) and top.precedence == precedence and op == POWER:
            raise self.fail("powers of powers are ambiguous", token, "use parentheses")
        if precedence == 1 and self.out and self.chained:
            raise self.fail("comparisons cannot be chained", token, "combine two comparisons with '*'")
        self.at += 1
        self.stack.append(_Pending(precedence, op, 2, exchanged, token))

    def reduce(self, precedence: int) -> None:
        """Apply pending operators that bind at least as strongly as `precedence`."""
        self.chained = False
        while self.stack and isinstance(top := self.stack[-1], _Pending) and top.precedence >= precedence:
            self.stack.pop()
            self.chained = top.precedence == 1
            step = Step("call", top.op, top.nargs, EXCHANGED if top.exchanged else (), top.token.span)
            self.out.append(step)

    # -- bindings ---------------------------------------------------------------------------------------------------

    def begin_binding(self, token: Token) -> None:
        if self.stack or self.binding is not None:
            raise self.fail("'let' begins a formula, never a part of one", token)
        self.binding, self.at = self.peek(), self.at + 2

    def bind(self, token: Token) -> None:
        self.reduce(0)
        if self.stack or self.binding is None:
            raise self.fail("unexpected ';'", token)
        self.at += 1
        self.out.append(Step("bind", self.binding.text, 1, (), self.binding.span))
        self.binding = None


V = TypeVar("V")


def evaluate(
    program: Program,
    number: Callable[[Fraction], V],
    name: Callable[[str], V],
    call: Callable[[str, Sequence[Any], dict[str, Any]], V],
    locate: bool = False,
) -> V:
    """Run a program on a stack machine: the one walk over formula text, whatever values stand for.

    With `locate`, errors without a place get the text and the span of the step that raised them: for the texts of
    users, not for those of tables.
    """
    stack: list[Any] = []
    bound: dict[str, V] = {}
    for step in program.steps:
        try:
            if step.kind == "number":
                stack.append(number(step.value))
            elif step.kind == "list":
                stack.append(step.value)
            elif step.kind == "name":
                stack.append(bound[step.value] if step.value in bound else name(step.value))
            elif step.kind == "bind":
                bound[step.value] = stack.pop()
            else:
                cut = len(stack) - step.nargs
                args, stack[cut:] = stack[cut:], []
                words = step.keywords
                if words == EXCHANGED:
                    args, words = args[::-1], ()
                plain = len(args) - len(words)
                stack.append(call(step.value, args[:plain], dict(zip(words, args[plain:], strict=True))))
        except FormulaError as error:
            raise (error.located(program.text, step.span) if locate else error) from None
    result: V = stack.pop()
    return result


def words(text: str) -> set[str]:
    """The names in a text."""
    return {step.value for step in parse_once(text).steps if step.kind == "name"}
