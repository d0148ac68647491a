# shellcheck shell=bash
# Debian's QEMU on Ring3: sourced by ./test, which provides install, verdict, results, root and asked (the suites named on the command line).
# QEMU_TESTS=REGEX selects tests by name; the whole list runs when the suite is asked for by name, a selection otherwise.
export LC_ALL=C
install qemu-system-x86 qemu-system-x86_64 && install cpio cpio && install xz-utils xz && install gdb gdb && install e2fsprogs mke2fs
work=$results/qemu
# shellcheck source=/dev/null
for part in lib machines models state debug firmware; do . "$root/tests/qemu/$part.sh"; done

if ! "$root/tests/qemu/prepare.sh" "$work" >"$results/qemu-prepare.log" 2>&1; then
    verdict qemu-prepare 4 "cannot build the guests: $(tail -n 1 "$results/qemu-prepare.log")"
else
    # quick NAME...: as qemu_test, in the selection that runs with everything else; slow: only when this suite is asked for.
    quick() { qemu_test "$@"; }
    slow() { [ -n "${all:-}" ] || qemu_test "$@"; }
    irqchip= ring= cpu= as_user= cpus=2
    quick pc-irqchip-on machine pc on
    slow pc-irqchip-split machine pc split
    slow q35-irqchip-on machine q35 on
    quick q35-irqchip-split machine q35 split
    quick microvm-irqchip-on machine microvm on
    slow microvm-irqchip-split machine microvm split
    for model in pc q35 microvm; do
        slow "$model-irqchip-off" deadlocked "$model"
        cpu=host,-tsc-deadline cpus=1 slow "$model-irqchip-off-1" machine $model off
    done
    quick seabios-ide disk_boot -drive "file=$work/disk.img,format=raw,if=ide,snapshot=on"
    slow seabios-virtio disk_boot -drive "file=$work/disk.img,format=raw,if=virtio,snapshot=on"
    quick virtio-pci virtio q35 pci
    slow virtio-mmio virtio microvm device
    quick reset-pc reset pc
    irqchip=split slow reset-q35-split reset q35
    cpu=host slow cpu-host processor 'model name.*: .+'
    cpu=qemu64 slow cpu-qemu64 processor 'QEMU Virtual CPU'
    quick cpu-models cpu_models
    quick debug-exit debug_exit
    quick savevm-pc savevm pc
    irqchip=split slow savevm-q35-split savevm q35
    slow migrate-bitmap migrate q35
    ring=4096 quick migrate-ring migrate q35
    irqchip=split slow migrate-pc-split migrate pc
    quick gdb-target stub_target pc
    slow gdb-linux stub_linux
    quick as-user unprivileged
    slow ovmf ovmf q35
    slow ovmf-smm ovmf_smm
    slow memtest memtest
fi
