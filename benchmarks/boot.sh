#!/usr/bin/env bash
# Time of ./ring3 --version, from process start to the first guest instruction, and to the guest's shell with one vCPU and 512 MiB, on Ring3 and (when installed) on QEMU TCG, with the same kernel and
# initramfs in the same run; and what Ring3's process holds besides the memory that the guest touched.
# usage: boot.sh [ROUNDS]        prints the best of ROUNDS (default 3)
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
rounds=${1:-3}
guest=$root/tests/guest
work=$root/artifacts/bench-boot
mkdir -p "$work"
export LC_ALL=C

package=$("$guest/fetch.sh" --kernel amd64 linux-image-cloud-amd64)
dpkg-deb --fsys-tarfile "$("$guest/fetch.sh" amd64 "$package")" | tar -x -C "$work" ./boot
kernel=$(find "$work/boot" -name "vmlinuz-*" | sort -V | tail -1)
initrd=$work/initrd.gz
"$guest/root.sh" amd64 "$initrd" "$guest/shell-init.sh"
append='console=ttyS0 quiet panic=-1'

# resident PID: KiB resident outside and inside the guest's memory (the mappings of 256 MiB and more).
resident() {
    awk '/^[0-9a-f]+-/ { size = 0 } /^Size:/ { size = $2 } /^Rss:/ { if (size >= 262144) guest += $2; else own += $2 } END { print own + 0, guest + 0 }' "/proc/$1/smaps"
}

# to_shell COMMAND...: sets seconds and own (KiB outside guest memory at the shell).
to_shell() {
    local start=$EPOCHREALTIME line fd
    seconds= own=0
    exec {fd}< <(exec "$@" 2>"$work/stderr.log" </dev/null)
    local pid=$!
    while IFS= read -r -t 120 -u $fd line; do
        case $line in
            *'== shell'*)
                seconds=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.3f", b - a }')
                own=$(resident "$pid" | cut -d' ' -f1) || own=0 ;;
        esac
    done
    exec {fd}<&-
    wait "$pid" || true
    [ -n "$seconds" ] || { echo "boot: no shell; see artifacts/bench-boot/stderr.log" >&2; exit 1; }
}

best() { [ -z "$1" ] && echo "$2" || awk -v a="$1" -v b="$2" 'BEGIN { print (a < b) ? a : b }'; }

ours= tcg= over= first= version=
for _ in $(seq 20); do
    start=$EPOCHREALTIME
    "$root/ring3" --version >/dev/null
    version=$(best "$version" "$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", (b - a) * 1000 }')")
done
qemu=$(command -v qemu-system-x86_64 || true)
for _ in $(seq "$rounds"); do
    to_shell "$root/ring3" boot --cpus 1 --memory 512M --kernel "$kernel" --initrd "$initrd" --append "$append" --stats
    ours=$(best "$ours" "$seconds"); over=$own
    first=$(best "$first" "$(sed -n 's/^stat start_ms  *//p' "$work/stderr.log")")
    if [ -n "$qemu" ]; then
        to_shell "$qemu" -accel tcg -cpu max -m 512 -smp 1 -display none -serial stdio -monitor none -no-reboot -kernel "$kernel" -initrd "$initrd" -append "$append"
        tcg=$(best "$tcg" "$seconds")
    fi
done
printf 'boot.version_ms\t%s\tms\nboot.first_instruction_ms\t%s\tms\n' "$version" "$first"
printf 'boot.ring3_s\t%s\ts\n' "$ours"
if [ -n "$tcg" ]; then
    printf 'boot.qemu_tcg_s\t%s\ts\n' "$tcg"
    awk -v a="$ours" -v b="$tcg" 'BEGIN { printf "boot.vs_tcg\t%.2f\tx\n", a / b }'
else
    echo 'boot: qemu-system-x86_64 is not installed: no comparison (Debian package qemu-system-x86)' >&2
fi
awk -v k="$over" 'BEGIN { printf "boot.rss_over_guest_mib\t%.1f\tMiB\n", k / 1024 }'
