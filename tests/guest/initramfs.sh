# shellcheck shell=bash
# An initramfs with a shell: sourced by the scripts that build what a suite boots.

# busybox_root DIRECTORY INIT: makes DIRECTORY the root of an initramfs: Debian's static busybox under all its names, mount points, /modules, and INIT as /init.
busybox_root() {
    local root=$1 applet
    dpkg-deb -x "$("$(dirname "${BASH_SOURCE[0]}")/fetch.sh" amd64 busybox-static)" "$root"
    mkdir -p "$root"/{bin,sbin,modules,proc,sys,dev,tmp,mnt}
    for applet in $("$root/bin/busybox" --list); do
        [ -e "$root/bin/$applet" ] || ln -s /bin/busybox "$root/bin/$applet"
    done
    rm -rf "$root/usr/share"
    install -m 755 "$2" "$root/init"
}

# pack_root DIRECTORY FILE: packs it, owned by root.
pack_root() { (cd "$1" && find . | LC_ALL=C sort | cpio -o -H newc --quiet --owner=0:0 | gzip -1) >"$2"; }
