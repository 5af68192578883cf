"""The process behind `stillhouse.data.synthetic.verifiers.symbolic`: a question a line, a verdict a line.

A question is a JSON list of answer and reference; a verdict is ``equal``, ``different`` or ``no-reference``.
"""

import json
import sys

from math_verify import parse, verify

MAX_MEMORY_BYTES = 4 << 30


def compare(answer: str, reference: str) -> str:
    """Return the verdict on one answer."""
    # In a box nothing but mathematics is expected; a bare reference such as ``x+1`` is read no other way.
    expected = parse(f"${reference}$", parsing_timeout=None, fallback_mode="no_fallback") or parse(
        reference, parsing_timeout=None, fallback_mode="no_fallback"
    )
    if not expected:
        return "no-reference"
    found = parse(answer, parsing_timeout=None)
    return "equal" if verify(expected, found, timeout_seconds=None) else "different"


def main() -> None:
    """Answer until the input ends."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        try:
            verdict = compare(*json.loads(line))
        except Exception:  # whatever the library trips over, the answer is not shown to be right
            verdict = "different"
        sys.stdout.write(verdict + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
