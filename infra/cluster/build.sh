#!/usr/bin/env bash
# Builds what infra/cluster.sh needs from Debian's own source package of Kubernetes, with Debian's Go:
# infra/cluster/build.sh FOLDER
#
# Debian 12, root (for apt-get alone), some 14 CPU-minutes, 35 MB of downloads, 3 GB of scratch space. Debian 12 is the
# release whose package still holds the servers and whose kubelet still speaks to a Docker engine: Kubernetes 1.20.
set -euo pipefail

servers=(kube-apiserver kube-controller-manager kube-scheduler kubelet)

fail() { echo "$2" >&2; exit "$1"; }

[ $# = 1 ] || fail 78 "usage: infra/cluster/build.sh FOLDER"
folder=$(cd "$(dirname "$0")" && pwd)
target=$(realpath -m "$1")
# shellcheck source=/dev/null
[ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = bookworm ] ||
    fail 78 "Kubernetes can be built on Debian 12 only; name a folder with its binaries: STILLHOUSE_KUBERNETES=…"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# A source line for every package line, in settings of our own: the machine's stay as they are.
mkdir -p "$scratch"/apt/{lists/partial,cache/archives/partial,parts}
"$folder/../debian-sources.sh" | sed 's/^deb /deb-src /' >"$scratch/apt/parts/debian.list"
private=(-o "Dir::State::lists=$scratch/apt/lists" -o "Dir::Cache=$scratch/apt/cache" -o Dir::Etc::sourcelist=/dev/null
    -o "Dir::Etc::sourceparts=$scratch/apt/parts" -o APT::Sandbox::User=root)

apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    golang-1.19-go golang-github-modern-go-reflect2-dev rsync jq gcc libc6-dev make dpkg-dev >/dev/null
cd "$scratch"
apt-get "${private[@]}" -qq update
apt-get "${private[@]}" -qq source --download-only kubernetes
# apt-get has checked the source's digests against the signed index.
dpkg-source --no-check -x kubernetes_*.dsc source >/dev/null
cd source

# Go >= 1.18 needs reflect2 >= 1.0.2: with the one that Kubernetes brings, a server corrupts memory as it encodes a map.
reflect=vendor/github.com/modern-go/reflect2
rm -f "$reflect"/*.{go,s}
cp /usr/share/gocode/src/github.com/modern-go/reflect2/*.{go,s} "$reflect/"

version=$(dpkg-parsechangelog -S Version | sed -E 's/.*really//; s/-.*//')
export KUBE_GIT_VERSION=v$version KUBE_GIT_MAJOR=${version%%.*} KUBE_GIT_MINOR
KUBE_GIT_MINOR=$(cut -d. -f2 <<<"$version")
export KUBE_GIT_TREE_STATE=clean KUBE_GIT_COMMIT=debian
export GOROOT=/usr/lib/go-1.19 PATH=/usr/lib/go-1.19/bin:$PATH GOPATH=$PWD/.go GOFLAGS=-p=2
export GOPROXY=off GOSUMDB=off CGO_ENABLED=0 HOME=$scratch/home
mkdir -p "$HOME" .go/src/k8s.io
ln -s ../../.. .go/src/k8s.io/kubernetes
make WHAT="${servers[*]/#/cmd/}"

gcc -Os -static "-DVERSION=$version" -o "$scratch/pause" build/pause/linux/pause.c
mkdir -p "$target"
install -m 755 "${servers[@]/#/_output/local/bin/linux/amd64/}" "$scratch/pause" "$target/"
