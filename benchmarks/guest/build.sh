#!/usr/bin/env bash
# Builds the programs of ./bench guest as one static file, artifacts/bench-guest/guest, and prints its path.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(cd "$here/../.." && pwd)/artifacts/bench-guest
mkdir -p "$out"
# Vectors where a program asks for them, and nowhere else.
gcc -std=gnu11 -O2 -march=x86-64 -fno-tree-vectorize -static -Wall -Wextra -Wno-missing-field-initializers -Werror -o "$out/guest" "$here"/*.c -lpthread
echo "$out/guest"
