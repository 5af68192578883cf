"""Steps of arithmetic in a text, such as ``12 + 7 = 19``: found, computed exactly, compared with what is claimed.

Nothing is ever evaluated as code. What can't be read for certain is no step: beside a variable, a power, a function or
a word that may be an operator. A checker that doubts right steps would be worse than one that sees fewer of them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from stillhouse.data.synthetic.numerals import NUMERAL, plain_mathematics, read_numeral

MAX_TERMS = 50
"""Of one side of an equation, and sides of one chain."""
OPERATORS = {"−": "-", "–": "-", "×": "*", "·": "*", "x": "*", "X": "*", "÷": "/"}
# fmt: off
SPOILING_WORDS = frozenset((
    "of", "times", "mod", "modulo", "plus", "minus", "over", "by", "squared", "cubed", "power", "root", "divided",
    "multiplied", "choose", "less", "twice", "thrice", "double", "half", "sqrt", "log", "ln", "sin", "cos", "tan",
    "gcd", "lcm", "max", "min", "abs",
))
# fmt: on
"""A number beside one of these is part of a term that is not read."""
_SPOILING = "|".join(sorted(SPOILING_WORDS))
_UNIT = rf"\s?(?:%|(?!(?:{_SPOILING})\b)[^\W\d_]{{2,}}+(?=\s*(?:[-+*/×÷·−–=≈)]|[xX]\s*[\d($])))"
_TERM = rf"[-−(]{{0,8}}+[$€£¥]?+(?:{NUMERAL.pattern})(?!\d|[.,]\d)(?:{_UNIT})?+(?:\s?\)){{0,8}}+"
_OPERATOR = r"\s*+(?:[-+*/×÷·−–]|[xX](?=\s*[-−(]*[$€£¥]?[\d.]))\s*+"
_SIDE = rf"{_TERM}(?:{_OPERATOR}{_TERM}){{0,{MAX_TERMS}}}+"
_CHAIN = re.compile(rf"(?<![\w.,])(?<!\d:){_SIDE}(?:\s*+(?:==?|≈)\s*+{_SIDE}){{1,{MAX_TERMS}}}+")
_EQUALS = re.compile(r"==?|≈")
_TOKEN = re.compile(
    rf"(?P<number>{NUMERAL.pattern})(?P<unit>\s?%)?|(?P<sign>[-+*/×÷·−–()]|(?<![^\W\d_])[xX](?![^\W\d_]))"
)
_SPOILT_BEFORE = re.compile(r"(?:[-+*/×÷·−–^√\d)%}]|\b[^\W\d_]|[^\W\d_]\w*(?=\())\s*$")
_SPOILT_AFTER = re.compile(
    r"[^\W\d_](?![^\W\d_])|\(|\\(?=[a-z{([])|\s*\(\s*[-\d]|\s*[-+*/×÷·−–^²³√]\s*[\w(\\$]|:\d"
    rf"|\s*\b(?:{'|'.join(sorted(SPOILING_WORDS - {'of', 'by'}))})\b"
)
_LAST_WORD = re.compile(r"([^\W\d_]+)\s*$")
_POWER = re.compile(r"(?<=[\d)])\s*\*\*\s*(?=[-\d(])")
_MARKUP = re.compile(r"\*\*|__|`")
_CONTINUED = re.compile(r"\s*(?:\\\\)?\s*\n\s*&?\s*(?==)|\s*&\s*(?==)")
_BULLET = re.compile(r"^[^\S\n]*(?:[-*•–]|\d+[.)])[^\S\n]+", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One claim that two sides are equal, at least one of which takes computing."""

    left: str
    right: str
    correct: bool


def read_steps(text: str) -> list[Step]:
    """Return the steps of arithmetic of a text that can be read, in its order.

    Numbers may have decimals, commas between thousands, a currency sign, a percent sign or one word as a unit. A step
    is right if both sides are equal. A result that shows decimals, or comes after ``≈``, may be rounded to what it
    shows. In a run-on such as ``12 + 7 = 19 - 4 = 15`` a side may be continued from its first number.
    """
    found = []
    for sides, signs in _chains(_prepare(text)):
        for left, sign, right in zip(sides, signs, sides[1:], strict=False):
            if left is not None and right is not None and (left.operators or right.operators):
                correct = _agree(left, right, rounded=sign == "≈")
                found.append(Step(left=left.text, right=right.text, correct=correct))
    return found


