#!/usr/bin/env bash
# Builds a root file system for a guest out of Debian packages and packs it as an initramfs.
# usage: root.sh ARCH OUT.cpio.gz INIT [PACKAGE...]      ARCH: amd64 or i386; INIT becomes /init
set -euo pipefail
arch=$1 out=$2 init=$3; shift 3
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ring3/test/$arch
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$cache"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for package in busybox-static "$@"; do
    deb=$("$here/fetch.sh" "$arch" "$package")
    dpkg-deb -x "$deb" "$work"
done
mkdir -p "$work"/{bin,sbin,proc,sys,dev,tmp,etc,root}
busybox=$work/bin/busybox
for applet in $("$busybox" --list 2>/dev/null || busybox --list); do
    [ -e "$work/bin/$applet" ] || [ -e "$work/usr/bin/$applet" ] || ln -s /bin/busybox "$work/bin/$applet"
done
install -m 755 "$init" "$work/init"
install -m 755 "$here/exercise.sh" "$work/exercise.sh"
rm -rf "$work"/usr/share/{doc,man,locale,info,bug,lintian}
(cd "$work" && find . | LC_ALL=C sort | cpio -o -H newc --quiet --owner=0:0 | gzip -1) > "$out.new"
mv "$out.new" "$out"
