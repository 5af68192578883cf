# shellcheck shell=bash
# Where infra/cluster.sh takes its binaries from: those in the list `binaries` below.
#
#   1. $STILLHOUSE_KUBERNETES: a folder that holds them, or an archive (.tar.zst, .tar.gz, .tar.xz) of such a folder
#   2. .run/cache/kubernetes, then ${XDG_CACHE_HOME:-~/.cache}/stillhouse/kubernetes
#   3. a build from Debian's source package into the last one, once: infra/cluster/build.sh

binaries=(kube-apiserver kube-controller-manager kube-scheduler kubelet pause)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/stillhouse/kubernetes

complete() {
    local name
    for name in "${binaries[@]}"; do [ -x "$1/$name" ] || return 1; done
}

# Prints the folder.
find_binaries() {
    local given=${STILLHOUSE_KUBERNETES:-} folder
    if [ -n "$given" ]; then
        [ -e "$given" ] || fail 78 "STILLHOUSE_KUBERNETES names $given, which does not exist"
        folder=$(realpath "$given")
        [ -d "$folder" ] || folder=$(unpack "$folder")
        complete "$folder" || fail 78 "STILLHOUSE_KUBERNETES: $given lacks one of ${binaries[*]}"
        echo "$folder"
        return
    fi
    for folder in "$PWD/.run/cache/kubernetes" "$cache"; do
        if complete "$folder"; then
            echo "$folder"
            return
        fi
    done
    echo "▸ building Kubernetes from Debian's source package into $cache, once (14 CPU-minutes)" >&2
    infra/cluster/build.sh "$cache" >&2
    complete "$cache" || fail 70 "the build of Kubernetes left no complete set in $cache"
    echo "$cache"
}

# Unpacks the archive $1 into a folder beside the state, unless it is there, and prints that folder.
unpack() {
    local archive=$1 folder inner
    folder=$state/binaries/$(stat -c '%s-%Y' "$archive")
    if ! [ -d "$folder" ]; then
        rm -rf "$state/binaries"
        mkdir -p "$folder.part"
        case $archive in
        *.zst) zstd -dc "$archive" | tar -x -C "$folder.part" ;;
        *) tar -xf "$archive" -C "$folder.part" ;;
        esac
        mv "$folder.part" "$folder"
    fi
    inner=$(find "$folder" -name kubelet -type f -print -quit)
    dirname "${inner:-$folder/none}"
}

# Installs Debian's package for each command of COMMAND=PACKAGE that is missing.
install_missing() {
    local pair packages=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || packages+=("${pair#*=}")
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || fail 78 "install ${packages[*]}; this machine has no apt-get"
    echo "▸ installing ${packages[*]}" >&2
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
}
