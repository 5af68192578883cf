#!/usr/bin/env bash
# infra/images.sh [task|airflow|mlflow]…: builds these images, or all three, as stillhouse-NAME:VERSION, and writes beside
# each what is in it: .run/images/NAME.cdx.json, a CycloneDX bill of materials with the image's id and size in bytes.
#
# TAG=…      another tag than the project's version
# VARIANT=…  cpu or gpu, for torch in the task image. Without it: cpu if this machine's pip finds a build for CPUs alone,
#            such as in an index that PIP_EXTRA_INDEX_URL names, else gpu.
#
# pip's settings and certificates of this machine reach the builds as secrets; no image keeps them.
set -euo pipefail
cd "$(dirname "$0")/.."

base=python:3.11-slim-bookworm
out=.run/images
names=("$@")
[ $# -gt 0 ] || names=(task airflow mlflow)
version=$(sed -nE 's/^version = "(.+)"$/\1/p' pyproject.toml | head -n 1)
torch=$(sed -nE 's/^ *"(torch==[^"]+)",$/\1/p' pyproject.toml | head -n 1)
revision=$(git rev-parse HEAD 2>/dev/null || true)
if [ -n "$revision" ] && [ -n "$(git status --porcelain)" ]; then revision+=-dirty; fi
python=$(command -v .venv/bin/python || command -v python3)

mkdir -p "$out"
secrets=$(mktemp -d)
trap 'rm -rf "$secrets"' EXIT

# Debian's client builds with the engine's BuildKit, newer ones with their plugin buildx.
find_client() {
    local client
    for client in docker /usr/bin/docker; do
        if DOCKER_BUILDKIT=1 "$client" build --help 2>/dev/null | grep -q -- --secret; then
            echo "$client"
            return
        fi
    done
    echo "no Docker client with BuildKit was found; install Docker's plugin buildx, or Debian's docker.io" >&2
    exit 78
}

# A variable of the environment goes before a file.
pip_setting() { "$python" -m pip config list 2>/dev/null | sed -nE "s/^(:env:|global)\.$1='(.*)'\$/\2/p" | head -n 1; }

# Folders of this machine mean nothing inside a build.
write_secrets() {
    local index extra certificate
    index=$(pip_setting index-url)
    extra=$(pip_setting extra-index-url | tr ' ' '\n' | grep -v '^file:' | tr '\n' ' ' || true)
    certificate=$(pip_setting cert)
    {
        echo '[global]'
        if [ -n "$index" ]; then echo "index-url = $index"; fi
        if [ -n "${extra// /}" ]; then echo "extra-index-url = $extra"; fi
    } >"$secrets/pip.conf"
    options+=(--secret "id=pip.conf,src=$secrets/pip.conf")
    certificate=${certificate:-${SSL_CERT_FILE:-}}
    if [ -n "$certificate" ]; then options+=(--secret "id=ca.pem,src=$certificate"); fi
    # The stand-in knows no Debian mirror.
    if docker run --rm --network none "$base" sh -c 'grep -rqs . /etc/apt/sources.list*'; then return; fi
    infra/debian-sources.sh >"$secrets/sources.list"
    options+=(--secret "id=sources.list,src=$secrets/sources.list")
}

# A wheel that only this machine's folders have travels in an image of its own.
choose_torch() {
    local wheels=stillhouse-wheels:${torch#torch==} found=$secrets/wheels
    if [ "${VARIANT:-cpu}" = cpu ] && ! docker image inspect "$wheels" >/dev/null 2>&1; then
        if "$python" -m pip download --quiet --no-deps --only-binary :all: --python-version 3.11 \
            --platform "manylinux_2_28_$(uname -m)" --dest "$found" "$torch+cpu" 2>"$secrets/pip.log"; then
            tar --directory "$found" --create . | docker import - "$wheels" >/dev/null
            rm -r "$found"
        elif [ -n "${VARIANT:-}" ]; then
            cat "$secrets/pip.log" >&2
            echo "pip finds no $torch+cpu; name an index that has it in PIP_EXTRA_INDEX_URL, or take VARIANT=gpu" >&2
            exit 78
        else
            echo "▸ pip finds no build of torch for CPUs alone; taking the ordinary one, several GB larger"
            VARIANT=gpu
        fi
    fi
    VARIANT=${VARIANT:-cpu}
    own=(--build-arg "VARIANT=$VARIANT")
    if [ "$VARIANT" = cpu ]; then own+=(--build-arg "WHEELS=$wheels"); fi
}

# build NAME ARGUMENT…
build() {
    local name=$1; shift
    if ! DOCKER_BUILDKIT=1 "$client" build --progress plain --file "docker/$name/Dockerfile" "${options[@]}" "${own[@]}" "$@" . \
        >"$out/$name.log" 2>&1; then
        tail -n 30 "$out/$name.log" >&2
        echo "the image $name could not be built; the whole log is $out/$name.log" >&2
        exit 75
    fi
}

write_bill() {
    local name=$1 tag=$2
    build "$name" --target bill --output "$secrets/$name"
    docker run --rm --network none --entrypoint dpkg-query "$tag" --show \
        --showformat '${Package}\t${Version}\t${Architecture}\n' >"$secrets/$name/debian"
    "$python" infra/bill.py "$tag" "$secrets/$name/sbom.json" "$secrets/$name/debian" >"$out/$name.cdx.json"
}

client=$(find_client)
options=(--build-arg "BASE=$base" --build-arg "VERSION=$version" --build-arg "GIT_SHA=$revision")
infra/base-image.sh "$base"
write_secrets
for name in "${names[@]}"; do
    [ -f "docker/$name/Dockerfile" ] || { echo "no image is called '$name': task, airflow, mlflow" >&2; exit 78; }
    tag=stillhouse-$name:${TAG:-$version}
    echo "▸ building $tag"
    own=()
    if [ "$name" = task ]; then choose_torch; fi
    build "$name" --tag "$tag"
    write_bill "$name" "$tag"
    docker image inspect --format "  {{.Id}}, {{.Size}} bytes; contents: $out/$name.cdx.json" "$tag"
done
