# shellcheck shell=bash
# Disks, shares and snapshots of machines that run, by ring3 ctl. Sourced by tests/suites/vmm.sh, after control.sh.

plug_images=$results/vmm-plug-images
rm -rf "$plug_images"
mkdir -p "$plug_images/share"
XDG_RUNTIME_DIR=$(mktemp -d)
export XDG_RUNTIME_DIR

# said PATTERN NAME: waits until the machine of guest_of has said it; fails when it has ended.
said() {
    until grep -qE -- "$1" "$results/vmm-ctl-$2.log"; do
        kill -0 "$machine" 2>/dev/null || return 1
        sleep 0.2
    done
}

# A confined machine gets a disk, which its guest writes and reads, and gives back; then a folder. The host has what was written, and nobody's lock is on it.
truncate -s 16M "$plug_images/disk"
head -c 3M /dev/urandom >"$plug_images/share/file"
rm -f "$results/vmm-plug.in"
mkfifo "$results/vmm-plug.in"
: >"$results/vmm-ctl-plug.log"
"$root/ring3" boot --name plug --cpus 2 --exec '
echo up; until [ -b /dev/vda ]; do usleep 50000; done; cat /sys/block/vda/serial; echo; dd if=/dev/urandom of=/tmp/a bs=1M count=8 2>/dev/null; dd if=/tmp/a of=/dev/vda bs=1M conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M count=8 2>/dev/null | cmp - /tmp/a && echo same; md5sum </tmp/a | cut -d" " -f1 | sed "s/^/sum /"; echo written
while [ -e /sys/block/vda ]; do usleep 50000; done; echo gone
until mount -t virtiofs warm /mnt 2>/dev/null; do usleep 100000; done; md5sum </mnt/file | sed "s/^/share /"; cp /tmp/a /mnt/new; umount /mnt; echo shared; read x; echo end' \
    <"$results/vmm-plug.in" >"$results/vmm-ctl-plug.log" 2>"$results/vmm-ctl-plug.err" &
machine=$!
exec 9>"$results/vmm-plug.in"
status=0
said '^up' plug || status=1
[ "$("$root/ring3" ctl add-disk plug "$plug_images/disk,serial=hot")" = hot ] || status=2
said '^written' plug || status=3
[ "$("$root/ring3" ctl list --json | grep -c '"serial":"hot"')" = 1 ] || status=4
refused vmm-plug-busy 66 'is in use by another machine' ctl add-disk plug "$plug_images/disk"
ctl remove-disk plug hot || status=6
said '^gone' plug || status=7
grep -q '^hot' "$results/vmm-ctl-plug.log" && grep -q '^same' "$results/vmm-ctl-plug.log" && [ "$(sed -n 's/^sum //p' "$results/vmm-ctl-plug.log")" = "$(head -c 8M "$plug_images/disk" | md5sum | cut -d' ' -f1)" ] || status=8
flock -n "$plug_images/disk" true || status=9
verdict vmm-plug-disk $status "step $status; $(tail -n 3 "$results/vmm-ctl-plug.log" "$results/vmm-ctl.out" | tr '\n' '|')"
refused vmm-plug-unknown 66 'has no disk hot' ctl remove-disk plug hot
refused vmm-plug-format 64 'raw images alone' ctl add-disk plug "$plug_images/disk,format=qcow2"
refused vmm-plug-words 64 'add-disk knows ro' ctl add-disk plug "$plug_images/disk,rw"
refused vmm-plug-none 66 'no such file' ctl add-disk plug "$plug_images/none"
refused vmm-plug-folder 66 'no such folder' ctl add-share plug "$plug_images/none"
if [ ! -e "$virtiofsd" ]; then
    verdict vmm-plug-share 4 "needs virtiofsd"
else
    status=0
    ctl add-share plug "$plug_images/share:warm" || status=1
    said '^shared' plug || status=2
    ctl remove-share plug "$plug_images/share" || status=3
    grep -q "^share $(md5sum <"$plug_images/share/file" | cut -d' ' -f1)" "$results/vmm-ctl-plug.log" && cmp -s <(head -c 8M "$plug_images/disk") "$plug_images/share/new" || status=4
    # Its server has ended with it, or does so now.
    until ! pgrep -f "virtiofsd.*$plug_images/share" >/dev/null || ! kill -0 $machine; do sleep 0.2; done
    echo >&9
    wait $machine || status=5
    grep -q '^end' "$results/vmm-ctl-plug.log" || status=6
    verdict vmm-plug-share $status "step $status; $(tail -n 3 "$results/vmm-ctl-plug.log" "$results/vmm-ctl-plug.err" "$results/vmm-ctl.out" | tr '\n' '|')"