@dataclass(frozen=True, kw_only=True)
class _Side:
    text: str
    value: Fraction
    """With ``%`` as a hundredth."""
    plain: Fraction
    """With ``%`` as a mere unit."""
    first: Fraction
    """Its first number."""
    operators: bool
    """Whether it takes computing."""
    shown: Fraction
    """The unit of its last decimal, if it is a single number with decimals; otherwise 0."""


def _prepare(text: str) -> str:
    plain = _MARKUP.sub("", _POWER.sub("^", plain_mathematics(text)))
    return _BULLET.sub("", _CONTINUED.sub(" ", plain))


def _chains(text: str) -> Iterator[tuple[list[_Side | None], list[str]]]:
    """Yield the sides of each chain of equations, None for one that can't be read, and the signs between them."""
    for line in text.split("\n"):
        for match in _CHAIN.finditer(line):
            signs = _EQUALS.findall(match[0])
            parts = _balance(_EQUALS.split(match[0]))
            sides = [_read_side(part) for part in parts]
            word = _LAST_WORD.search(line, 0, match.start())
            if _SPOILT_BEFORE.search(line, 0, match.start()) or (word and word[1].lower() in SPOILING_WORDS):
                sides[0] = None
            if _SPOILT_AFTER.match(line, match.end()):
                sides[-1] = None
            yield sides, signs


def _balance(parts: list[str]) -> list[str]:
    """Drop brackets around the whole chain, of which each outer side has one half."""
    first, *middle, last = parts
    while first.lstrip().startswith("(") and first.count("(") > first.count(")"):
        first = first.lstrip()[1:]
    while last.rstrip().endswith(")") and last.count(")") > last.count("("):
        last = last.rstrip()[:-1]
    return [first, *middle, last]


def _agree(left: _Side, right: _Side, *, rounded: bool) -> bool:
    unit = right.shown or (Fraction(1) if rounded and not right.operators else Fraction(0))
    hundredth = Fraction(1, 100) if right.value != right.plain else Fraction(1)
    if abs(left.value - right.value) <= unit * hundredth / 2 or abs(left.plain - right.plain) <= unit / 2:
        return True
    return right.operators and left.value == right.first


def _read_side(text: str) -> _Side | None:
    tokens = list(_TOKEN.finditer(text))
    numbers = [read_numeral(token["number"]) for token in tokens if token["number"]]
    if not numbers or any(number is None for number in numbers):
        return None
    try:
        value, plain = (_Parser(tokens, percent).parse() for percent in (Fraction(1, 100), Fraction(1)))
    except (ValueError, ZeroDivisionError):
        return None
    first, decimals = numbers[0]  # type: ignore[misc]
    single = len(numbers) == 1
    shown = Fraction(1, 10**decimals) if single and decimals else Fraction(0)
    return _Side(text=text.strip(), value=value, plain=plain, first=first, operators=not single, shown=shown)


class _Parser:
    """Recursive descent over numbers, ``+ - * /`` and brackets."""

    def __init__(self, tokens: list[re.Match[str]], percent: Fraction) -> None:
        self._tokens = tokens
        self._percent = percent
        self._place = 0

    def parse(self) -> Fraction:
        """Return the value of all tokens.

        Raises:
            ValueError: They are no expression.
            ZeroDivisionError: Something is divided by nothing.
        """
        value = self._sum()
        if self._place < len(self._tokens):
            raise ValueError("something is left")
        return value

    def _sum(self) -> Fraction:
        value = self._product()
        while (sign := self._peek()) in ("+", "-"):
            self._place += 1
            value = value + self._product() if sign == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while (sign := self._peek()) in ("*", "/"):
            self._place += 1
            value = value * self._factor() if sign == "*" else value / self._factor()
        return value

    def _factor(self) -> Fraction:
        sign = self._peek()
        if sign is None:
            raise ValueError("a number is missing")
        token = self._tokens[self._place]
        self._place += 1
        if sign == "-":
            return -self._factor()
        if sign == "(":
            value = self._sum()
            if self._peek() != ")":
                raise ValueError("a bracket stays open")
            self._place += 1
            return value
        read = read_numeral(token["number"]) if token["number"] else None
        if read is None:
            raise ValueError("an operator stands where a number belongs")
        return read[0] * (self._percent if token["unit"] else 1)

    def _peek(self) -> str | None:
        """Return the next operator or bracket, the text of a number, or None at the end."""
        if self._place >= len(self._tokens):
            return None
        sign = self._tokens[self._place]["sign"]
        return OPERATORS.get(sign, sign) if sign else "0"
