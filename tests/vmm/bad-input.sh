# shellcheck shell=bash
# What is not there, is busy, broken or dies, and a guest that floods: one line and a status, or a guest that goes on. Sourced by vmm.sh.

bad=$results/vmm-bad
umount "$bad/readonly" 2>/dev/null
rm -rf "$bad"
mkdir -p "$bad/readonly" "$bad/none" "$bad/share"
truncate -s 4M "$bad/disk"
head -c 1000 /dev/urandom >"$bad/cut"
: >"$bad/empty"

refused vmm-bad-cut 65 'has 1000 bytes, no multiple of 512: a raw image that is cut off' boot --disk "$bad/cut" --exec true
refused vmm-bad-empty 65 'is empty' boot --disk "$bad/empty" --exec true
refused vmm-bad-direct-cut 65 'has 1000 bytes' boot --disk "$bad/cut,direct" --exec true
refused vmm-bad-folder 66 'is neither a file nor a block device' boot --disk "$bad/none,ro" --exec true
refused vmm-bad-words 64 'knows ro, direct, serial=' boot --disk "$bad/disk,cache=none" --exec true
flock "$bad/disk" timeout 60 "$root/ring3" boot --disk "$bad/disk" --exec true >"$results/vmm-bad-busy.log" 2>"$results/vmm-bad-busy.err" </dev/null
[ $? -eq 66 ] && grep -q 'is in use by another machine' "$results/vmm-bad-busy.err"
verdict vmm-bad-busy $? "$(head -n 2 "$results/vmm-bad-busy.err" | tr '\n' '|')"
if [ "$(id -u)" = 0 ] && cp "$bad/disk" "$bad/readonly/" && mount --bind "$bad/readonly" "$bad/readonly" 2>/dev/null && mount -o remount,bind,ro "$bad/readonly" 2>/dev/null; then
    refused vmm-bad-readonly 66 'is on a read-only file system' boot --disk "$bad/readonly/disk" --exec true
    boots vmm-bad-readonly-ro 240 --disk "$bad/readonly/disk,ro,direct" --exec 'cat /sys/block/vda/ro; dd if=/dev/vda bs=1M 2>/dev/null | wc -c; echo x 2>/dev/null >/dev/vda || echo refused'
    expect vmm-bad-readonly-ro $? '^1' '^4194304' '^refused'
    umount "$bad/readonly"
else
    verdict vmm-bad-readonly 4 'cannot mount a file system: needs root'
fi

# missing NAME MESSAGE FOLDER PROGRAM ARGS...: without a helper program ring3 says which, and in which package it is. The program itself: the script needs its own.
missing() {
    local name=$1 message=$2 folder=$3 program=$4 status; shift 4
    mkdir -p "$bad/$name"
    if [ "$(id -u)" != 0 ] || ! mknod "$bad/$name/$program" c 0 0 2>/dev/null; then
        verdict "$name" 4 'needs root, to hide a program'
        return
    fi
    # shellcheck disable=SC2016 # the inner shell's
    timeout 60 unshare -m sh -c 'mount -t overlay -o "lowerdir=$1:$2" none "$2" || exit 99; shift 2; exec "$@"' sh "$bad/$name" "$folder" "$root/artifacts/native/ring3" boot --exec true "$@" \
        >"$results/$name.log" 2>"$results/$name.err" </dev/null
    status=$?
    [ $status -ne 99 ] || { verdict "$name" 4 'the host has no overlay file system'; return; }
    [ $status -eq 66 ] && [ "$(wc -l <"$results/$name.err")" -eq 1 ] && grep -q -- "$message" "$results/$name.err"
    verdict "$name" $? "status $status; $(head -n 2 "$results/$name.err" | tr '\n' '|')"
}
truncate -s 1M "$bad/image"
missing vmm-bad-no-passt 'the program passt is missing (Debian package passt)' /usr/bin passt --net user
missing vmm-bad-no-daemon 'needs the program qemu-storage-daemon (Debian package qemu-system-common)' /usr/bin qemu-storage-daemon --disk "$bad/image,format=qcow2"
[ ! -e "$virtiofsd" ] || missing vmm-bad-no-virtiofsd 'Debian package virtiofsd; before Debian 13 qemu-system-common' "${virtiofsd%/*}" virtiofsd --share "$bad/share"

