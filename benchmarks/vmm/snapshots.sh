#!/usr/bin/env bash
# Clones of a guest that waits for a command: from the start of the process to the first byte of the command's output, by ring3 restore and by the warm start of ring3 boot --exec; and what each of many clones
# holds for itself.
# usage: snapshots.sh        ROUNDS (10): the best of so many; CLONES (20): at once
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
rounds=${ROUNDS:-10} clones=${CLONES:-20}
work=$root/artifacts/bench-vmm-snapshots
rm -rf "$work"
mkdir -p "$work"
export LC_ALL=C

# first_byte COMMAND...: milliseconds until it has written a byte; it has to end with status 0.
first_byte() {
    local start=$EPOCHREALTIME byte fd
    exec {fd}< <(exec "$@" 2>"$work/stderr.log" </dev/null)
    local pid=$!
    IFS= read -r -N 1 -t 120 -u $fd byte || { echo "vmm: no output; see artifacts/bench-vmm-snapshots/stderr.log" >&2; exit 1; }
    awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f\n", (b - a) * 1000 }'
    cat <&$fd >/dev/null
    exec {fd}<&-
    wait $pid
}

best() {
    local i
    for i in $(seq "$rounds"); do first_byte "$@"; done | sort -g | head -n 1
}

"$root/ring3" boot --snapshot "$work/guest.snapshot" --snapshot-at ready </dev/null
printf 'vmm.restore_ms\t%s\tms\n' "$(best "$root/ring3" restore "$work/guest.snapshot" --exec 'echo here')"
"$root/ring3" boot --exec true </dev/null
printf 'vmm.warm_exec_ms\t%s\tms\n' "$(best "$root/ring3" boot --exec 'echo here')"

# Each says that it is there, and waits for the end of its input.
mkfifo "$work/hold"
exec 8<>"$work/hold"
pids=()
for i in $(seq "$clones"); do
    "$root/ring3" restore "$work/guest.snapshot" --exec 'echo here; cat' <"$work/hold" 8>&- >"$work/clone.$i" 2>&1 &
    pids+=($!)
done
for i in $(seq "$clones"); do
    until grep -q here "$work/clone.$i" || ! kill -0 "${pids[i - 1]}" 2>/dev/null; do sleep 0.1; done
done
for pid in "${pids[@]}"; do
    awk '/^Private_/ { sum += $2 } END { print sum / 1024 }' "/proc/$pid/smaps_rollup"
done | awk '{ sum += $1 } END { printf "vmm.clone_private_mib\t%.1f\tMiB\n", sum / NR }'
kill "${pids[@]}"
wait || true
rm -f "$work/guest.snapshot"
