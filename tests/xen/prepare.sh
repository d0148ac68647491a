#!/usr/bin/env bash
# Puts what the Xen tests boot into DIRECTORY: Debian's amd64 kernel, and an initramfs with a shell and the modules of Xen's and virtio's devices.
# usage: prepare.sh DIRECTORY
set -euo pipefail
out=$1
tests=$(cd "$(dirname "$0")/.." && pwd)
. "$tests/guest/initramfs.sh"
deb=$("$tests/guest/fetch.sh" amd64 "$("$tests/guest/fetch.sh" --kernel amd64 linux-image-amd64 6.12)")
stamp="$deb $(cat "$tests/qemu/init.sh" "$tests/xen/prepare.sh" "$tests/guest/initramfs.sh" | cksum)"
[ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ] && exit 0
mkdir -p "$out"
rm -f "$out/stamp"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dpkg-deb -x "$deb" "$work/kernel"
cp "$work"/kernel/boot/vmlinuz-* "$out/vmlinuz"

root=$work/root
busybox_root "$root" "$tests/qemu/init.sh"
for module in xen-blkfront xen-netfront failover net_failover virtio_net virtio_blk; do
    xz -dc "$(find "$work/kernel/lib/modules" -name "$module.ko.xz")" >"$root/modules/$module.ko"
done
pack_root "$root" "$out/initrd.gz"
chmod -R a+rX "$out"
echo "$stamp" >"$out/stamp"
