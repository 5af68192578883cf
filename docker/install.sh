#!/bin/sh
# Runs inside image builds: install.sh tools LOCK puts what builds beside the base image's Python, install.sh packages LOCK
# [TORCH] fills /opt/venv. Both install exactly what LOCK names, checked by hash; torch comes at its exact release.
#
# How to reach the package index is an optional secret: pip.conf (index-url, extra-index-url), ca.pem (authorities to
# trust). Builds of torch that no index has may lie in /wheels.
set -eu

what=$1
lock=$2
torch=${3:-}

setting() { pip config list | sed -nE "s/^global\.$1='(.*)'\$/\1/p"; }

if [ -f /run/secrets/pip.conf ]; then
    export PIP_CONFIG_FILE=/run/secrets/pip.conf
    if [ -n "$(setting index-url)" ]; then export UV_DEFAULT_INDEX="$(setting index-url)"; fi
    if [ -n "$(setting extra-index-url)" ]; then export UV_INDEX="$(setting extra-index-url)"; fi
fi
if [ -f /run/secrets/ca.pem ]; then
    export PIP_CERT=/run/secrets/ca.pem SSL_CERT_FILE=/run/secrets/ca.pem
fi

if [ "$what" = tools ]; then
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
    exec pip install --quiet --no-cache-dir --require-hashes --no-deps --requirement "$lock"
fi

install() { uv pip install --quiet --no-cache --compile-bytecode "$@"; }
from_lock() { install --require-hashes --no-deps --no-build-isolation --requirement "$1"; }

export VIRTUAL_ENV=/opt/venv
uv venv --quiet --python "$(command -v python3)" "$VIRTUAL_ENV"
# A package without a wheel is built with the lock's setuptools, not with a newer one that nobody checked.
sed -n '/^setuptools==/,/[^\\]$/p' "$lock" >/tmp/setuptools.lock
from_lock /tmp/setuptools.lock
from_lock "$lock"
if [ -n "$torch" ]; then
    install --find-links /wheels "$torch"
fi
rm -f "$VIRTUAL_ENV/.lock" # of uv, and anybody could write it
