# shellcheck shell=bash
# What kubelet changes of the machine, written down before it starts and undone after it ended.

host_settings=(vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys
    kernel.keys.root_maxbytes net.bridge.bridge-nf-call-iptables net.bridge.bridge-nf-call-ip6tables)
host_folders=(/var/lib/kubelet /var/log/pods /var/log/containers)

remember_host() {
    local name
    for name in "${host_settings[@]}"; do
        sysctl -e "$name" 2>/dev/null || true
    done >"$state/host/settings"
    for name in "${host_folders[@]}"; do
        [ -e "$name" ] || echo "$name"
    done >"$state/host/folders"
}

forget_host() {
    local name
    DOCKER_HOST=$(cat "$state/engine") remove_pods
    # Volumes of pods, then kubelet's folder itself: the deepest first.
    awk -v top="$state/kubelet" '$2 == top || index($2, top "/") == 1 {print $2}' /proc/mounts | sort -r |
        while read -r name; do
            umount "$name" || umount -l "$name"
        done
    for name in /sys/fs/cgroup/*/kubepods /sys/fs/cgroup/kubepods; do
        [ ! -d "$name" ] || find "$name" -depth -type d -exec rmdir {} + || echo "$name is still in use" >&2
    done
    sed -E 's/ = /=/' "$state/host/settings" | while read -r name; do
        sysctl -q -w "$name"
    done
    while read -r name; do
        rm -rf "$name"
    done <"$state/host/folders"
}

remove_pods() {
    docker version >/dev/null 2>&1 || return 0
    docker ps --all --quiet --filter label=io.kubernetes.pod.namespace | xargs -r docker rm --force >/dev/null
    docker image rm --force stillhouse/pause:local >/dev/null 2>&1 || true
}
