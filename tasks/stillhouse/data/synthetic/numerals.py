"""Numbers as people write them, read exactly."""

import re
from fractions import Fraction

MAX_DIGITS = 40
"""Longer runs of digits are no numbers that anybody reasons about."""
NUMERAL = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+")
"""With commas between thousands or without, and a decimal point; no sign."""
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\]}}])[-−–])?\s?[$€£¥]?(?P<above>{NUMERAL.pattern})"
    rf"(?:[eE](?P<exponent>[-+]?\d{{1,3}})(?![\w.])|\s?/\s?(?P<below>{NUMERAL.pattern}))?"
)
_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"(\1)/(\2)"),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r"\1/\2"),
    (re.compile(r"\((\d+)\)/\((\d+)\)"), r"\1/\2"),
    (re.compile(r"\{,\}|\\,(?=\d{3})"), ","),
    (re.compile(r"\\(?:times|cdot|ast)\b"), "×"),
    (re.compile(r"\\div\b"), "÷"),
    (re.compile(r"\\approx\b"), "≈"),
    (re.compile(r"\\(?:text|mathrm|mathbf|boxed)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\(?:left|right|quad|qquad)\b|\\[!;: ]"), " "),
    (re.compile(r"\\[$%]"), lambda match: match[0][1]),
)


def plain_mathematics(text: str) -> str:
    """Replace the LaTeX of simple arithmetic by ordinary signs; leave all other LaTeX as it is."""
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


def read_numeral(text: str) -> tuple[Fraction, int] | None:
    """Return the value of what `NUMERAL` matched, and its decimals; None if it is too long to be one."""
    if len(text) > MAX_DIGITS:
        return None
    plain = text.replace(",", "")
    return Fraction(plain if plain[0] != "." else f"0{plain}"), len(plain.partition(".")[2])


def last_number(text: str) -> Fraction | None:
    """Return the last number of a text, with its sign: a decimal, or a fraction such as ``3/4``. None without any.

    A minus between two numbers is an operator, so ``12-5`` ends with 5.
    """
    found = None
    for match in _NUMBER.finditer(plain_mathematics(text)):
        found = match
    if found is None:
        return None
    above, below = read_numeral(found["above"]), read_numeral(found["below"] or "1")
    if above is None or below is None or not below[0]:
        return None
    value = above[0] / below[0] * Fraction(10) ** int(found["exponent"] or 0)
    return -value if found["sign"] else value
