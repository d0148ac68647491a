#!/usr/bin/env bash
# Disk, network and shared folder of `ring3 boot`, and of QEMU's TCG with virtio-blk, passt and virtiofsd: the same kernel, initramfs, image, server and programs, one machine after the other.
# ROUNDS (2) machines of each kind; a figure is the best of its kind.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
work=$root/artifacts/bench-vmm guest=$root/tests/guest rounds=${ROUNDS:-2}
image_mib=256 net_mib=256 seconds=2
export LC_ALL=C
mkdir -p "$work"

gcc -O2 -static -Wall -Wextra -Werror -o "$work/io" "$here/io.c"
package=$("$guest/fetch.sh" --kernel amd64 linux-image-cloud-amd64)
deb=$("$guest/fetch.sh" amd64 "$package")
rm -rf "$work/kernel" "$work/tree" "$work/share"
mkdir -p "$work/kernel" "$work/tree/modules" "$work/share/out"
dpkg-deb -x "$deb" "$work/kernel"
kernel=$(echo "$work"/kernel/boot/vmlinuz-*)
dpkg-deb -x "$("$guest/fetch.sh" amd64 busybox-static)" "$work/tree"
n=10
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk failover net_failover virtio_net fuse virtiofs; do
    find "$work/kernel/lib/modules" -name "$module.ko" -exec cp {} "$work/tree/modules/$n-$module.ko" \;
    n=$((n + 1))
