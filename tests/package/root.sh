#!/usr/bin/env bash
# Runs a command in another root directory as one of its users, with /proc, a /dev without kvm, and /tmp of its own. Needs root.
# RING3_READ_ONLY=1: the root is read-only. RING3_SCRATCH: the directory that is /tmp, else one in memory, with the mode RING3_TMP_MODE.
# usage: root.sh TREE USER COMMAND...
set -euo pipefail
tree=$(readlink -f "$1") user=$2
shift 2
# shellcheck disable=SC2016 # the inner shell's own
exec unshare --mount --pid --fork --kill-child --propagation private bash -euc '
    tree=$1 user=$2
    shift 2
    mount --rbind "$tree" "$tree"
    mount -t proc proc "$tree/proc"
    mount -t tmpfs -o mode=755 dev "$tree/dev"
    for device in null zero full random urandom tty; do
        : >"$tree/dev/$device"
        mount --bind "/dev/$device" "$tree/dev/$device"
    done
    mkdir "$tree/dev/pts" "$tree/dev/shm"
    mount -t devpts -o ptmxmode=666 pts "$tree/dev/pts"
    ln -s pts/ptmx "$tree/dev/ptmx"
    mount -t tmpfs -o mode=1777 shm "$tree/dev/shm"
    if [ -n "${RING3_SCRATCH:-}" ]; then
        mount --bind "$RING3_SCRATCH" "$tree/tmp"
    else
        mount -t tmpfs -o mode="${RING3_TMP_MODE:-1777}" tmp "$tree/tmp"
    fi
    ln -s /proc/self/fd "$tree/dev/fd"
    if [ -n "${RING3_READ_ONLY:-}" ]; then
        mount -o remount,bind,ro "$tree"
    fi
    home=$(chroot "$tree" getent passwd "$user" | cut -d: -f6)
    # The root of the mounts, not a chroot: in one of those nobody makes user name spaces, which virtiofsd does.
    cd "$tree"
    pivot_root . .
    umount -l .
    exec chroot . setpriv --reuid "$user" --regid "$user" --init-groups --reset-env \
        env -i HOME="$home" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@"
' root.sh "$tree" "$user" "$@"
