#!/usr/bin/env bash
# A whole Kubernetes with one node, for a machine where nothing better (kind, minikube) can be had (Debian, root):
# infra/cluster.sh start|stop|status
#
# etcd, API server, controller manager, scheduler and kubelet run as processes of this machine; pods run on a Docker
# engine (infra/engine.sh), so they see its images. Nothing of the cluster outlives `stop`, which also undoes what
# kubelet changed of the machine. Every command prints a line KUBECONFIG=… .
#
#   STILLHOUSE_CLUSTER       folder of its state; .run/cluster without it
#   STILLHOUSE_CLUSTER_PORT  port of the API server; five more above it are used; 16443 without it
#   STILLHOUSE_KUBERNETES    folder or archive with the binaries; see infra/cluster/binaries.sh
#
# There is no kube-proxy, DNS or network plugin: Services have no address, NetworkPolicies are kept but not enforced.
set -euo pipefail
cd "$(dirname "$0")/.."

state=$(realpath -m "${STILLHOUSE_CLUSTER:-.run/cluster}")
port=${STILLHOUSE_CLUSTER_PORT:-16443}
kubeconfig=$state/kubeconfig
node=stillhouse
services=10.96.0
seconds=120
processes=(kubelet kube-scheduler kube-controller-manager kube-apiserver etcd)

fail() { echo "$2" >&2; exit "$1"; }

# shellcheck source=infra/cluster/binaries.sh
source infra/cluster/binaries.sh
# shellcheck source=infra/cluster/credentials.sh
source infra/cluster/credentials.sh
# shellcheck source=infra/cluster/host.sh
source infra/cluster/host.sh

# The kernel keeps 15 characters of a process's name.
running() { [ -f "$state/$1.pid" ] && [ "$(cat "/proc/$(cat "$state/$1.pid")/comm" 2>/dev/null)" = "${1:0:15}" ]; }

launch() {
    local name=$1
    shift
    (cd "$state" && exec setsid nohup "$@" >"$state/$name.log" 2>&1 </dev/null) &
    echo $! >"$state/$name.pid"
}

ask() {
    curl --silent --fail --noproxy '*' --max-time 5 --cacert "$state/pki/ca.crt" \
        --cert "$state/pki/admin.crt" --key "$state/pki/admin.key" "https://$(cat "$state/address"):$port$1"
}

api_ready() { ask /readyz >/dev/null; }
node_ready() {
    ask "/api/v1/nodes/$node" |
        jq -e '.status.conditions[] | select(.type == "Ready" and .status == "True")' >/dev/null &&
        ask /api/v1/namespaces/default/serviceaccounts/default >/dev/null
}

# Waits until the command $2 succeeds, while the process $1 lives.
await() {
    local name=$1 ready=$2
    for ((i = 0; i < seconds * 5; i++)); do
        "$ready" 2>/dev/null && return
        running "$name" || break
        sleep 0.2
    done
    tail -n 20 "$state/$name.log" >&2
    echo "$name did not start; the whole log is $state/$name.log until the next start" >&2
    stop
    exit 75
}

# The address of Docker's bridge: the one that this machine and the containers can both reach.
bridge_address() {
    local bridge
    bridge=$(docker network inspect bridge --format '{{index .Options "com.docker.network.bridge.name"}}')
    ip -4 -o address show dev "$bridge" | awk '{sub("/.*", "", $4); print $4; exit}'
}

start_control_plane() {
    local bin=$1 address=$2 etcd
    etcd=http://127.0.0.1:$((port + 1))
    launch etcd etcd --data-dir "$state/etcd" --unsafe-no-fsync \
        --listen-client-urls "$etcd" --advertise-client-urls "$etcd" \
        --listen-peer-urls "http://127.0.0.1:$((port + 2))" \
        --initial-advertise-peer-urls "http://127.0.0.1:$((port + 2))" \
        --initial-cluster "default=http://127.0.0.1:$((port + 2))"
    launch kube-apiserver "$bin/kube-apiserver" --etcd-servers="$etcd" \
        --bind-address="$address" --advertise-address="$address" --secure-port="$port" \
        --tls-cert-file=pki/apiserver.crt --tls-private-key-file=pki/apiserver.key --client-ca-file=pki/ca.crt \
        --service-account-issuer=https://kubernetes.default.svc --service-account-key-file=pki/accounts.crt \
        --service-account-signing-key-file=pki/accounts.key --service-cluster-ip-range="$services.0/24" \
        --kubelet-client-certificate=pki/admin.crt --kubelet-client-key=pki/admin.key \
        --kubelet-preferred-address-types=InternalIP --authorization-mode=Node,RBAC
    await kube-apiserver api_ready
    launch kube-controller-manager "$bin/kube-controller-manager" --kubeconfig=controllers.kubeconfig \
        --bind-address=127.0.0.1 --port=0 --secure-port="$((port + 3))" --cert-dir="$state/controllers" \
        --leader-elect=false --use-service-account-credentials=true --root-ca-file=pki/ca.crt \
        --service-account-private-key-file=pki/accounts.key --flex-volume-plugin-dir="$state/volume-plugins"
    launch kube-scheduler "$bin/kube-scheduler" --kubeconfig=scheduler.kubeconfig --leader-elect=false \
        --bind-address=127.0.0.1 --port=0 --secure-port="$((port + 4))" --cert-dir="$state/scheduler"
}