# Helpers that are killed: errors for the guest, a line each, and a guest that goes on.
if ! { [ -e /usr/bin/passt ] && [ -x /usr/bin/qemu-storage-daemon ] && command -v qemu-img >/dev/null; }; then
    verdict vmm-bad-killed 4 'needs passt, qemu-storage-daemon and qemu-img'
else
    qemu-img create -q -f qcow2 "$bad/qcow2" 16M
    starts vmm-bad-killed 240 --cold --net user --disk "$bad/qcow2,format=qcow2" --exec 'dd if=/dev/vda of=/dev/null bs=1M count=1 2>/dev/null && echo served; read -r go
dd if=/dev/vda of=/dev/null bs=1M skip=2 count=1 iflag=direct 2>&1 | grep -o "Input/output error"; ip link show eth0 | grep -c eth0; echo still here'
    until grep -q '^served' "$results/vmm-bad-killed.log" || ! kill -0 "$machine" 2>/dev/null; do sleep 0.3; done
    program=$(pgrep -P "$machine" | head -n 1)
    refused vmm-bad-image-busy 66 'another process using the image' boot --disk "$bad/qcow2,format=qcow2" --exec true
    pkill -KILL -P "${program:-0}" 'passt|qemu-storage-d'
    echo go >&8
    wait "$machine"
    status=$?
    exec 8>&-
    [ "$(grep -c '^ring3: --disk .* serves no more: qemu-storage-daemon: ' "$results/vmm-bad-killed.err")" = 1 ] && [ "$(grep -c '^ring3: the network has ended' "$results/vmm-bad-killed.err")" = 1 ] || status=${status/#0/1}
    expect vmm-bad-killed $status '^Input/output error' '^still here'
fi

# A guest that asks all its devices as fast as it can: it is paused, goes on and is ended when it is told, and its disk has not changed.
sum=$(md5sum <"$bad/disk")
run_directory=${XDG_RUNTIME_DIR:-}
XDG_RUNTIME_DIR=$(mktemp -d)
export XDG_RUNTIME_DIR
starts vmm-bad-flood 240 --cold --cpus 2 --name flood --vsock "$bad/vsock" --disk "$bad/disk,ro" --disk "$bad/image,direct" --exec '
for i in 1 2 3 4; do (while :; do dd if=/dev/vda of=/dev/null bs=512 iflag=direct 2>/dev/null; done) & (while :; do dd if=/dev/zero of=/dev/vdb bs=512 oflag=direct 2>/dev/null; done) & done
(while :; do cat /dev/hwrng; done >/dev/null 2>&1) & (while :; do echo 3 >/proc/sys/vm/drop_caches; head -c 50000000 /dev/zero | tail -c 1; done >/dev/null 2>&1) & echo flooding; while :; do echo flood; done'
until grep -q '^flood$' "$results/vmm-bad-flood.log" || ! kill -0 "$machine" 2>/dev/null; do sleep 0.3; done
status=0
for command in pause stats resume stats stop; do
    timeout 60 "$root/ring3" ctl $command flood >"$results/vmm-bad-flood.$command" 2>&1 || status=1
done
wait "$machine" 2>/dev/null
exec 8>&-
rm -rf "$XDG_RUNTIME_DIR"
[ -n "$run_directory" ] && XDG_RUNTIME_DIR=$run_directory || unset XDG_RUNTIME_DIR
[ $status -eq 0 ] && [ "$(md5sum <"$bad/disk")" = "$sum" ] && ! grep -q 'NEEDS_RESET\|stopped' "$results/vmm-bad-flood.err"
verdict vmm-bad-flood $? "status $status; $(tail -n 2 "$results/vmm-bad-flood.err" "$results"/vmm-bad-flood.{pause,stats,resume,stop} | tr '\n' '|')"
rm -rf "$bad"
