#!/usr/bin/env bash
# Resolves pyproject.toml into infra/locks/*.lock, with hashes, for Python 3.11 to 3.13 on every platform: run and test for
# this machine's .venv, task, airflow and mlflow for the images, build for what makes them.
#
# What is locked already stays as it is, unless UPGRADE=1 asks for the newest of everything. The images get what .venv
# has: a stage's results belong to the versions of its libraries.
#
# torch and the accelerator libraries that only it needs stay out: a machine may offer another build of the same
# release (CPU, CUDA, ROCm), and a lock can't hold the digests of all of them. infra/install.sh and docker/install.sh pin
# torch exactly.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate "$@"
}

# lock NAME ARGUMENT…: the arguments say what to resolve.
lock() {
    local out=infra/locks/$1.lock; shift
    if [ -z "${UPGRADE:-}" ] && [ -f "$out" ]; then cp "$out" "$out.tmp"; fi
    compile "$@" --output-file "$out.tmp"
    local torch_only=()
    while read -r name; do torch_only+=(--no-emit-package "$name"); done \
        < <(grep -oE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)' "$out.tmp" | sort -u)
    compile "$@" "${torch_only[@]}" --output-file "$out.tmp"
    mv "$out.tmp" "$out"
}

extras() { printf -- '--extra %s ' "$@"; }

# shellcheck disable=SC2046  # each extra is two words
{
    lock test pyproject.toml $(extras build airflow docker kubernetes ml reasoning harness dev)
    lock run pyproject.toml $(extras build airflow ml reasoning)
    as_tested=(--constraint infra/locks/test.lock)
    lock task pyproject.toml --group task-image $(extras ml reasoning harness) "${as_tested[@]}"
    lock airflow pyproject.toml $(extras airflow docker kubernetes postgres users) "${as_tested[@]}"
    lock mlflow --group mlflow-server "${as_tested[@]}"
    lock build --group image-build
}
