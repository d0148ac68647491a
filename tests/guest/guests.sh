# shellcheck shell=bash
# Guests that nobody here wrote: sourced by suites/boot.sh after lib.sh. Each run takes some of them, RING3_BOOT_ALL=1 takes all, RING3_BOOT_GUESTS='xen grub' takes those.

# Names, and seconds of a processor that each takes.
guest_costs=(xen=25 systemd=19 memtest=21 installer=18 rt=9 ipxe=3 grub=2 grub-lkrn=2)
guest_budget=45

# part NAME PACKAGE PATTERN FILE [ARCH]: writes the first file of Debian's PACKAGE that matches to FILE; a package that cannot be had books a skip.
part() {
    local deb
    if ! deb=$("$guest/fetch.sh" "${5:-amd64}" "$2" 2>"$results/$1.err"); then
        verdict "$1" 4 "cannot fetch $2: $(tail -n 1 "$results/$1.err")"
        return 1
    fi
    dpkg-deb --fsys-tarfile "$deb" | tar -xO --wildcards "$3" >"$4"
}

# newest NAME REGEX: sets package to the newest one with such a name; none books a skip.
newest() { package=$("$guest/fetch.sh" --newest amd64 "$2" 2>"$results/$1.err") || { verdict "$1" 4 "$(tail -n 1 "$results/$1.err")"; return 1; }; }

# kernel NAME META: sets package to the newest kernel of META's flavour; none books a skip.
kernel() { package=$("$guest/fetch.sh" --kernel amd64 "$2" 2>"$results/$1.err") || { verdict "$1" 4 "$(tail -n 1 "$results/$1.err")"; return 1; }; }

