# shellcheck shell=bash
# Debian's QEMU on Ring3: sourced by ./test, which provides install, verdict, results, root and asked (the suites named on the command line).
# QEMU_TESTS=REGEX selects tests by name; the whole list runs when the suite is asked for by name, a selection otherwise.
export LC_ALL=C
install qemu-system-x86 qemu-system-x86_64 && install cpio cpio && install xz-utils xz && install gdb gdb && install e2fsprogs mke2fs
work=$results/qemu
# shellcheck source=/dev/null
for part in lib machines state debug firmware; do . "$root/tests/qemu/$part.sh"; done

if ! "$root/tests/qemu/prepare.sh" "$work" >"$results/qemu-prepare.log" 2>&1; then
    verdict qemu-prepare 4 "cannot build the guests: $(tail -n 1 "$results/qemu-prepare.log")"
else
    irqchip= ring= cpu= as_user=
    for model in pc q35 microvm; do
        for chip in on split off; do
            case $model-$chip in
                *) qemu_test "$model-irqchip-$chip" machine $model $chip ;;
            esac
        done
    done
    qemu_test seabios-ide disk_boot -drive "file=$work/disk.img,format=raw,if=ide,snapshot=on"
    qemu_test seabios-virtio disk_boot -drive "file=$work/disk.img,format=raw,if=virtio,snapshot=on"
    qemu_test virtio-pci virtio q35 pci
    qemu_test virtio-mmio virtio microvm device
    qemu_test reset-pc reset pc
    irqchip=split qemu_test reset-q35-split reset q35
    cpu=host qemu_test cpu-host processor 'model name.*: .+'
    cpu=qemu64 qemu_test cpu-qemu64 processor 'QEMU Virtual CPU'
    qemu_test debug-exit debug_exit
    qemu_test savevm-pc savevm pc
    irqchip=split qemu_test savevm-q35-split savevm q35
    qemu_test migrate-bitmap migrate q35
    qemu_test migrate-ring migrate q35 4096
    irqchip=off qemu_test migrate-off migrate pc
    qemu_test gdb-target stub_target pc
    qemu_test gdb-linux stub_linux
    as_user=1 qemu_test as-user machine q35 on
    qemu_test ovmf ovmf q35
    qemu_test memtest memtest
fi