done
cp "$work/io" "$work/tree/io"
cp "$root"/benchmarks/guest/{guest.h,int.c,mem.c,sys.c} "$work/share"
cat >"$work/tree/dhcp" <<'DHCP'
#!/bin/busybox sh
[ "$1" = bound ] || exit 0
[ -z "$mtu" ] || /bin/busybox ip link set "$interface" mtu "$mtu"
/bin/busybox ip addr add "$ip/$mask" dev "$interface"
/bin/busybox ip route add "$router" dev "$interface" 2>/dev/null
/bin/busybox ip route add default via "$router" dev "$interface"
echo "$router" >/gateway
DHCP
cat >"$work/tree/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /new
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
for m in /modules/*; do $b insmod $m; done
echo "== begin"
/io read /dev/vda $image_mib
/io random /dev/vda $seconds
$b ip link set eth0 up
$b udhcpc -i eth0 -n -q -t 5 -s /dhcp >/dev/null 2>&1
/io net "$($b cat /gateway)" $port $net_mib
$b mount -t virtiofs -o ro root /new && $b mount -t virtiofs share "/new$share" && $b mount -t devtmpfs dev /new/dev
read -r start rest </proc/uptime
# shellcheck disable=SC2154
$b chroot /new /bin/sh -c "export TMPDIR=$share/out; cd $share && for f in *.c; do gcc -std=gnu11 -O -c -o out/\$f.o \$f || exit 1; done && echo compiled"
read -r end rest </proc/uptime
echo "result compile_s $(echo "$start $end" | $b awk '{ printf "%.2f", $2 - $1 }')"
echo "== end"
$b poweroff -f
INIT
chmod 755 "$work/tree/init" "$work/tree/dhcp"
(cd "$work/tree" && find . | sort | cpio -o -H newc --quiet --owner=0:0 | gzip -1) >"$work/initrd.gz"
[ "$(stat -c %s "$work/disk.img" 2>/dev/null)" = $((image_mib << 20)) ] || head -c ${image_mib}M /dev/urandom >"$work/disk.img"

pids=()
# shellcheck disable=SC2317 # by the trap
leave() { for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; }
trap leave EXIT
exec {served}< <(exec "$work/io" serve 0)
pids+=($!)
read -r port <&"$served"
append="console=ttyS0 quiet panic=-1 no-steal-acc image_mib=$image_mib seconds=$seconds net_mib=$net_mib port=$port share=$work/share"

# machine NAME COMMAND...: boots, and leaves the results in $work/NAME.log. What was read before is in the host's page cache for all of them.
machine() {
    local name=$1; shift
    cat "$work/disk.img" >/dev/null
    rm -rf "$work/share/out"
    mkdir "$work/share/out"
    timeout -k 5 900 "$@" >"$work/$name.log" 2>"$work/$name.err" </dev/null || true
    tr -d '\r' <"$work/$name.log" | grep -q '^== end' && grep -q '^compiled' "$work/$name.log" || { echo "vmm: $name did not come to its end: artifacts/bench-vmm/$name.log, $name.err" >&2; exit 1; }
    tr -d '\r' <"$work/$name.log" | sed -n "s/^result \(.*\)/$name \1/p" >>"$work/results"
}

virtiofsd=/usr/libexec/virtiofsd
[ -e $virtiofsd ] || virtiofsd=/usr/lib/qemu/virtiofsd
sockets=$(mktemp -d)
# share NAME DIR: a server for QEMU, with the options that ring3 gives its own.
share() {
    rm -f "$sockets/$1"
    case $virtiofsd in
        /usr/lib/qemu/*) $virtiofsd --socket-path="$sockets/$1" -o source="$2" -o sandbox=chroot -o log_level=err >"$work/$1.log" 2>&1 & ;;
        *) $virtiofsd --socket-path="$sockets/$1" --shared-dir="$2" --sandbox=chroot --log-level=error >"$work/$1.log" 2>&1 & ;;
    esac
    pids+=($!)
    until [ -e "$sockets/$1" ]; do sleep 0.1; done
}

tcg() {
    share root /
    share share "$work/share"
    # passt gives up root's rights, and needs a place for its socket.
    chmod 777 "$sockets"
    rm -f "$sockets/net"
    passt --foreground --stderr --quiet --one-off --socket "$sockets/net" >"$work/passt.log" 2>&1 &
    pids+=($!)
    until [ -e "$sockets/net" ]; do sleep 0.1; done
    machine tcg qemu-system-x86_64 -accel tcg -cpu max -smp 2 -m 1024 -object memory-backend-memfd,id=ram,size=1024M,share=on -machine pc,memory-backend=ram -display none \
        -serial stdio -monitor none -no-reboot -kernel "$kernel" -initrd "$work/initrd.gz" -append "$append" -nodefaults \
        -drive if=none,id=disk,file="$work/disk.img",format=raw,read-only=on -device virtio-blk-pci,drive=disk,num-queues=2 \
        -netdev stream,id=net,server=off,addr.type=unix,addr.path="$sockets/net" -device virtio-net-pci,netdev=net,host_mtu=65520 \
        -chardev socket,id=root,path="$sockets/root" -device vhost-user-fs-pci,chardev=root,tag=root \
        -chardev socket,id=share,path="$sockets/share" -device vhost-user-fs-pci,chardev=share,tag=share
}

"$root/ring3" --version >/dev/null
awk '$1 > 1.5 { print "vmm: other work on this machine (load " $1 "): the figures are rough" >"/dev/stderr" }' /proc/loadavg
: >"$work/results"
for _ in $(seq "$rounds"); do
    machine ring3 "$root/ring3" boot --cpus 2 --memory 1024M --kernel "$kernel" --initrd "$work/initrd.gz" --append "$append" --disk "$work/disk.img,ro" --net user \
        --share /:root,ro --share "$work/share:share"
    if command -v qemu-system-x86_64 >/dev/null; then
        tcg
    else
        echo 'vmm: qemu-system-x86_64 is not installed: no comparison (Debian package qemu-system-x86)' >&2
    fi
done
rm -rf "$sockets"

awk '
    { key = $1 " " $2; less = $2 ~ /_s$/ && $2 !~ /mb_s/ }
    !(key in best) || (less ? $3 < best[key] : $3 > best[key]) { best[key] = $3 }
    function figure(name, unit, as) {
        if (!(("ring3 " name) in best)) { print "vmm: no figure for " name >"/dev/stderr"; bad = 1; return }
        printf "vmm.%s\t%s\t%s\n", as, best["ring3 " name], unit
        if (("tcg " name) in best) {
            printf "vmm.%s_tcg\t%s\t%s\n", as, best["tcg " name], unit
            printf "vmm.%s_vs_tcg\t%.2f\tx\n", as, best["ring3 " name] / best["tcg " name]
        }
    }
    END {
        figure("read_mb_s", "MB/s", "blk_read_mb_s"); figure("iops", "/s", "blk_iops_4k"); figure("iops_one", "/s", "blk_iops_4k_one")
        figure("receive_mb_s", "MB/s", "net_mb_s"); figure("send_mb_s", "MB/s", "net_send_mb_s"); figure("compile_s", "s", "share_compile_s")
        exit bad
    }' "$work/results"
