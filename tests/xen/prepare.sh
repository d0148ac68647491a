#!/usr/bin/env bash
# Puts what the Xen tests boot into DIRECTORY: Debian's amd64 kernel, and an initramfs with a shell and the modules of Xen's and virtio's devices.
# usage: prepare.sh DIRECTORY
set -euo pipefail
out=$1
tests=$(cd "$(dirname "$0")/.." && pwd)
deb=$("$tests/guest/fetch.sh" amd64 "$("$tests/guest/fetch.sh" --kernel amd64 linux-image-amd64 6.12)")
stamp="$deb $(cat "$tests/qemu/init.sh" "$tests/xen/prepare.sh" | cksum)"
[ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ] && exit 0
mkdir -p "$out"
rm -f "$out/stamp"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dpkg-deb -x "$deb" "$work/kernel"
cp "$work"/kernel/boot/vmlinuz-* "$out/vmlinuz"

root=$work/root
dpkg-deb -x "$("$tests/guest/fetch.sh" amd64 busybox-static)" "$root"
mkdir -p "$root"/{bin,sbin,modules,proc,sys,dev,tmp,mnt}
for applet in $("$root/bin/busybox" --list); do
    [ -e "$root/bin/$applet" ] || ln -s /bin/busybox "$root/bin/$applet"
done
rm -rf "$root/usr/share"
install -m 755 "$tests/qemu/init.sh" "$root/init"
for module in xen-blkfront xen-netfront failover net_failover virtio_net virtio_blk; do
    xz -dc "$(find "$work/kernel/lib/modules" -name "$module.ko.xz")" >"$root/modules/$module.ko"
done
(cd "$root" && find . | LC_ALL=C sort | cpio -o -H newc --quiet --owner=0:0 | gzip -1) >"$out/initrd.gz"
chmod -R a+rX "$out"
echo "$stamp" >"$out/stamp"
