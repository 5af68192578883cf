"""``health.py URL [PART]`` says by its exit code whether a server, or a part that its answer names, is healthy."""

import json
import sys
import urllib.request


def main(url: str, part: str | None = None) -> int:
    """Return 0 if ``url`` answers well and, where a part is named, reports that one as healthy."""
    with urllib.request.urlopen(url, timeout=8) as answer:
        body = answer.read()
    return 0 if part is None or json.loads(body)[part]["status"] == "healthy" else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
