#!/usr/bin/env bash
# Makes .venv hold exactly what infra/locks/$1.lock names ("run", or "test" with the development tools), torch at the
# release that pyproject.toml pins, and this project. Does nothing, fast, when that is so already.
set -euo pipefail
cd "$(dirname "$0")/.."

kind=${1:-run}
lock=infra/locks/$kind.lock
stamp=.venv/.stillhouse-$kind
python=.venv/bin/python
wanted=$(cat "$lock" pyproject.toml infra/install.sh | cksum)

if [ -x .venv/bin/stillhouse ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "stillhouse needs Python 3.11, 3.12 or 3.13; install one, or name it: make $kind PYTHON=/path/to/python" >&2
    exit 78
}

if ! [ -x "$python" ]; then
    base=$(find_python)
    echo "▸ creating .venv with $("$base" --version)"
    "$base" -m venv .venv || { echo "could not create .venv; on Debian: apt-get install python3-venv" >&2; exit 78; }
fi

echo "▸ installing the $(grep -cE '^[a-z0-9]' "$lock") packages of $lock"
if "$python" -m pip install --quiet --disable-pip-version-check "uv>=0.9" 2>/dev/null; then
    .venv/bin/uv pip install --quiet --compile-bytecode --python "$python" --require-hashes --no-deps -r "$lock"
else
    echo "  uv can't be had here; pip does it, more slowly"
    "$python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r "$lock"
fi
# The first one named: the optional groups may name it again.
torch=$(sed -nE 's/^ *"(torch==[^"]+)",$/\1/p' pyproject.toml | head -n 1)
echo "▸ installing $torch"
# pip, not uv: pip honours a build of torch that this machine's pip settings point to.
"$python" -m pip install --quiet --disable-pip-version-check "$torch"
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
echo "$wanted" > "$stamp"
