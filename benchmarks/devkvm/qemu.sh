#!/usr/bin/env bash
# Debian's QEMU on Ring3 against ring3 boot: time from the kernel's first message on the serial port to the shell, same kernel, initramfs, memory and
# one vCPU each, in turn. Prints devkvm.qemu_vs_boot.
# usage: qemu.sh [ROUNDS]        best of ROUNDS (default 3)
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
rounds=${1:-3}
export LC_ALL=C
command -v qemu-system-x86_64 >/dev/null || { echo "devkvm: qemu-system-x86_64 is not installed (Debian package qemu-system-x86)" >&2; exit 0; }
work=$root/artifacts/test/qemu
mkdir -p "$work" "$root/artifacts/bench-devkvm"
"$root/tests/qemu/prepare.sh" "$work" >"$root/artifacts/bench-devkvm/prepare.log" 2>&1
"$root/ring3" --version >/dev/null
"$root/ring3" exec -- true
append='console=ttyS0 earlyprintk=ttyS0,115200 panic=-1'

# seconds_to_shell COMMAND...
seconds_to_shell() {
    local line first= fd pid
    seconds=
    exec {fd}< <(exec "$@" 2>"$root/artifacts/bench-devkvm/stderr.log" < <(sleep 110))
    pid=$!
    while IFS= read -r -t 120 -u $fd line; do
        case $line in
            *'Linux version'*) first=${first:-$EPOCHREALTIME} ;;
            *'== shell on'*) seconds=$(awk -v a="$first" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.3f", b - a }'); break ;;
        esac
    done
    kill "$pid" 2>/dev/null || true
    exec {fd}<&-
    wait "$pid" 2>/dev/null || true
    [ -n "$seconds" ] || { echo "devkvm: no shell; see artifacts/bench-devkvm/stderr.log" >&2; exit 1; }
}

best() { [ -z "$1" ] && echo "$2" || awk -v a="$1" -v b="$2" 'BEGIN { print (a < b) ? a : b }'; }

boot= qemu=
for _ in $(seq "$rounds"); do
    seconds_to_shell "$root/ring3" boot --cpus 1 --memory 512M --kernel "$work/vmlinuz" --initrd "$work/initrd.gz" --append "$append"
    boot=$(best "$boot" "$seconds")
    seconds_to_shell "$root/artifacts/devkvm/ring3-exec" -- qemu-system-x86_64 -no-user-config -machine pc -accel kvm -cpu host -smp 1 -m 512 -display none -net none \
        -serial stdio -monitor none -no-reboot -kernel "$work/vmlinuz" -initrd "$work/initrd.gz" -append "$append"
    qemu=$(best "$qemu" "$seconds")
done
printf 'devkvm.boot_s\t%s\ts\n' "$boot"
printf 'devkvm.qemu_boot_s\t%s\ts\n' "$qemu"
awk -v a="$qemu" -v b="$boot" 'BEGIN { printf "devkvm.qemu_vs_boot\t%.2f\tx\n", a / b }'
