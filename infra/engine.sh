#!/usr/bin/env bash
# A Docker engine for a machine that has none running (Debian, root): infra/engine.sh start|stop|status
#
# A daemon that answers already is used as it is. Otherwise one is started by hand with everything in one folder:
# .run/engine, or $STILLHOUSE_ENGINE. `stop` ends only that one, with its containers, mounts, interfaces and firewall
# rules; images and volumes stay in the folder for the next start. Every command prints a line DOCKER_HOST=… .
set -euo pipefail
cd "$(dirname "$0")/.."

state=$(realpath -m "${STILLHOUSE_ENGINE:-.run/engine}")
socket=$state/docker.sock
pid_file=$state/dockerd.pid
seconds=120

answers() { DOCKER_HOST=${1:-} docker version --format '{{.Server.Version}}' 2>/dev/null; }
running() { [ -f "$pid_file" ] && [ "$(cat "/proc/$(cat "$pid_file")/comm" 2>/dev/null)" = dockerd ]; }
fail() { echo "$2" >&2; exit "$1"; }

# Prints the address of the daemon to use: ours, or one that was there before.
address() {
    local candidate
    for candidate in "unix://$socket" "${DOCKER_HOST:-unix:///var/run/docker.sock}"; do
        if answers "$candidate" >/dev/null; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

install_missing() {
    local pair packages=()
    for pair in dockerd=docker.io docker=docker.io debootstrap=debootstrap iptables=iptables ip=iproute2 jq=jq; do
        command -v "${pair%=*}" >/dev/null || packages+=("${pair#*=}")
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || fail 78 "no Docker daemon answers, and ${packages[*]} can't be installed without apt-get"
    echo "▸ installing ${packages[*]}" >&2
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
}

launch() {
    # The longest path of a socket below it has 38 characters more, of 107 that the kernel takes.
    [ ${#state} -le 69 ] || fail 78 "the folder $state has too long a path for sockets; set STILLHOUSE_ENGINE to another"
    mkdir -p "$state"
    rm -f "$pid_file"
    remember
    local options=(--data-root "$state/data" --exec-root "$state/exec" --pidfile "$pid_file" --host "unix://$socket")
    if ! (echo -999 >/proc/self/oom_score_adj) 2>/dev/null; then
        options+=(--add-runtime "plain-oom=$PWD/infra/engine/runc.sh" --default-runtime plain-oom)
    fi
    setsid nohup dockerd "${options[@]}" >"$state/dockerd.log" 2>&1 </dev/null &
    local process=$!
    for ((i = 0; i < seconds * 5; i++)); do
        answers "unix://$socket" >/dev/null && return
        kill -0 "$process" 2>/dev/null || break
        sleep 0.2
    done
    kill "$process" 2>/dev/null || true
    tail -n 20 "$state/dockerd.log" >&2
    fail 75 "the Docker daemon did not start; the whole log is $state/dockerd.log"
}

# What a daemon changes of the machine, and leaves changed when it ends. A lost daemon's notes stay valid.
remember() {
    [ ! -f "$state/bridges" ] || return 0
    sysctl -n net.ipv4.ip_forward >"$state/ip_forward"
    iptables -S FORWARD | head -n 1 >"$state/forward_policy"
    list_bridges >"$state/bridges"
}
list_bridges() { ip -o link show type bridge | sed -nE 's/^[0-9]+: ([^:@]+).*/\1/p' | sort; }

forget() {
    local bridge mount
    list_bridges | comm -13 "$state/bridges" - | grep -E '^(docker0|br-[0-9a-f]{12})$' | while read -r bridge; do
        ip link delete "$bridge"
        drop_rules "$bridge"
    done
    drop_rules DOCKER
    # shellcheck disable=SC2046  # two words are meant: chain and policy
    iptables $(cat "$state/forward_policy")
    sysctl -q -w "net.ipv4.ip_forward=$(cat "$state/ip_forward")"
    # The deepest first.
    awk -v below="$state/" 'index($2, below) == 1 {print $2}' /proc/mounts | sort -r | while read -r mount; do
        umount -l "$mount"
    done
    rm -rf "$state/exec" "$socket" "$pid_file" "$state/ip_forward" "$state/forward_policy" "$state/bridges"
}
drop_rules() {
    if iptables-save | grep -q -- "$1"; then
        iptables-save | grep -v -- "$1" | iptables-restore
    fi
}

stop() {
    [ -f "$state/bridges" ] || return 0
    # One that was lost comes back, to end its containers.
    running || launch
    local process
    process=$(cat "$pid_file")
    kill "$process"
    for ((i = 0; i < seconds * 5; i++)); do
        kill -0 "$process" 2>/dev/null || break
        sleep 0.2
    done
    if kill -0 "$process" 2>/dev/null; then
        fail 75 "the Docker daemon (process $process) does not stop; see $state/dockerd.log"
    fi
    forget
}

case ${1:-} in
start)
    if ! address >/dev/null; then
        [ "$(id -u)" = 0 ] || fail 78 "no Docker daemon answers, and only root can start one; start yours, or set DOCKER_HOST"
        install_missing
        # On a machine with systemd, the installation starts one.
        address >/dev/null || launch
    fi
    host=$(address)
    [ "$host" = "unix://$socket" ] || echo "a Docker daemon answers already; it is used" >&2
    echo "DOCKER_HOST=$host"
    ;;
stop) stop ;;
status)
    host=$(address) || fail 75 "no Docker daemon answers; start one: infra/engine.sh start"
    echo "Docker $(answers "$host"), $(docker --host "$host" info --format '{{.Containers}} containers, {{.Images}} images')"
    echo "DOCKER_HOST=$host"
    ;;
*) fail 78 "usage: infra/engine.sh start|stop|status" ;;
esac
