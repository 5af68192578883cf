#!/usr/bin/env bash
# The tests that need a Docker engine, a Kubernetes cluster or the compose stack. What is missing on this machine is
# started for them and stopped afterwards; what ran before is left running. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

stop_engine=true
stop_cluster=true
infra/engine.sh status >/dev/null 2>&1 && stop_engine=false
infra/cluster.sh status >/dev/null 2>&1 && stop_cluster=false
finish() {
    ! $stop_cluster || infra/cluster.sh stop >/dev/null || true
    ! $stop_engine || infra/engine.sh stop >/dev/null || true
}
trap finish EXIT

address=$(infra/engine.sh start | grep '^DOCKER_HOST=')
export "${address?}"
infra/images.sh
address=$(infra/cluster.sh start | grep '^KUBECONFIG=')
export "${address?}"

# From here on, a test that finds no server fails instead of being skipped.
STILLHOUSE_CLUSTER_REQUIRED=1 .venv/bin/python -m pytest -m "docker or kubernetes or compose" -n 2 --dist loadfile "$@"
