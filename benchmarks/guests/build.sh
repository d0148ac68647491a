#!/usr/bin/env bash
# Builds the benchmark kernels: NAME.img (multiboot image) and NAME.native (process) for each name into OUT.
# usage: build.sh OUT NAME...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1; shift
mkdir -p "$out"
for name in "$@"; do
    define=
    [ "$name" = sys ] && define=-DUSER_KERNEL
    gcc -c $define -o "$out/$name-boot.o" "$here/boot.S"
    gcc -c -o "$out/$name.o" "$here/$name.S"
    ld -T "$here/image.ld" --oformat binary -o "$out/$name.img" "$out/$name-boot.o" "$out/$name.o"
    gcc -O2 -no-pie -o "$out/$name.native" "$here/native.c" "$out/$name.o"
done
