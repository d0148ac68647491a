# shellcheck shell=bash
# Machine models and interrupt controllers, processors, disks, network, reset and exit.

kernel_arguments() { echo "-kernel $work/vmlinuz -initrd $work/initrd.gz"; }

# machine MODEL IRQCHIP [EXTRA...]: Debian's kernel with $cpus processors up to a shell that answers; power off ends QEMU with status 0.
machine() {
    local model=$1 irqchip=$2; shift 2
    # shellcheck disable=SC2046
    vm_start vm 300 -machine "$model" $(accelerator) -m 256 -smp "$cpus" $(kernel_arguments) \
        -append 'console=ttyS0 panic=-1' "$@"
    # The kernel's own reports are not a reason to fail, its silence is.
    vm_expect vm 150 "== shell on 6\.12[^,]*, $cpus processors"
    vm_run vm 90 'echo $((6 * 7))-$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)' '42-[a-z-]+'
    [ "$cpus" = 1 ] || vm_run vm 90 'taskset 1 true; taskset 2 sh -c "echo second $((3 * 3)); sleep 1; echo slept"' 'second 9.*slept'
    ! grep -aE 'BUG:|Oops|soft lockup|rcu_.*stall|Call Trace' "$dir/vm.log" || fail "the kernel reports: $(grep -aE -m1 'BUG:|Oops|soft lockup|stall|Call Trace' "$dir/vm.log")"
    vm_type vm leave
    vm_end vm 90 0
}

# deadlocked MODEL: QEMU 7.2 warns about two processors on interrupt controllers of its own ("Do not use kernel-irqchip except for the -M isapc
# machine type") and then spins in its loop of the second processor, with its lock held, on any KVM.
deadlocked() { skip "QEMU 7.2 hangs by itself with -smp 2 and kernel-irqchip=off, on the kernel's KVM too; it warns: Userspace local APIC is deprecated for KVM"; }

# A shell from a kernel that SeaBIOS and GRUB load from a disk, starting in real mode. $1: the disk's options.
disk_boot() {
    # shellcheck disable=SC2046
    vm_start vm 400 -machine pc $(accelerator) -m 256 -smp 2 "$@"
    vm_expect vm 120 'GRUB reads the kernel'
    vm_expect vm 120 '== shell on 6\.12[^,]*, 2 processors'
    vm_run vm 90 'echo $((6 * 7))' '42'
    vm_type vm leave
    vm_end vm 90 0
}

virtio() {
    local port payload=$dir/payload
    head -c 300000 /dev/urandom > "$payload"
    sum=$(sha256sum < "$payload" | cut -c1-64)
    cp "$work/empty.qcow2" "$dir/disk.qcow2"; chmod 666 "$dir/disk.qcow2"; chmod a+r "$payload"
    # shellcheck disable=SC2046
    vm_start vm 400 -machine "$1" $(accelerator) -m 256 -smp 2 $(kernel_arguments) -append 'console=ttyS0 panic=-1 quiet' \
        -drive "if=none,id=d,file=$dir/disk.qcow2,format=qcow2" -device "virtio-blk-$2,drive=d" \
        -netdev "user,id=n,restrict=on,tftp=$dir,guestfwd=tcp:10.0.2.100:80-cmd:cat $payload" -device "virtio-net-$2,netdev=n" \
        -object rng-random,id=r,filename=/dev/urandom -device "virtio-rng-$2,rng=r"
    vm_expect vm 150 '== shell'
    [ "$2" = pci ] || vm_type vm 'load virtio_mmio'
    vm_type vm 'load failover net_failover virtio_net virtio_blk virtio-rng'
    vm_run vm 90 'head -c 4096 /dev/hwrng | wc -c; cat /sys/class/misc/hw_random/rng_current' '4096[^v]*virtio_rng'
    vm_run vm 60 'dd if=/dev/urandom of=/tmp/r bs=1M count=12 2>/dev/null; dd if=/tmp/r of=/dev/vda bs=1M 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches; head -c 12582912 /dev/vda | cmp - /tmp/r && echo disk $((40 + 2))' 'disk 42'
    vm_run vm 90 'ifconfig eth0 10.0.2.15 up; tftp -g -r payload -l /tmp/p 10.0.2.2; sha256sum </tmp/p' "$sum"
    vm_run vm 90 'nc 10.0.2.100 80 </dev/null | sha256sum' "$sum"
    vm_run vm 90 "grep -c virtio /proc/interrupts | sed 's/^[1-9].*/interrupts seen/'" 'interrupts seen'
    vm_type vm leave
    vm_end vm 90 0
}

reset() {
    # shellcheck disable=SC2046
    vm_start vm 400 -machine "$1" $(accelerator) -m 256 -smp 2 $(kernel_arguments) -append 'console=ttyS0 panic=-1 quiet'
    vm_expect vm 150 '== shell'
    vm_type vm 'reboot -f'
    vm_expect vm 150 '== shell on 6\.12[^,]*, 2 processors'
    vm_monitor vm 90 'system_reset'
    vm_expect vm 150 '== shell on 6\.12[^,]*, 2 processors'
    vm_run vm 90 'echo $((6 * 7))' '42'
    vm_type vm leave
    vm_end vm 90 0
}

processor() {
    # shellcheck disable=SC2046
    vm_start vm 300 -machine q35 $(accelerator) -m 256 -smp 2 $(kernel_arguments) -append 'console=ttyS0 panic=-1 quiet'
    vm_expect vm 150 '== shell on 6\.12[^,]*, 2 processors'
    vm_run vm 90 'grep -m1 "model name" /proc/cpuinfo' "$1"
    vm_type vm leave
    vm_end vm 90 0
}

# The guest's write to isa-debug-exit gives QEMU's status: value * 2 + 1.
debug_exit() {
    # shellcheck disable=SC2046
    vm_start vm 300 -machine pc $(accelerator) -m 256 $(kernel_arguments) -append 'console=ttyS0 panic=-1 quiet' -device isa-debug-exit,iobase=0xf4,iosize=4
    vm_expect vm 150 '== shell'
    vm_type vm 'tool out 0xf4 16'
    vm_end vm 90 33
}

# unprivileged: the same as a user that may not open /dev/kvm, from a place that everybody may read.
unprivileged() {
    [ "$(id -u)" = 0 ] || skip "needs root to become another user"
    [ -z "${RING3_QEMU_ORACLE:-}" ] || skip "the machine's own KVM is root's"
    "$root/ring3" exec -- true
    local home
    home=$(mktemp -d --tmpdir=/tmp)
    trap 'vm_kill_all; rm -rf "$home"' EXIT
    chmod 755 "$home"
    cp "$root"/artifacts/devkvm/{ring3-exec,libring3.so,libring3-core.so} "$work"/{vmlinuz,initrd.gz} "$home"
    chmod -R a+rX "$home"
    work=$home as_user=1
    setpriv --reuid 65534 --regid 65534 --clear-groups sh -c ': <>/dev/kvm' 2>/dev/null && skip "everybody may open this machine's /dev/kvm"
    machine q35 on
}
