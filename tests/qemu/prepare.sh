#!/usr/bin/env bash
# Builds what the QEMU tests boot: Debian's 6.12 cloud kernel (fetched once into the cache, nothing is installed), an initramfs with a shell,
# a disk image with GRUB, kernel and initramfs, a qcow2 disk, and the debugger's target.
# usage: prepare.sh DIRECTORY
set -euo pipefail
out=$1
here=$(cd "$(dirname "$0")" && pwd)
guest=$here/../guest
. "$guest/initramfs.sh"
package=$("$guest/fetch.sh" --kernel amd64 linux-image-cloud-amd64 6.12)
deb=$("$guest/fetch.sh" amd64 "$package")
stamp="$deb $(cat "$here"/init.sh "$here"/tool.c "$here"/target.S "$here"/prepare.sh "$guest"/initramfs.sh | cksum)"
[ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ] && exit 0
mkdir -p "$out"
rm -f "$out/stamp"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

dpkg-deb -x "$deb" "$work/kernel"
cp "$work"/kernel/boot/vmlinuz-* "$out/vmlinuz"

root=$work/root
busybox_root "$root" "$here/init.sh"
gcc -O2 -Wall -Wextra -Werror -static -o "$root/bin/tool" "$here/tool.c"
find "$work/kernel/lib/modules" -name 'failover.ko.xz' -o -name 'net_failover.ko.xz' -o -name 'virtio_*.ko.xz' -o -name 'virtio-rng.ko.xz' | while read -r module; do
    xz -dc "$module" > "$root/modules/$(basename "$module" .xz)"
done
pack_root "$root" "$out/initrd.gz"

gcc -m32 -static -nostdlib -no-pie -Wl,-N,-Ttext=0x100000,--build-id=none -g -o "$out/target" "$here/target.S"

# GRUB's boot.img finds core.img in the second sector and core.img the rest of itself behind that, as written here.
for p in grub-pc-bin grub-common; do dpkg-deb -x "$("$guest/fetch.sh" amd64 $p)" "$work/grub"; done
cat > "$work/grub.cfg" <<'G'
serial --unit=0
terminal_output serial
set root=(hd0,msdos1)
echo "GRUB reads the kernel"
linux /vmlinuz console=ttyS0 panic=-1
initrd /initrd.gz
boot
G
"$work/grub/usr/bin/grub-mkimage" -d "$work/grub/usr/lib/grub/i386-pc" -O i386-pc -p / -c "$work/grub.cfg" -o "$work/core.img" \
    biosdisk part_msdos ext2 linux serial terminal echo boot
mkdir "$work/files"
cp "$out/vmlinuz" "$out/initrd.gz" "$work/files"
mke2fs -q -t ext2 -d "$work/files" "$work/partition" 31M
# One partition from sector 2048 on: status, CHS, type 0x83, CHS, start, length.
{
    head -c 440 "$work/grub/usr/lib/grub/i386-pc/boot.img"
    printf '\0\0\0\0\0\0\200\376\377\377\203\376\377\377\0\010\0\0\0\370\0\0'
    head -c 48 /dev/zero
    printf '\125\252'
    cat "$work/core.img"
} > "$work/disk"
truncate -s 1M "$work/disk"
cat "$work/disk" "$work/partition" > "$out/disk.img"

dpkg-deb -x "$("$guest/fetch.sh" amd64 qemu-utils)" "$work/utils"
"$work/utils/usr/bin/qemu-img" create -q -f qcow2 "$out/empty.qcow2" 16M
chmod -R a+rX "$out"
echo "$stamp" > "$out/stamp"
