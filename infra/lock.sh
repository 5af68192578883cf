#!/usr/bin/env bash
# Resolves pyproject.toml into infra/locks/{run,test}.lock, with hashes, for Python 3.11 to 3.13 on every platform.
#
# What is locked already stays as it is, unless UPGRADE=1 asks for the newest of everything.
#
# torch and the accelerator libraries that only it needs stay out: a machine may offer another build of the same
# release (CPU, CUDA, ROCm), and a lock can't hold the digests of all of them. infra/install.sh pins torch exactly.
set -euo pipefail
cd "$(dirname "$0")/.."

lock() {
    local out=$1; shift
    local extras=()
    for extra in "$@"; do extras+=(--extra "$extra"); done
    if [ -z "${UPGRADE:-}" ] && [ -f "$out" ]; then cp "$out" "$out.tmp"; fi
    .venv/bin/uv pip compile pyproject.toml "${extras[@]}" --quiet --universal --python-version 3.11 \
        --generate-hashes --no-header --no-annotate --output-file "$out.tmp"
    local torch_only=()
    while read -r name; do torch_only+=(--no-emit-package "$name"); done \
        < <(grep -oE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)' "$out.tmp" | sort -u)
    .venv/bin/uv pip compile pyproject.toml "${extras[@]}" --quiet --universal --python-version 3.11 \
        --generate-hashes --no-header --no-annotate "${torch_only[@]}" --output-file "$out.tmp"
    mv "$out.tmp" "$out"
}

lock infra/locks/test.lock build airflow ml reasoning harness dev
lock infra/locks/run.lock build airflow ml reasoning
