# shellcheck shell=bash
# QEMU that emulates Xen (-accel kvm,xen-version=...) on Ring3: sourced by tests/suites/xen.sh.

# xen_start ARGS...: Debian's amd64 kernel as a Xen HVM guest with two processors, up to its shell.
# QEMU 10.0 has no name for ITS_NO and does not pass it on, so on Intel's processors that kernel mends what is not broken, and warns of its own thunks ("CPA detected W^X violation") when it loads a module: it is told not to.
xen_start() {
    # shellcheck disable=SC2046
    vm_start vm 400 $(accelerator) -m 512 -smp 2 -kernel "$work/vmlinuz" -initrd "$work/initrd.gz" -append "console=ttyS0 panic=-1 indirect_target_selection=off ${words:-}" "$@"
    vm_expect vm 150 'Hypervisor detected: Xen HVM'
    vm_expect vm 200 '== shell on 6\.12[^,]*, 2 processors'
    vm_run vm 60 'dmesg | grep -ciE "Xen version 4.17|vector for event delivery is enabled"' '(^|[^0-9])2([^0-9]|$)'
    vm_run vm 60 "grep -cE '[1-9][0-9]* .*xen-percpu .*(timer[01]|resched[01]|callfuncsingle[01])' /proc/interrupts | sed 's/^[4-6]\$/event rows count/'" 'event rows count'
}

xen_reports() { ! grep -aE 'BUG:|Oops|soft lockup|rcu_.*stall|Call Trace' "$dir/vm.log" || fail "the kernel reports: $(grep -aE -m1 'BUG:|Oops|soft lockup|stall|Call Trace' "$dir/vm.log")"; }

# A PV disk: written, read back past the cache, and found on the host. Legacy interrupts arrive as PIRQs.
xen_block() {
    local sum
    truncate -s 16M "$dir/disk.img"
    xen_start -machine "$1" -nic none -drive "file=$dir/disk.img,format=raw,if=xen"
    vm_run vm 90 'load xen-blkfront; [ -b /dev/xvda ] && dd if=/dev/urandom of=/tmp/r bs=1M count=12 2>/dev/null; dd if=/tmp/r of=/dev/xvda bs=1M 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches; head -c 12582912 /dev/xvda | cmp - /tmp/r && echo disk $((40 + 2))' 'disk 42'
    vm_run vm 60 "grep -cE '[1-9][0-9]* .*xen-dyn.*blkif' /proc/interrupts | sed 's/^1\$/disk events count/'" 'disk events count'
    vm_run vm 60 "grep -cE '[1-9][0-9]* .*xen-pirq .*ttyS0' /proc/interrupts | sed 's/^1\$/pirqs count/'" 'pirqs count'
    vm_run vm 60 'sha256sum </tmp/r' '[0-9a-f]{64}'
    sum=${found[0]}
    xen_reports
    vm_type vm leave
    vm_end vm 90 0
    [ "$(head -c 12582912 "$dir/disk.img" | sha256sum | cut -c1-64)" = "$sum" ] || fail "the disk does not hold what the guest wrote"
}

# A PV network device.
xen_net() {
    local payload=$dir/payload sum
    head -c 300000 /dev/urandom >"$payload"
    sum=$(sha256sum <"$payload" | cut -c1-64)
    xen_start -machine "$1" -nic "user,model=xen-net-device,restrict=on,tftp=$dir,guestfwd=tcp:10.0.2.100:80-cmd:cat $payload"
    vm_run vm 90 'load xen-netfront; sleep 1; ifconfig eth0 10.0.2.15 up; tftp -g -r payload -l /tmp/p 10.0.2.2; sha256sum </tmp/p' "$sum"
    vm_run vm 90 'nc 10.0.2.100 80 </dev/null | sha256sum' "$sum"
    vm_run vm 60 "grep -cE '[1-9][0-9]* .*xen-dyn.*eth0' /proc/interrupts | sed 's/^[1-9]\$/network events count/'" 'network events count'
    xen_reports
    # No power off: QEMU 10.0 takes its network devices down twice when one is Xen's, and its exit is a crash of its own.
}

# MSI-X of PCI devices: the guest writes Xen's message, QEMU turns it into a route to an event channel with an irqfd, and unmasks the vector.
xen_msi() {
    truncate -s 16M "$dir/disk.img"
    # Xen's protocol would unplug the disk in favour of a PV disk that is not there.
    local words=xen_emul_unplug=never
    xen_start -machine "$1" -nic none -drive "if=none,id=d,file=$dir/disk.img,format=raw" -device virtio-blk-pci,drive=d
    vm_run vm 90 'load virtio_blk; [ -b /dev/vda ] && dd if=/dev/urandom of=/tmp/r bs=1M count=12 2>/dev/null; dd if=/tmp/r of=/dev/vda bs=1M 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches; head -c 12582912 /dev/vda | cmp - /tmp/r && echo disk $((40 + 2))' 'disk 42'
    vm_run vm 60 "grep -cE '[1-9][0-9]* .*xen-pirq .*-msi-?x? .*virtio' /proc/interrupts | sed 's/^[1-9]\$/message events count/'" 'message events count'
    xen_reports
    vm_type vm leave
    vm_end vm 90 0
}
