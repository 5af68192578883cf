#!/usr/bin/env bash
# infra/base-image.sh TAG: makes sure that the base image TAG is in the Docker engine. It is pulled; where no registry
# can be reached, a stand-in with the same Python release is built of Debian's packages, under the same tag. It stands in
# for builds and tests on this machine only: don't push what is built on it.
set -euo pipefail
cd "$(dirname "$0")/.."

tag=${1:?usage: infra/base-image.sh TAG}
suite=bookworm # of the tag's name; its Python is 3.11
work=.run/images

docker image inspect "$tag" >/dev/null 2>&1 && exit 0
if timeout 120 docker pull --quiet "$tag" 2>/dev/null; then
    exit 0
fi

# The mirror that this machine itself installs from; the image keeps no trace of it.
mirror=$(infra/debian-sources.sh | awk -v suite="$suite" '$3 == suite {print $2; exit}')
if [ -z "$mirror" ] || ! command -v debootstrap >/dev/null; then
    echo "$tag can't be pulled, and a stand-in needs root, debootstrap and a machine on Debian $suite" >&2
    exit 78
fi
echo "▸ $tag can't be pulled; building a stand-in from Debian packages"
mkdir -p "$work"
root=$(mktemp -d "$work/base.XXXXXX")
trap 'rm -rf "$root"' EXIT
if ! debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip "$suite" "$root" "$mirror" \
    >"$work/base.log" 2>&1; then
    tail -n 20 "$work/base.log" >&2
    echo "debootstrap failed; the whole log is $work/base.log" >&2
    exit 75
fi
# The public image has Python's headers, too, for packages that are compiled when they are installed.
chroot "$root" sh -ec 'cd /tmp && apt-get download -qq -o APT::Sandbox::User=root libpython3.11-dev && dpkg -x *.deb unpacked &&
    cp -a unpacked/usr/include/. /usr/include/ && rm -r unpacked ./*.deb'
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root"/etc/apt/sources.list* "$root"/var/log/* "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
ln -s /usr/bin/python3 "$root/usr/local/bin/python3"
ln -s /usr/bin/python3 "$root/usr/local/bin/python"
ln -s /usr/bin/pip3 "$root/usr/local/bin/pip"
tar --directory "$root" --create . | docker import \
    --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' --change 'ENV LANG=C.UTF-8' \
    --change 'CMD ["python3"]' --change 'LABEL stillhouse.base=stand-in' - "$tag" >/dev/null
