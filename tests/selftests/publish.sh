#!/usr/bin/env bash
# Makes the table of the last `./test selftests` docs/selftests.md.
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)
table=$root/artifacts/test/selftests/selftests.md
[ -e "$table" ] || { echo "publish: no table: run ./test selftests first" >&2; exit 66; }
cp "$table" "$root/docs/selftests.md"
