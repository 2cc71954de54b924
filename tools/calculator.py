"""Arithmetic for a model that should not do it in its head.

The expression is split into known words, parsed with ``ast`` and evaluated node by node from an allow-list: no
name, attribute or call outside it can be reached, and nothing is ever handed to the interpreter to run. Whole
numbers stay exact; other results are shown with 15 significant digits, so that 0.1 + 0.2 is 0.3.

Every step is bounded before it is taken (length, nesting, size of the numbers), so that no expression can hold a
core or the memory: ``9**9**9`` is refused, not computed.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Final

from langchain_core.tools import BaseTool, ToolException, tool

Number = int | float

MAX_LENGTH: Final = 1000
MAX_PARENTHESES: Final = 50
MAX_DEPTH: Final = 200  # of the tree: a sum of 200 numbers is as deep
MAX_BITS: Final = 4096  # of a whole number: 1,233 digits, well under what Python refuses to print
MAX_PLACES: Final = 100

UNREADABLE: Final = (
    "This is not arithmetic the calculator can read. Write it like 2 * (3 + 4) ** 2: every multiplication needs its *, "
    "a comma only separates thousands or the arguments of a function, and % is the remainder, so 20 % is 20 / 100."
)
TOO_LARGE: Final = "The number gets too large. Work with smaller numbers, or with their logarithms."
TOO_DEEP: Final = "The expression is nested too deeply. Work it out in parts."


def build_calculator() -> BaseTool:
    """The calculator: ``expression`` in, the result as text; ``ToolException`` when there is none."""

    @tool(parse_docstring=True)
    def calculator(expression: str) -> str:
        """Work out an arithmetic expression. Use it for every calculation, however easy.

        Knows + - * / // (whole division) % (remainder) ** or ^ (power), parentheses, pi, e, and sqrt, abs, round,
        floor, ceil, min, max, exp, ln (natural), log (base 10, or log(x, base)), sin, cos, tan (radians).

        Args:
            expression: The expression, for example "(17.5 + 2) * sqrt(16) / 3". Numbers have a decimal point,
                and no thousands separators within a function.
        """
        return calculate(expression)

    calculator.metadata = {"label": "Calculating…"}
    return calculator


def calculate(expression: str) -> str:
    """The value of ``expression`` as text; raises ``ToolException`` with what to do when it has none."""
    try:
        return readable(evaluate(parse(expression)))
    except ZeroDivisionError as error:
        raise ToolException("This divides by zero, which has no result.") from error
    except OverflowError as error:
        raise ToolException(TOO_LARGE) from error
    except ValueError as error:
        raise ToolException("This has no real result: sqrt needs 0 or more, ln and log more than 0.") from error


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

SYNONYMS: Final = str.maketrans({"×": "*", "⋅": "*", "·": "*", "÷": "/", "−": "-", "^": "**", "π": "pi"})
NUMBER: Final = re.compile(r"(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?")
# No leading zero and exactly three digits a group: 0,500 and 12,34 are somebody's decimal comma, and refused.
WITH_THOUSANDS: Final = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])(?:\.[0-9]+)?")
WORD: Final = re.compile(r"[a-z_][a-z0-9_]*")
OPERATOR: Final = re.compile(r"\*\*|//|[-+*/%(),]")


def parse(expression: str) -> ast.expr:
    """The syntax tree of ``expression``, made of known names, numbers and operators alone."""
    if len(expression) > MAX_LENGTH:
        raise ToolException(f"The expression is over {MAX_LENGTH} characters long. Work it out in parts.")
    words = split(expression.lower().translate(SYNONYMS))
    if not words:
        raise ToolException('The expression is empty. Give one, for example "2 * (3 + 4)".')
    try:
        return ast.parse(" ".join(words), mode="eval").body
    except SyntaxError as error:
        raise ToolException(UNREADABLE) from error
    except (MemoryError, RecursionError) as error:  # the parser's own bounds on nesting
        raise ToolException(TOO_DEEP) from error


def split(expression: str) -> list[str]:
    """The words of ``expression``; thousands separators are taken out where a comma can mean nothing else."""
    words: list[str] = []
    in_call: list[bool] = []  # one for each open parenthesis: does it hold a function's arguments?
    position = 0
    while rest := expression[position:].lstrip():
        position = len(expression) - len(rest)
        word = next_word(rest, thousands=not (in_call and in_call[-1]))
        if word == "(":
            in_call.append(bool(words) and words[-1] in FUNCTIONS)
            if len(in_call) > MAX_PARENTHESES:
                raise ToolException(TOO_DEEP)
        elif word == ")" and in_call:
            in_call.pop()
        words.append(word.replace(",", "") if len(word) > 1 else word)
        position += len(word)
    return words


def next_word(rest: str, *, thousands: bool) -> str:
    """The number, name or operator ``rest`` begins with; a name must be one the calculator knows."""
    found = (thousands and WITH_THOUSANDS.match(rest)) or NUMBER.match(rest) or OPERATOR.match(rest)
    if found:
        return found[0]
    if (name := WORD.match(rest)) is None:
        raise ToolException(f"The calculator does not know {rest[0]!r}. {UNREADABLE}")
    if name[0] not in FUNCTIONS | CONSTANTS:
        known = ", ".join(sorted(FUNCTIONS | CONSTANTS))
        raise ToolException(f"The calculator does not know {name[0][:40]!r}. The names it knows are {known}.")
    return name[0]


# ── working it out ───────────────────────────────────────────────────────────────────────────────────────────────


def evaluate(node: ast.expr, depth: int = 0) -> Number:
    """The value of a syntax tree; what is not on the allow-list raises ``ToolException``."""
    if depth > MAX_DEPTH:
        raise ToolException(TOO_DEEP)
    match node:
        case ast.Constant(value=int() | float() as value):
            return bounded(value)
        case ast.Name(id=name) if name in CONSTANTS:
            return CONSTANTS[name]
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return evaluate(operand, depth + 1)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -evaluate(operand, depth + 1)
        case ast.BinOp(left=left, op=op, right=right):
            return bounded(OPERATORS[type(op)](evaluate(left, depth + 1), evaluate(right, depth + 1)))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            return bounded(call(name, [evaluate(arg, depth + 1) for arg in args]))
        case _:
            raise ToolException(UNREADABLE)


def call(name: str, args: list[Number]) -> Number:
    """One function of the allow-list, with as many arguments as it takes."""
    function, least, most = FUNCTIONS[name]
    if not least <= len(args) <= most:
        takes = f"{least}" if least == most else f"{least} to {most}" if most < MAX_LENGTH else f"at least {least}"
        raise ToolException(
            f"{name} takes {takes} argument(s), not {len(args)}. Arguments are separated by commas, "
            "so write numbers inside a function without thousands separators."
        )
    return function(*args)


def bounded(value: Number) -> Number:
    """``value``, when it is finite and of a size that the next step can bear."""
    if math.isfinite(value) if isinstance(value, float) else value.bit_length() <= MAX_BITS:
        return value
    raise ToolException(TOO_LARGE)


def power(base: Number, exponent: Number) -> Number:
    """``base ** exponent`` in the reals, refused before it is computed when the result would be too large."""
    if isinstance(base, int) and isinstance(exponent, int) and (base.bit_length() - 1) * exponent > MAX_BITS:
        raise ToolException(TOO_LARGE)
    result: Number | complex = base**exponent
    if isinstance(result, complex):
        raise ToolException("A negative number has no real result with a fractional power.")
    return result


def divide(dividend: Number, divisor: Number) -> Number:
    """``dividend / divisor``, exact when it comes out whole."""
    if isinstance(dividend, int) and isinstance(divisor, int) and divisor and dividend % divisor == 0:
        return dividend // divisor
    return dividend / divisor


def rounded(value: Number, places: Number = 0) -> Number:
    """``round``, whose places are bounded: a negative million of them would be a power bomb."""
    if not (isinstance(places, int) and abs(places) <= MAX_PLACES):
        raise ToolException(f"round takes a whole number of places, from -{MAX_PLACES} to {MAX_PLACES}.")
    return round(value, places) if places else round(value)


def logarithm(value: Number, base: Number = 10) -> Number:
    """The logarithm to ``base``; base 10 and 2 are exact where the result is whole."""
    if base == 1:
        raise ToolException("There is no logarithm to base 1.")
    exact: dict[Number, Callable[[Number], float]] = {10: math.log10, 2: math.log2}
    return exact[base](value) if base in exact else math.log(value, base)


def readable(value: Number) -> str:
    """Whole numbers digit by digit; others with 15 significant digits, where binary rounding does not show."""
    # Adding zero turns -0.0 into 0.0.
    return str(value) if isinstance(value, int) else f"{value + 0.0:.15g}"


OPERATORS: Final[Mapping[type[ast.operator], Callable[[Number, Number], Number]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: divide,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: power,
}
CONSTANTS: Final[dict[str, float]] = {"pi": math.pi, "e": math.e}
# Each with the fewest and the most arguments it takes.
FUNCTIONS: Final[dict[str, tuple[Callable[..., Number], int, int]]] = {
    "sqrt": (math.sqrt, 1, 1),
    "abs": (abs, 1, 1),
    "round": (rounded, 1, 2),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "min": (min, 2, MAX_LENGTH),
    "max": (max, 2, MAX_LENGTH),
    "exp": (math.exp, 1, 1),
    "ln": (math.log, 1, 1),
    "log": (logarithm, 1, 2),
    "sin": (math.sin, 1, 1),
    "cos": (math.cos, 1, 1),
    "tan": (math.tan, 1, 1),
}
