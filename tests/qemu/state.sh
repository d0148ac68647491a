# shellcheck shell=bash
# Snapshots and live migration.

savevm() {
    cp "$work/empty.qcow2" "$dir/disk.qcow2"; chmod 666 "$dir/disk.qcow2"
    # shellcheck disable=SC2046
    vm_start vm 400 -machine "$1" $(accelerator) -m 128 -smp 2 $(kernel_arguments) -append 'console=ttyS0 panic=-1 quiet' \
        -drive "if=none,id=d,file=$dir/disk.qcow2,format=qcow2" -device virtio-blk-pci,drive=d
    vm_expect vm 150 '== shell'
    vm_run vm 90 'tool memory 16 >/tmp/memory.log & x=before; head -c 3000000 /dev/urandom >/tmp/file; sum=$(sha256sum </tmp/file); echo ready $x' 'ready before'
    vm_monitor vm 60 'savevm one'
    vm_run vm 90 'x=after; rm /tmp/file; sleep 2; tail -n1 /tmp/memory.log; echo now $x' 'now after'
    vm_monitor vm 60 'loadvm one'
    vm_run vm 90 'sleep 1; echo now $x; [ "$(sha256sum </tmp/file)" = "$sum" ] && echo the file is back $((40 + 2))' 'now before.*the file is back 42'
    vm_run vm 90 'sleep 2; grep -c good /tmp/memory.log; grep -c BROKEN /tmp/memory.log' '[1-9][0-9]*[^0-9]+0[^0-9]'
    vm_monitor vm 90 'info snapshots' 'one'
    vm_type vm leave
    vm_end vm 90 0
}

# migrate MODEL: a guest that keeps writing memory moves to a second QEMU. The source's memory after the move and the destination's
# before its first instruction are the same bytes (but for a clock); the guest's own checks go on at the destination.
migrate() {
    local model=$1 common
    # shellcheck disable=SC2046
    common=(-machine "$model" $(accelerator) -m 128 -smp 2 -vga none $(kernel_arguments) -append 'console=ttyS0 panic=-1 quiet')
    vm_start from 300 "${common[@]}"
    vm_expect from 150 '== shell'
    vm_run from 90 'tool memory 32 >/tmp/memory.log & sleep 1; head -c 3000000 /dev/urandom >/tmp/file; sum=$(sha256sum </tmp/file); echo ready' 'ready'
    vm_start to 300 "${common[@]}" -S -incoming "unix:$dir/socket"
    vm_monitor to 60 'info status' 'inmigrate'
    vm_monitor from 90 'migrate_set_parameter downtime-limit 2000'
    vm_monitor from 90 "migrate -d unix:$dir/socket"
    local start=$SECONDS
    while :; do
        vm_monitor from 90 'info migrate' 'Migration status: [a-z-]+'
        case ${found[0]} in
            *completed*) break ;;
            *failed*|*cancelled*) fail "migration: ${found[0]}: $(last to)" ;;
        esac
        # A guest that dirties faster than the socket moves never converges by itself: then it is stopped, as a manager would.
        [ $((SECONDS - start)) -lt 30 ] || [ -n "${stopped:-}" ] || { vm_monitor from 90 'stop'; stopped=1; }
        [ $((SECONDS - start)) -lt 120 ] || fail "migration still runs after 120 s"
        sleep 0.3
    done
    local vm
    for vm in from to; do
        vm_monitor $vm 90 "pmemsave 0 0xa0000 \"$dir/$vm.low\""
        vm_monitor $vm 90 "pmemsave 0x100000 0x7f00000 \"$dir/$vm.high\""
    done
    # Registers set at the destination write one structure of KVM's own: the wall clock, 12 bytes at the address that the guest gave it.
    local differing
    for vm in low high; do
        [ -s "$dir/from.$vm" ] && [ -s "$dir/to.$vm" ] || fail "no copy of memory: $(last from)"
        differing=$(cmp -l "$dir/from.$vm" "$dir/to.$vm" | awk 'NR == 1 { first = $1 } { last = $1 } END { print NR ? last - first + 1 : 0 }')
        [ "$differing" -le 12 ] || fail "memory differs, $vm: over $differing bytes, from $(cmp "$dir/from.$vm" "$dir/to.$vm")"
    done
    rm -f "$dir"/*.low "$dir"/*.high
    grep -a 'dirty sync count' "$dir/from.mon" | tail -n 1
    vm_monitor from 90 'info migrate' 'dirty sync count: ([0-9]+)'
    [ "${found[1]}" -ge 2 ] || fail "the migration took ${found[1]} round: nothing was logged"
    vm_monitor to 90 'cont'
    vm_run to 90 'n=$(grep -c good /tmp/memory.log); sleep 3; m=$(grep -c good /tmp/memory.log); [ $m -gt $n ] && echo rounds go on' 'rounds go on'
    vm_run to 90 'grep -c BROKEN /tmp/memory.log; [ "$(sha256sum </tmp/file)" = "$sum" ] && echo sums agree $((40 + 2))' '0[^0-9]+sums agree 42'
    vm_type to leave
    vm_end to 90 0
    vm_monitor from 90 'quit' '$' 
    vm_end from 90 0
}