# converse NAME LIMIT_S OPTIONS...: boots, and for each pair of the array steps waits for a line (or a piece between escapes) like the first and types the second. Then the machine is ended.
# What matches the regular expression in never must not have been printed.
converse() {
    local name=$1 limit=$2 machine i; shift 2
    local log=$results/$name.log
    starts "$name" "$limit" "$@"
    for ((i = 0; i < ${#steps[@]}; i += 2)); do
        until printed "$log" "${steps[i]}"; do
            if ! kill -0 $machine 2>/dev/null; then
                wait $machine
                verdict "$name" 1 "status $?, and nothing like '${steps[i]}': artifacts/test/$name.log"
                exec 8>&-
                return
            fi
            sleep 0.5
        done
        printf '%b' "${steps[i + 1]}" >&8
    done
    exec 8>&-
    kill $machine
    wait $machine 2>/dev/null
    [ -z "${never:-}" ] || ! printed "$log" "$never"
    verdict "$name" $? "printed what matches '${never:-}': artifacts/test/$name.log"
}

# Xen as a Multiboot kernel, compressed as it is installed, with a Linux dom0 of two processors.
guest_xen() {
    local name=$1 package
    newest "$name" '^xen-hypervisor-[0-9.]+-amd64$' && part "$name" "$package" './boot/xen-*.gz' "$results/xen.gz" || return
    kernel "$name" linux-image-amd64 && part "$name" "$package" './boot/vmlinuz-*' "$results/dom0" || return
    "$guest/root.sh" amd64 "$results/dom0.cpio.gz" "$guest/dom0-init.sh"
    boots "$name" 900 --cpus 2 --memory 768M --kernel "$results/xen.gz" --append 'console=com1 com1=115200,8n1 dom0_mem=512M' \
        --initrd "$results/dom0 console=hvc0 quiet panic=-1" --initrd "$results/dom0.cpio.gz"
    expect "$name" $? '^\(XEN\) Dom0 has maximum 2 VCPUs' '^Booting (paravirtualized )?kernel on Xen' '^hypervisor: xen 4\.' '^dom0: 2 processors' '^\(XEN\) Entering ACPI S5 state'
}

# systemd as PID 1, with journald, to multi-user.target.
guest_systemd() {
    if ! "$guest/root.sh" amd64 "$results/systemd.cpio.gz" "$guest/systemd-init.sh" systemd libsystemd-shared libsystemd0 libc6 libseccomp2 libpam0g libaudit1 libkmod2 libapparmor1 libselinux1 libmount1 \
        libacl1 libblkid1 libcap2 libcrypt1 libgcrypt20 libip4tc2 liblz4-1 libssl3 libzstd1 liblzma5 libcap-ng0 libpcre2-8-0 libgpg-error0 2>"$results/$1.err"; then
        verdict "$1" 4 "cannot build the root: $(tail -n 1 "$results/$1.err")"
        return
    fi
    boots "$1" 900 --cpus 2 --initrd "$results/systemd.cpio.gz" --append quiet
    expect "$1" $? '^pid 1 is systemd' '^basic.target is active, journal active, failed units: 0' '^virtualisation: kvm'
}

# memtest86+ enters at the 64-bit entry, finds memory by e820 and cores by ACPI, and has come to its last test when all others have passed once.
guest_memtest() {
    part "$1" memtest86+ './boot/memtest86+x64.bin' "$results/memtest.bin" || return
    steps=('#10 \[Bit fade' '')
    never='Errors: *[1-9]'
    converse "$1" 900 --cpus 1 --memory 8M --kernel "$results/memtest.bin" --append 'console=ttyS0,115200'
}

# Debian's installer asks its first question and takes the answer.
guest_installer() {
    local package
    newest "$1" '^debian-installer-[0-9]+-netboot-amd64$' || return
    part "$1" "$package" '*/text/debian-installer/amd64/linux' "$results/installer.linux" && part "$1" "$package" '*/text/debian-installer/amd64/initrd.gz' "$results/installer.gz" || return
    steps=('Entering low memory mode' '\r' 'Select your location' '')
    converse "$1" 1200 --cpus 2 --memory 512M --kernel "$results/installer.linux" --initrd "$results/installer.gz" --append 'TERM=linux quiet'
}

# The kernel with the real-time scheduler: every lock sleeps, interrupts are threads.
guest_rt() {
    local package
    kernel "$1" linux-image-rt-amd64 && part "$1" "$package" './boot/vmlinuz-*' "$results/vmlinuz-rt" || return
    boots "$1" 600 --cpus 2 --kernel "$results/vmlinuz-rt" --exec 'uname -v; cat /sys/kernel/realtime; ps | grep -c "irq/"'
    expect "$1" $? ' PREEMPT_RT ' '^1' '^([2-9]|[1-9][0-9])'
}

# iPXE, entered in real mode: its shell by Ctrl-B through the BIOS's keyboard.
guest_ipxe() {
    part "$1" ipxe './boot/ipxe.lkrn' "$results/ipxe.lkrn" || return
    # shellcheck disable=SC2016 # iPXE's variables
    steps=('Press Ctrl-B' '\x02' 'iPXE>' 'echo it is ${platform}\r' '^it is pcbios' '')
    converse "$1" 300 --cpus 1 --memory 64M --kernel "$results/ipxe.lkrn"
}

# grub_image NAME: core.img with the modules of a small shell in $results/grub.
grub_image() {
    local deb tree=$results/grub
    mkdir -p "$tree"
    for package in grub-pc-bin grub-common; do
        deb=$("$guest/fetch.sh" amd64 $package 2>"$results/$1.err") || { verdict "$1" 4 "cannot fetch $package: $(tail -n 1 "$results/$1.err")"; return 1; }
        dpkg-deb -x "$deb" "$tree"
    done
    modules=$tree/usr/lib/grub/i386-pc
    # shellcheck disable=SC2016 # GRUB's variable
    echo 'echo core on $grub_platform' >"$tree/load.cfg"
    if ! "$tree/usr/bin/grub-mkimage" -d "$modules" -O i386-pc -o "$tree/core.img" -p '(memdisk)' -c "$tree/load.cfg" biosdisk echo lsmmap normal terminal halt 2>"$results/$1.err"; then
        verdict "$1" 4 "grub-mkimage does not run here: $(tail -n 1 "$results/$1.err")"
        return 1
    fi
}

# GRUB from a disk's boot sector, its screen and keyboard those of the BIOS.
guest_grub() {
    grub_image "$1" || return
    cat "$modules/boot.img" "$results/grub/core.img" >"$results/grub.disk"
    # shellcheck disable=SC2016
    steps=('core on pc' '' 'grub>' 'ls\r' '\(hd0\)' 'lsmmap\r' 'base_addr = 0x100000, length = 0x3f00000, available' '')
    converse "$1" 300 --cpus 1 --memory 64M --kernel "$results/grub.disk"
}

# GRUB in the form of a Linux kernel.
guest_grub-lkrn() {
    grub_image "$1" || return
    cat "$modules/lnxboot.img" "$results/grub/core.img" >"$results/grub.lkrn"
    steps=('core on pc' '' 'grub>' 'lsmmap\r' 'base_addr = 0x100000, length = 0x3f00000, available' '')
    converse "$1" 300 --cpus 1 --memory 64M --kernel "$results/grub.lkrn"
}

# rotation: prints the guests of this run: another order every day, as many as the budget has room for.
rotation() {
    local left=$guest_budget entry
    if [ -n "${RING3_BOOT_GUESTS:-}" ]; then
        echo "$RING3_BOOT_GUESTS"
        return
    fi
    while read -r _ entry; do
        if [ -n "${RING3_BOOT_ALL:-}" ] || [ $((left - ${entry#*=})) -ge 0 ]; then
            left=$((left - ${entry#*=}))
            echo "${entry%=*}"
        fi
    done < <(for entry in "${guest_costs[@]}"; do echo "$(echo "$(date -u +%F) $entry" | cksum | cut -d' ' -f1) $entry"; done | sort -n)
}

run_guests() {
    local chosen entry name steps never
    chosen=" $(rotation | tr '\n' ' ') "
    for entry in "${guest_costs[@]}"; do
        name=${entry%=*} never=
        case $chosen in
            *" $name "*) "guest_$name" "boot-guest-$name" ;;
            *) verdict "boot-guest-$name" 4 "not in this day's rotation; RING3_BOOT_ALL=1 or RING3_BOOT_GUESTS=$name runs it" ;;
        esac
    done
}
