# shellcheck shell=bash
# QEMU's gdb stub: breakpoints in memory and in the debug registers, watchpoints, single steps.

# stub_target: a bare 32-bit guest with known symbols.
stub_target() {
    # shellcheck disable=SC2046
    vm_start vm 300 -machine "$1" $(accelerator) -m 64 -kernel "$work/target" -S -device isa-debug-exit,iobase=0xf4,iosize=4 \
        -chardev "socket,id=g,path=$dir/gdb,server=on,wait=off" -gdb chardev:g
    vm_monitor vm 90 'info status' 'paused'
    cp "$work/target" "$dir"
    cat > "$dir/commands" <<'G'
set confirm off
set pagination off
set architecture i386:x86-64
add-symbol-file target
target remote gdb
set $counter = (int *)&counter
# The firmware has yet to load the guest: an instruction planted now would be overwritten.
hbreak _start
continue
delete
break tick
continue
printf "A counter %d\n", *$counter
continue
printf "B counter %d at tick %d\n", *$counter, $pc == (int)&tick
delete
stepi
printf "C step %d counter %d\n", $pc - (int)&tick, *$counter
stepi
stepi
stepi
printf "D ecx %d at the return %d\n", $ecx, *(unsigned char *)$pc == 0xc3
stepi
printf "E returned %d\n", $pc > (int)&again && $pc < (int)&dead
hbreak tock
continue
printf "F hardware, at tock %d\n", $pc == (int)&tock
continue
printf "G hardware, at tock %d counter %d\n", $pc == (int)&tock, *$counter
delete
watch *$counter
continue
printf "H watch, counter %d\n", *$counter
delete
set var *(int *)&leave = 1
continue
quit
G
    (cd "$dir" && timeout 120 gdb -nx -batch -x commands) > "$dir/gdb.log" 2>&1 # The guest ends QEMU, so gdb's status says nothing.
    local line
    for line in 'A counter 0' 'B counter 1 at tick 1' 'C step 6 counter 2' 'D ecx 4662 at the return 1' 'E returned 1' 'F hardware, at tock 1' 'G hardware, at tock 1 counter 3' 'H watch, counter 4'; do
        grep -qx "$line" "$dir/gdb.log" || fail "gdb does not say '$line': $(grep -E '^[A-H] ' "$dir/gdb.log" | tr '\n' '|') $(tail -n 1 "$dir/gdb.log")"
    done
    vm_end vm 90 43
}

# stub_linux: breakpoints in a running Linux kernel with two processors, at the address that the kernel itself names.
stub_linux() {
    # shellcheck disable=SC2046
    vm_start vm 400 -machine q35 $(accelerator) -m 256 -smp 2 $(kernel_arguments) -append 'console=ttyS0 panic=-1 quiet nokaslr' \
        -chardev "socket,id=g,path=$dir/gdb,server=on,wait=off" -gdb chardev:g
    vm_expect vm 150 '== shell'
    vm_run vm 120 'grep -w __x64_sys_sethostname /proc/kallsyms | cut -c1-16' 'ffffffff[0-9a-f]{8}'
    local address=0x${found[0]} kind
    for kind in break hbreak; do
        cat > "$dir/commands" <<G
set confirm off
set pagination off
set architecture i386:x86-64
target remote gdb
$kind *$address
continue
printf "at %d\n", \$pc == $address
delete
stepi
stepi
printf "moved %d\n", \$pc != $address
detach
quit
G
        vm_type vm "sleep 2; hostname by-$kind; echo name \$(hostname)"
        (cd "$dir" && timeout 120 gdb -nx -batch -x commands) > "$dir/gdb-$kind.log" 2>&1 || fail "gdb, $kind: $(tail -n 1 "$dir/gdb-$kind.log")"
        grep -qx 'at 1' "$dir/gdb-$kind.log" && grep -qx 'moved 1' "$dir/gdb-$kind.log" || fail "gdb, $kind: $(tail -n 3 "$dir/gdb-$kind.log" | tr '\n' '|')"
        vm_expect vm 90 "name by-$kind"
    done
    vm_type vm leave
    vm_end vm 90 0
}
