# shellcheck shell=bash
# Debian's kernels as Xen HVM guests, of ring3 boot --xen and of QEMU's emulation of Xen: sourced by ./test, which provides install, verdict, results and root.
# XEN_TESTS=REGEX selects tests by name.
export LC_ALL=C

# shellcheck source=/dev/null
. "$root/tests/guest/lib.sh"
chosen() { [[ $1 =~ ${XEN_TESTS:-.} ]]; }

# xen_boot NAME ABI OPTIONS...
xen_boot() {
    local name=$1 abi=$2; shift 2
    chosen "$name" || return 0
    boots "$name" 300 --cpus 2 "$@" --exec "$(cat "$root/tests/xen/guest.sh")"
    expect "$name" $? 'Hypervisor detected: Xen HVM' "xen:events: Using $abi ABI" '^clock (xen|tsc)' 'callback vector for event delivery is enabled' 'ping-pong 400 400' \
        'processor 1 came back 3 times' 'sums 1$' 'slept on processor 1' 'xen timer rows grow' 'xen ipi rows grow' 'xen event rows grow' 'xen pirq rows grow' 'Grant table initialized' 'end of the exercise'
    ! grep -E 'kernel reports' "$results/$name.log" || verdict "$name-reports" 1 "$(grep -m1 'kernel reports' "$results/$name.log")"
}

xen_boot xen-cloud 2-level --xen
xen_boot xen-cloud-fifo FIFO-based --xen-fifo

work=$results/xen
if ! "$root/tests/xen/prepare.sh" "$work/guest" >"$results/xen-prepare.log" 2>&1; then
    verdict xen-prepare 4 "cannot build the guest: $(tail -n 1 "$results/xen-prepare.log")"
else
    xen_boot xen-amd64 2-level --xen --kernel "$work/guest/vmlinuz"
    xen_boot xen-amd64-fifo FIFO-based --xen-fifo --kernel "$work/guest/vmlinuz"
fi

for option in --xen --xen-fifo; do
    chosen "exercise$option" || continue
    boot_options=($option)
    exercise "exercise$option" amd64 "$("$guest/fetch.sh" --kernel amd64 linux-image-cloud-amd64)" 2 "$guest/exercise.expected" perl-base openssl libssl3 libc6 libcrypt1 zlib1g
done
boot_options=()

if [ -e "$work/guest/stamp" ]; then
    "$root/tests/xen/fetch-qemu.sh" "$work/qemu" >"$results/xen-qemu.log" 2>&1
    status=$?
    if [ $status -ne 0 ]; then
        verdict xen-qemu $status "$(tail -n 1 "$results/xen-qemu.log")"
    else
        # shellcheck source=/dev/null
        . "$root/tests/qemu/lib.sh"
        # shellcheck source=/dev/null
        . "$root/tests/xen/qemu.sh"
        files=$work/qemu/root/usr
        qemu=(env "LD_LIBRARY_PATH=$files/lib/x86_64-linux-gnu" "QEMU_MODULE_DIR=$files/lib/x86_64-linux-gnu/qemu" "$files/bin/qemu-system-x86_64"
            -L "$files/share/qemu" -L "$files/share/seabios" -L "$files/lib/ipxe/qemu")
        irqchip=split xen=0x40011 ring= cpu= as_user=
        "$root/ring3" exec -- true
        work=$work/guest
        for t in 'xen-block xen_block pc' 'xen-net xen_net pc' 'xen-msi xen_msi q35'; do
            # shellcheck disable=SC2086
            ! chosen "qemu-${t%% *}" || QEMU_TESTS=. qemu_test $t
        done
        irqchip= xen= qemu=(qemu-system-x86_64)
    fi
fi
