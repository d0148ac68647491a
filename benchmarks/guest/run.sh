#!/usr/bin/env bash
# CPU seconds of user programs under Debian's kernel on Ring3, natively, and (when installed) under the same kernel on QEMU TCG, in one run. Prints name, value, unit, separated by tabs.
# usage: run.sh [--all] [--rounds N] [--engine interpreter|translator] [GROUP|PROGRAM...]
#   --all       a line for each program as well, with its native milliseconds
#   --rounds    a program's figure is the best of N processes (default 3)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
here=$root/benchmarks/guest work=$root/artifacts/bench-guest
export LC_ALL=C
all=0 rounds=3 engine=translator
while [ $# -gt 0 ]; do
    case $1 in
        --all) all=1; shift ;;
        --rounds) rounds=$2; shift 2 ;;
        --engine) engine=$2; shift 2 ;;
        -*) sed -n 's/^# //p' "$0" >&2; exit 2 ;;
        *) break ;;
    esac
done

program=$("$here/build.sh")
package=$("$root/tests/guest/fetch.sh" --kernel amd64 linux-image-cloud-amd64)
rm -rf "$work/boot"
dpkg-deb --fsys-tarfile "$("$root/tests/guest/fetch.sh" amd64 "$package")" | tar -x -C "$work" ./boot
kernel=$(find "$work/boot" -name 'vmlinuz-*' | sort -V | tail -1)
tree=$work/tree
rm -rf "$tree"
install -D -m 755 "$program" "$tree/init"
(cd "$tree" && find . | sort | cpio -o -H newc --quiet --owner=0:0 | gzip -1) >"$work/initrd.gz"
# Time that the host takes away counts on both: TCG's guest cannot know of it.
append="console=ttyS0 quiet panic=-1 no-steal-acc -- $rounds $*"

# machine NAME COMMAND...: boots, and leaves the programs' lines in $work/NAME. The guest's clock has to agree with ours from the first line to the last.
machine() {
    local name=$1 line fd pid start=0 seconds=; shift
    exec {fd}< <(exec timeout -k 5 900 "$@" 2>"$work/$name.err" </dev/null)
    pid=$!
    : >"$work/$name"
    while IFS= read -r -u $fd line; do
        line=${line%$'\r'}
        case $line in
            begin) start=$EPOCHREALTIME ;;
            end\ *) seconds=$(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }') ;;
        esac
        echo "$line" >>"$work/$name"
    done
    exec {fd}<&-
    wait "$pid" || true
    [ -n "$seconds" ] || { echo "guest: $name did not come to its end: artifacts/bench-guest/$name, $name.err" >&2; exit 1; }
    awk -v name="$name" -v host="$seconds" '$1 == "end" && ($4 - host > 0.1 * host + 0.3 || host - $4 > 0.1 * host + 0.3) {
        printf "guest: %s counted %s s in %s s of the host\n", name, $4, host >"/dev/stderr"; exit 1 }' "$work/$name"
}

"$root/ring3" --version >/dev/null
awk '$1 > 1.5 { print "guest: other work on this machine (load " $1 "): the figures are rough" >"/dev/stderr" }' /proc/loadavg
"$program" "$rounds" "$@" >"$work/native" || { grep -v '^program' "$work/native" >&2; exit 1; }
machine ring3 "$root/ring3" boot --engine "$engine" --cpus 2 --memory 512M --kernel "$kernel" --initrd "$work/initrd.gz" --append "$append"
runs=("$work/native" "$work/ring3")
if command -v qemu-system-x86_64 >/dev/null; then
    machine tcg qemu-system-x86_64 -accel tcg -cpu max -m 512 -smp 2 -display none -serial stdio -monitor none -no-reboot -kernel "$kernel" -initrd "$work/initrd.gz" -append "$append"
    runs+=("$work/tcg")
else
    echo 'guest: qemu-system-x86_64 is not installed: no comparison (Debian package qemu-system-x86)' >&2
fi

# A program that failed has no line, and one whose checksum is not the native one's is wrong.
awk -v all="$all" -v runs=${#runs[@]} '
    FNR == 1 { run++ }
    $1 == "program" && run == 1 { order[++programs] = $3; group[$3] = $2 }
    $1 == "program" { time[run, $3] = $4; sum[run, $3] = $5 }
    function line(name, ratio) { printf "guest.%s\t%.2f\tx\n", name, ratio }
    END {
        name[2] = "ring3"; name[3] = "TCG"
        for (i = 1; i <= programs; i++) {
            p = order[i]
            for (r = 2; r <= runs; r++)
                if (sum[r, p] != sum[1, p]) {
                    printf "guest: %s: native %s, %s %s\n", p, sum[1, p], name[r], (r, p) in sum ? sum[r, p] : "nothing" >"/dev/stderr"
                    wrong = 1
                }
        }
        if (wrong || !programs)
            exit 1
        for (i = 1; i <= programs; i++) {
            p = order[i]; g = group[p]
            if (i == 1 || group[order[i - 1]] != g) groups[++count] = g
            members[g]++
            native[g] += log(time[2, p] / time[1, p])
            if (runs > 2) tcg[g] += log(time[2, p] / time[3, p])
            if (all) {
                printf "guest.%s.%s.native_ms\t%.1f\tms\n", g, p, time[1, p] * 1000
                line(g "." p ".vs_native", time[2, p] / time[1, p])
                if (runs > 2) line(g "." p ".vs_tcg", time[2, p] / time[3, p])
            }
        }
        for (i = 1; i <= count; i++) {
            g = groups[i]
            line(g ".vs_native", exp(native[g] / members[g]))
            if (runs > 2) line(g ".vs_tcg", exp(tcg[g] / members[g]))
            # Another kind of time.
            if (g == "cross") continue
            counted++; total += native[g] / members[g]
            if (runs > 2) total_tcg += tcg[g] / members[g]
        }
        if (counted) {
            line("geomean.vs_native", exp(total / counted))
            if (runs > 2) line("geomean.vs_tcg", exp(total_tcg / counted))
        }
    }' "${runs[@]}"