start_node() {
    local bin=$1 address=$2
    tar -C "$bin" -c pause | docker import --change 'ENTRYPOINT ["/pause"]' - stillhouse/pause:local >/dev/null
    cat >"$state/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $address
port: $((port + 5))
readOnlyPort: 0
healthzPort: 0
tlsCertFile: $state/pki/kubelet.crt
tlsPrivateKeyFile: $state/pki/kubelet.key
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $state/pki/ca.crt}}
authorization: {mode: Webhook}
cgroupDriver: $(docker info --format '{{.CgroupDriver}}')
failSwapOn: false
oomScoreAdj: 0
makeIPTablesUtilChains: false
resolvConf: /etc/resolv.conf
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
syncFrequency: 2s
nodeStatusUpdateFrequency: 2s
YAML
    # Without the variable, kubelet asks a cloud's metadata server for registry credentials.
    launch kubelet env AWS_EC2_METADATA_DISABLED=true "$bin/kubelet" --config=kubelet.yaml \
        --kubeconfig=kubelet.kubeconfig --hostname-override="$node" --node-ip="$address" --root-dir="$state/kubelet" \
        --container-runtime=docker --docker-endpoint="$DOCKER_HOST" --pod-infra-container-image=stillhouse/pause:local \
        --container-runtime-endpoint="unix://$state/dockershim.sock" \
        --experimental-dockershim-root-directory="$state/dockershim" --cert-dir="$state/kubelet-pki" \
        --cni-conf-dir="$state/cni" --volume-plugin-dir="$state/volume-plugins"
    await kubelet node_ready
}

start() {
    [ "$(id -u)" = 0 ] || fail 78 "only root can start this cluster; without root, use kind or minikube"
    [ ${#state} -le 80 ] || fail 78 "$state is too long for a socket's path; set STILLHOUSE_CLUSTER to a shorter one"
    if [ -z "${DOCKER_HOST:-}" ]; then
        DOCKER_HOST=unix:///var/run/docker.sock
        [ ! -S .run/engine/docker.sock ] || DOCKER_HOST=unix://$PWD/.run/engine/docker.sock
    fi
    export DOCKER_HOST
    docker version >/dev/null 2>&1 || fail 78 "no Docker engine answers at $DOCKER_HOST; see infra/engine.sh start"
    if pgrep -x kubelet >/dev/null; then
        fail 78 "another kubelet runs on this machine; a second one would fight with it"
    fi
    install_missing etcd=etcd-server openssl=openssl jq=jq curl=curl ip=iproute2 zstd=zstd
    local bin address
    bin=$(find_binaries)
    address=$(bridge_address)
    stop
    mkdir -p "$state/host" "$state/cni"
    echo "$DOCKER_HOST" >"$state/engine"
    echo "$address" >"$state/address"
    create_credentials "$address"
    remember_host
    start_control_plane "$bin" "$address"
    start_node "$bin" "$address"
}

stop() {
    local name process
    for name in "${processes[@]}"; do
        if running "$name"; then
            process=$(cat "$state/$name.pid")
            kill "$process"
            for ((i = 0; i < 100; i++)); do
                kill -0 "$process" 2>/dev/null || break
                sleep 0.1
            done
            ! running "$name" || kill -KILL "$process"
        fi
        rm -f "$state/$name.pid"
    done
    [ ! -d "$state/host" ] || forget_host
    rm -rf "$state"/{host,pki,etcd,kubelet,kubelet-pki,dockershim,cni,volume-plugins,controllers,scheduler}
    rm -f "$kubeconfig" "$state"/{*.kubeconfig,kubelet.yaml,dockershim.sock,address,engine}
}

all_running() {
    local name
    for name in "${processes[@]}"; do running "$name" || return 1; done
    api_ready
}

case ${1:-} in
start)
    all_running || start
    echo "KUBECONFIG=$kubeconfig"
    ;;
stop) stop ;;
status)
    all_running || fail 75 "no cluster runs from $state; start one: infra/cluster.sh start"
    ask "/api/v1/nodes/$node" |
        jq -r '.status.nodeInfo | "Kubernetes \(.kubeletVersion) on \(.containerRuntimeVersion)"'
    echo "KUBECONFIG=$kubeconfig"
    ;;
*) fail 78 "usage: infra/cluster.sh start|stop|status" ;;
esac
