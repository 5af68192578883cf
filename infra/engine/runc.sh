#!/usr/bin/env bash
# runc for machines whose root may not lower an oom score (no CAP_SYS_RESOURCE): a container that asks for a negative
# one, as Kubernetes does for its pause containers, gets 0 instead of an error.
set -euo pipefail

bundle=
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
    --bundle | -b) next=$((i + 1)); bundle=${!next} ;;
    --bundle=*) bundle=${!i#*=} ;;
    esac
done
spec=$bundle/config.json
if [ -n "$bundle" ] && [ -f "$spec" ]; then
    changed=$(jq -c 'if (.process.oomScoreAdj // 0) < 0 then .process.oomScoreAdj = 0 else . end' "$spec")
    printf '%s\n' "$changed" >"$spec"
fi
exec runc "$@"
