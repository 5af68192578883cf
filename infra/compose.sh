#!/usr/bin/env bash
# Airflow, MLflow and S3 in containers of this machine's Docker engine, with the tasks beside them:
#
#   infra/compose.sh up                  start everything; makes secrets the first time
#   infra/compose.sh down [--volumes]    stop everything, running tasks too; with --volumes remove all data
#   infra/compose.sh passwords           print the passwords of the people's accounts
#   infra/compose.sh COMMAND …           any other command of docker compose: ps, logs -f mlflow, config, …
#
# Settings are environment variables, or lines of .run/compose/settings.env: see infra/compose/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."

state=$(realpath -m "${STILLHOUSE_COMPOSE:-.run/compose}")
fail() { echo "$2" >&2; exit "$1"; }

# Variables of the environment go before those of the file.
read_settings() {
    local line
    [ -f "$state/settings.env" ] || return 0
    while IFS= read -r line; do
        [[ $line =~ ^([A-Z][A-Z0-9_]*)=(.*)$ ]] || continue
        [ -n "${!BASH_REMATCH[1]:-}" ] || export "${BASH_REMATCH[1]}=${BASH_REMATCH[2]}"
    done <"$state/settings.env"
}

find_engine() {
    local host
    docker version >/dev/null 2>&1 || fail 75 "no Docker engine answers; start yours, or: infra/engine.sh start, and export the DOCKER_HOST it prints"
    host=${DOCKER_HOST:-$(docker context inspect --format '{{.Endpoints.docker.Host}}')}
    [[ $host == unix://* ]] || fail 78 "DOCKER_HOST is $host; the tasks need an engine of this machine, at unix://…"
    export DOCKER_SOCKET=${DOCKER_SOCKET:-${host#unix://}}
    DOCKER_GROUP=${DOCKER_GROUP:-$(stat -L -c %g "$DOCKER_SOCKET")}
    export DOCKER_GROUP
}

# Docker Compose v2: installed as a plugin, or unpacked once from Debian's package.
find_compose() {
    if docker compose version >/dev/null 2>&1; then
        compose=(docker compose)
        return
    fi
    local program=$PWD/.run/docker-compose
    [ -x "$program" ] || unpack_compose "$program"
    compose=("$program")
}

unpack_compose() {
    local apt release=trixie folder site
    command -v apt-get >/dev/null || fail 78 "Docker Compose v2 is needed: install Docker's compose plugin"
    echo "▸ unpacking Docker Compose of Debian $release" >&2
    mkdir -p .run
    folder=$(mktemp -d "$PWD/.run/apt.XXXXXX")
    site=$(apt-get indextargets --format '$(SITE)' "Created-By: Packages" "Label: Debian" | head -n 1)
    mkdir -p "$folder"/{lists/partial,cache/archives/partial}
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site $release main" >"$folder/sources.list"
    apt=(apt-get -qq -o APT::Sandbox::User=root -o Dir::State::Lists="$folder/lists" -o Dir::Cache="$folder/cache")
    apt+=(-o Dir::Etc::SourceList="$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null)
    "${apt[@]}" update
    (cd "$folder" && "${apt[@]}" download docker-compose)
    dpkg-deb --extract "$folder"/docker-compose_*.deb "$folder/unpacked"
    mv "$folder/unpacked/usr/libexec/docker/cli-plugins/docker-compose" "$1"
    rm -rf "$folder"
}

name_images() {
    local version
    version=$(sed -nE 's/^version = "(.*)"$/\1/p' pyproject.toml | head -n 1)
    export STILLHOUSE_AIRFLOW_IMAGE=${STILLHOUSE_AIRFLOW_IMAGE:-stillhouse-airflow:$version}
    export STILLHOUSE_MLFLOW_IMAGE=${STILLHOUSE_MLFLOW_IMAGE:-stillhouse-mlflow:$version}
    export STILLHOUSE_TASK_IMAGE=${STILLHOUSE_TASK_IMAGE:-stillhouse-task:$version}
}

have_images() {
    local image
    for image in "$STILLHOUSE_AIRFLOW_IMAGE" "$STILLHOUSE_MLFLOW_IMAGE" "$STILLHOUSE_TASK_IMAGE"; do
        have "$image" || fail 78 "there is no image $image, and it can't be pulled; make images builds it"
    done
    have "${POSTGRES_IMAGE:-postgres:15-bookworm}" || stand_in postgres "${POSTGRES_IMAGE:-postgres:15-bookworm}"
    have "${SEAWEEDFS_IMAGE:-chrislusf/seaweedfs:4.48}" || stand_in seaweedfs "${SEAWEEDFS_IMAGE:-chrislusf/seaweedfs:4.48}"
    have "${HAPROXY_IMAGE:-haproxy:2.6-bookworm}" || stand_in haproxy "${HAPROXY_IMAGE:-haproxy:2.6-bookworm}"
}
have() { docker image inspect "$1" >/dev/null 2>&1 || timeout 600 docker pull --quiet "$1" 2>/dev/null; }

# Where no registry of images can be reached, Debian's packages make one of the same name and behaviour.
stand_in() {
    local client options
    echo "▸ $2 can't be pulled; building a stand-in" >&2
    # Debian's client builds with the engine's BuildKit, newer ones with a plugin that may be missing.
    for client in docker /usr/bin/docker ""; do
        DOCKER_BUILDKIT=1 "${client:-false}" build --help 2>/dev/null | grep -q -- --secret && break
    done
    [ -n "$client" ] || fail 78 "no Docker client with BuildKit was found; install Docker's plugin buildx, or Debian's docker.io"
    infra/base-image.sh python:3.11-slim-bookworm
    infra/debian-sources.sh >"$state/sources.list"
    options=(--secret "id=sources.list,src=$state/sources.list")
    [ -z "${STILLHOUSE_PIP_CONF:-}" ] || options+=(--secret "id=pip.conf,src=$STILLHOUSE_PIP_CONF")
    [ -z "${STILLHOUSE_CA:-}" ] || options+=(--secret "id=ca.pem,src=$STILLHOUSE_CA")
    DOCKER_BUILDKIT=1 "$client" build --quiet "${options[@]}" --tag "$2" "infra/compose/stand-ins/$1" >/dev/null
}

# Databases remember the passwords that they were made with.
check_databases() {
    local volume
    [ ! -f "$state/secrets.env" ] || return 0
    for volume in "${COMPOSE_PROJECT_NAME}_postgres" "${COMPOSE_PROJECT_NAME}_s3"; do
        if docker volume inspect "$volume" >/dev/null 2>&1; then
            fail 78 "the data in volume $volume belong to secrets that $state no longer has: put secrets.env back, or remove all data: infra/compose.sh down --volumes"
        fi
    done
}

up() {
    have_images
    check_databases
    infra/compose/secrets.sh "$state"
    write_deployment
    STILLHOUSE_SETTINGS=$(cat "$state"/secrets/* "$state/deployment.yaml" infra/compose/*.* | sha256sum | cut -c 1-16)
    export STILLHOUSE_SETTINGS
    "${compose[@]}" up --detach --remove-orphans --quiet-pull --wait --wait-timeout 900 || {
        "${compose[@]}" ps --all >&2
        fail 75 "the stack is not up; infra/compose.sh logs SERVICE says why"
    }
    echo "Airflow  http://127.0.0.1:${AIRFLOW_PORT:-8080}  accounts admin and reviewer"
    echo "MLflow   http://127.0.0.1:${MLFLOW_PORT:-5000}  account admin"
    echo "Their passwords: infra/compose.sh passwords"
}

# How Airflow runs tasks here. Names of networks and volumes depend on the project's.
write_deployment() {
    local ca=""
    [ ! -s "$state/secrets/ca.pem" ] || ca=/run/stillhouse/ca.pem
    sed -e "s|@PROJECT@|$COMPOSE_PROJECT_NAME|g" -e "s|@IMAGE@|$STILLHOUSE_TASK_IMAGE|g" \
        -e "s|@PARALLEL@|${STILLHOUSE_MAX_PARALLEL:-2}|g" \
        -e "${ca:+s|@CA@|$ca|}" -e '/@CA@/d' infra/compose/deployment.yaml >"$state/deployment.yaml.tmp"
    mv "$state/deployment.yaml.tmp" "$state/deployment.yaml"
}

# Containers of tasks are Airflow's and not Compose's: they go as soon as nobody starts others, since they hold the network.
down() {
    local tasks
    "${compose[@]}" stop airflow-scheduler >/dev/null 2>&1 || true
    tasks=$(docker ps --all --quiet --filter "network=${COMPOSE_PROJECT_NAME}_tasks" --filter label=stillhouse.run)
    # shellcheck disable=SC2086  # one word for each container
    [ -z "$tasks" ] || docker rm --force --volumes $tasks >/dev/null
    "${compose[@]}" down --remove-orphans "$@"
}

mkdir -p "$state/recipes"
chmod 0700 "$state"
read_settings
export STILLHOUSE_COMPOSE=$state COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-stillhouse} COMPOSE_FILE=$PWD/infra/compose.yaml
name_images
find_engine
find_compose
case ${1:-} in
up) up ;;
down) shift; down "$@" ;;
passwords) infra/compose/secrets.sh "$state" passwords ;;
"") fail 78 "usage: infra/compose.sh up | down [--volumes] | passwords | COMMAND of docker compose" ;;
*) exec "${compose[@]}" "$@" ;;
esac