fi
exec 9>&-
kill $machine 2>/dev/null
wait $machine 2>/dev/null

# A guest that knows nothing of ejections keeps its disk, and a line says so.
guest_of deaf --append acpiphp.disable=1 --exec 'echo up; while :; do sleep 1; done'
said '^up' deaf
ctl add-disk deaf "$plug_images/disk,ro"
refused vmm-plug-deaf 66 'has not let ring3-0 go' ctl remove-disk deaf "$plug_images/disk"
flock -n "$plug_images/disk" true
[ $? -eq 1 ]
verdict vmm-plug-kept $? "the image is not locked any more"
ctl stop deaf
wait $machine

# A running, confined machine is written to a file, and goes on; a clone goes on where it was. What cannot be leaves no file.
guest_of shot --exec 'i=0; while :; do i=$((i+1)); echo tick $i; usleep 20000; done'
said 'tick 20$' shot
status=0
ctl snapshot shot "$plug_images/snapshot" || status=1
before=$(lines shot)
[ "$(stat -c %a "$plug_images/snapshot")" = 600 ] || status=2
until [ "$(lines shot)" -gt $((before + 5)) ] || ! kill -0 $machine 2>/dev/null; do sleep 0.2; done
first=$(timeout -k 5 60 "$root/ring3" restore "$plug_images/snapshot" 2>"$results/vmm-ctl-snapshot.err" </dev/null | grep -m 1 '^tick [0-9]*$' | cut -d' ' -f2)
[ "${first:-0}" -ge 20 ] && [ "$first" -le $((before + 2)) ] || status=3
# A paused machine stays paused.
ctl pause shot && ctl snapshot shot "$plug_images/snapshot" || status=4
[ "$("$root/ring3" ctl list --json | grep -c '"name":"shot".*"state":"paused"')" = 1 ] || status=5
refused vmm-ctl-snapshot-place 66 'cannot write the snapshot' ctl snapshot shot "$plug_images/none/snapshot"
[ -z "$(find "$plug_images" -name '*.tmp')" ] || status=6
verdict vmm-ctl-snapshot $status "step $status; first tick ${first:-none}, $before ticks before; $(tail -n 3 "$results/vmm-ctl.out" "$results/vmm-ctl-snapshot.err" | tr '\n' '|')"
ctl stop shot
wait $machine

# A guest with a disk is put away and gone on with; the disk has to be what it was. One that it only reads serves clones at once.
truncate -s 4M "$plug_images/away"
printf 'read only\n' >"$plug_images/read"
truncate -s 4M "$plug_images/read"
guest_of away --disk "$plug_images/away" --disk "$plug_images/read,ro" --exec 'echo before >/dev/vda; sync; echo written; n=0; until [ $n -gt 500 ]; do usleep 20000; n=$((n+1)); done; echo 3 >/proc/sys/vm/drop_caches; head -n 1 /dev/vda; head -n 1 /dev/vdb; echo after >/dev/vda; sync'
said '^written' away
status=0
ctl pause away && ctl snapshot away "$plug_images/snapshot" && ctl stop away || status=1
wait $machine
timeout -k 5 120 "$root/ring3" restore "$plug_images/snapshot" >"$results/vmm-snapshot-disk-clone.log" 2>"$results/vmm-snapshot-disk-clone.err" </dev/null || status=2
[ "$(grep -cE '^before$|^read only$' "$results/vmm-snapshot-disk-clone.log")" = 2 ] && [ "$(head -n 1 "$plug_images/away")" = after ] || status=3
verdict vmm-snapshot-put-away $status "step $status; $(tail -n 3 "$results/vmm-ctl.out" "$results/vmm-snapshot-disk-clone.log" "$results/vmm-snapshot-disk-clone.err" | tr '\n' '|')"
refused vmm-snapshot-changed 65 'has been written to since' restore "$plug_images/snapshot"
truncate -s 8M "$plug_images/away"
refused vmm-snapshot-resized 65 'and had 4194304' restore "$plug_images/snapshot"
rm "$plug_images/away"
refused vmm-snapshot-gone 66 'no such file' restore "$plug_images/snapshot"
rm -rf "$plug_images" "$XDG_RUNTIME_DIR" "$results/vmm-plug.in"
XDG_RUNTIME_DIR=$run_directory
[ -n "$XDG_RUNTIME_DIR" ] || unset XDG_RUNTIME_DIR
