#!/usr/bin/env bash
# Latency of Xen events for an unmodified client on ring3 exec. Prints name, value, unit, separated by tabs.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
"$root/src/Ring3.DevKvm/native/build.sh"
gcc -std=gnu11 -O2 -Wall -Wextra -Werror -o "$root/artifacts/devkvm/bench-xen" "$root/benchmarks/xen/xen.c" -lpthread
exec "$root/artifacts/devkvm/ring3-exec" "$root/artifacts/devkvm/bench-xen"
