#!/usr/bin/env bash
# Prices of /dev/kvm on Ring3, and on the kernel's where this user may open it. Prints name, value, unit, separated by tabs.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
"$root/src/Ring3.DevKvm/native/build.sh"
gcc -std=gnu11 -O2 -Wall -Wextra -Werror -o "$root/artifacts/devkvm/bench" "$root/benchmarks/devkvm/devkvm.c" -lpthread
"$root/artifacts/devkvm/ring3-exec" "$root/artifacts/devkvm/bench" devkvm.
if [ -r /dev/kvm ] && [ -w /dev/kvm ]; then
    "$root/artifacts/devkvm/bench" devkvm.real_
fi
"$root/benchmarks/devkvm/qemu.sh"
