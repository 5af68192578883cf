#!/usr/bin/env bash
# Prints where this machine's own Debian packages come from, as lines of a sources.list.
set -euo pipefail

list() { apt-get indextargets --format 'deb $(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian'; }

# apt knows an archive's origin once it has its lists.
[ -n "$(list)" ] || apt-get update -qq >&2
list | sort -u
