# shellcheck shell=bash
# OVMF and memtest86+.

ovmf() {
    local code=/usr/share/OVMF/OVMF_CODE_4M.fd vars=/usr/share/OVMF/OVMF_VARS_4M.fd
    [ -e "$code" ] && [ -e "$vars" ] || skip "Debian package ovmf is not installed"
    # This OVMF maps all of the physical address space in 2 MiB pages: 48 bits of a host take more memory than the guest has.
    local firmware_cpu=host,host-phys-bits=off
    cp "$vars" "$dir/vars.fd"; chmod 666 "$dir/vars.fd"
    # shellcheck disable=SC2046
    vm_start vm 300 -machine "$1" $(cpu=$firmware_cpu accelerator) -m 256 -smp 2 -net none -drive "if=pflash,format=raw,unit=0,readonly=on,file=$code" -drive "if=pflash,format=raw,unit=1,file=$dir/vars.fd"
    vm_expect vm 240 'UEFI Interactive Shell|Shell>'
    vm_key vm $'\r'
    vm_expect vm 60 'Shell>'
    vm_key vm $'ver\r'
    vm_expect vm 60 'UEFI v?2\.[0-9]'
    vm_key vm $'reset -s\r'
    vm_end vm 60 0
}

# ovmf_smm: the build for secure boot, which keeps its variables and their flash behind system management mode.
ovmf_smm() {
    local code=/usr/share/OVMF/OVMF_CODE_4M.secboot.fd vars=/usr/share/OVMF/OVMF_VARS_4M.fd
    [ -e "$code" ] && [ -e "$vars" ] || skip "Debian package ovmf is not installed"
    local firmware_cpu=host,host-phys-bits=off
    cp "$vars" "$dir/vars.fd"; chmod 666 "$dir/vars.fd"
    # shellcheck disable=SC2046
    vm_start vm 600 -machine q35,smm=on $(cpu=$firmware_cpu accelerator) -m 256 -smp 2 -net none -global driver=cfi.pflash01,property=secure,value=on \
        -drive "if=pflash,format=raw,unit=0,readonly=on,file=$code" -drive "if=pflash,format=raw,unit=1,file=$dir/vars.fd"
    vm_expect vm 480 'Shell>'
    # A variable goes through an SMI into the flash, and comes back.
    vm_key vm $'set ring3 smm-works\r'
    vm_expect vm 60 'Shell>'
    vm_key vm $'set ring3\r'
    vm_expect vm 60 '=.{1,40}smm-works'
    vm_key vm $'reset -s\r'
    vm_end vm 60 0
    cmp -s "$vars" "$dir/vars.fd" && fail "the firmware has written nothing to its flash"
    return 0
}

# memtest: a whole pass over 64 MiB without an error; the screen, which memtest86+ copies to the serial port, counts the passes.
memtest() {
    local image=/boot/memtest86+x64.bin
    [ -e "$image" ] || skip "Debian package memtest86+ is not installed"
    # shellcheck disable=SC2046
    vm_start vm 1800 -machine pc $(accelerator) -m 64 -smp 1 -kernel "$image" -append 'console=ttyS0,115200 nobench'
    vm_expect vm 1750 'Pass: +[1-9][0-9]* +Errors: 0 '
    vm_monitor vm 90 quit '$'
    vm_end vm 90 0
}
