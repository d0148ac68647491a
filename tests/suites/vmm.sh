# shellcheck shell=bash
# What people use `ring3 boot` and `ring3 run` for: shares, disk images, commands with the host's root. Sourced by ./test, which provides install, verdict, results and root.

# shellcheck source=/dev/null
. "$root/tests/guest/lib.sh"

# runs NAME ARGS...: runs ./ring3 run and leaves the output in $results/NAME.log.
runs() {
    local name=$1; shift
    timeout -k 5 "${limit:-240}" "$root/ring3" run "$@" >"$results/$name.log" 2>"$results/$name.err"
}

# refused NAME STATUS MESSAGE ARGS...: ring3 says one line and ends with a status.
refused() {
    local name=$1 want=$2 message=$3; shift 3
    timeout 60 "$root/ring3" "$@" >"$results/$name.log" 2>"$results/$name.err" </dev/null
    local status=$?
    [ $status -eq "$want" ] && [ "$(wc -l <"$results/$name.err")" -eq 1 ] && grep -q -- "$message" "$results/$name.err"
    verdict "$name" $? "status $status; $(head -n 2 "$results/$name.err" | tr '\n' '|')"
}

virtiofsd=/usr/libexec/virtiofsd
[ -e $virtiofsd ] || virtiofsd=/usr/lib/qemu/virtiofsd
[ -e $virtiofsd ] || install virtiofsd $virtiofsd >"$results/vmm-install.log" 2>&1 || install qemu-system-common $virtiofsd >>"$results/vmm-install.log" 2>&1
if [ ! -e $virtiofsd ]; then
    verdict vmm-share 4 "$(tail -n 1 "$results/vmm-install.log")"
else
    share=$results/vmm-share
    rm -rf "$share"
    mkdir -p "$share/rw" "$share/ro"
    head -c 8M /dev/urandom >"$share/ro/file"
    sum=$(md5sum <"$share/ro/file" | cut -d' ' -f1)

    # A file is read, copied and renamed; a folder that must not be written is not, whatever the guest does.
    boots vmm-share 240 --share "$share/rw" --share "$share/ro:read,ro" --exec "
cd '$share/ro' && md5sum file; mount -o remount,rw '$share/ro'; touch x; rm file; mv file y; chmod 777 file; echo x >file; ls | sed 's/^/ro /'
cd '$share/rw' && cp ../ro/file a && mkdir d && mv a d/b && ln -s d/b link && echo more >>link && tail -c 5 d/b && rm -f '$share/rw/none'; i=0; while [ \$i -lt 50 ]; do i=\$((i+1)); echo \$i >n\$i; done; ls n* | wc -l | sed 's/^/files /'"
    status=$?
    { [ "$(ls "$share/ro")" = file ] && [ "$(md5sum <"$share/ro/file" | cut -d' ' -f1)" = "$sum" ] && [ "$(head -c 8M "$share/rw/d/b" | md5sum | cut -d' ' -f1)" = "$sum" ]; } || status=${status/#0/1}
    expect vmm-share $status "^$sum" '^ro file' '^more' '^files 50'

    # A server that is killed leaves errors, one line, and a guest that goes on.
    boots vmm-share-killed 240 --share "$share/rw" --exec "cd '$share/rw'; : >ready; while [ -e ready ]; do $(printf 'true; %.0s' {1..20}) done; echo still here" &
    guest_pid=$!
    until [ -e "$share/rw/ready" ] || ! kill -0 $guest_pid 2>/dev/null; do sleep 1; done
    server=$(pgrep -f "virtiofsd.*$share/rw" | head -n 1)
    kill -KILL "${server:-0}"
    wait $guest_pid
    status=$?
    [ "$(grep -c '^ring3: --share .* serves no more: virtiofsd: it has ended' "$results/vmm-share-killed.err")" = 1 ] || status=${status/#0/1}
    expect vmm-share-killed $status '^still here'
    refused vmm-share-none 66 'no such folder' boot --share "$share/none" --exec true
    refused vmm-share-file 66 'is no folder' boot --share "$share/ro/file" --exec true
    refused vmm-share-words 64 'share knows ro' boot --share "$share,rw" --exec true

    # ring3 run: the guest's kernel, this user, this directory, this status; nothing that it changes stays, but where it may.
    runs vmm-run -- sh -c 'uname -r; id -u; pwd; exit 7' </dev/null
    status=$?
    [ $status -eq 7 ] && [ "$(sed -n 2p "$results/vmm-run.log")" = "$(id -u)" ] && [ "$(sed -n 3p "$results/vmm-run.log")" = "$PWD" ] && grep -q cloud-amd64 "$results/vmm-run.log"
    verdict vmm-run $? "status $status; $(cat "$results/vmm-run.log" "$results/vmm-run.err" | head -n 5 | tr '\n' '|')"

    # An ordinary user of two groups, from a home: virtiofsd has its rights, and may change neither its root nor its groups. The program, because the script builds.
    home=$results/vmm-home
    # as_user NAME ARGS...: ring3 run as that user, from that home.
    as_user() {
        local name=$1; shift
        (cd "$home" && HOME=$home XDG_CACHE_HOME=$home/cache timeout -k 5 240 setpriv --reuid 65534 --regid 65534 --groups 65534,24 "$root/artifacts/native/ring3" run "$@") \
            </dev/null >"$results/$name.log" 2>"$results/$name.err"
    }
    rm -rf "$home"
    if [ "$(id -u)" != 0 ]; then
        verdict vmm-run-user 4 'is the user that the other tests run as'
    elif ! setpriv --reuid 65534 --regid 65534 --clear-groups test -x "$root/artifacts/native/ring3"; then
        verdict vmm-run-user 4 'other users may not read this folder'
    else
        mkdir -p "$home/cache/ring3"
        for part in "${XDG_CACHE_HOME:-$HOME/.cache}"/ring3/*; do
            [ "${part##*/}" = warm ] || [ "${part##*/}" = test ] || cp -r "$part" "$home/cache/ring3/"
        done
        chown -R 65534:65534 "$home"
        as_user vmm-run-user --cold --rw "$home" -- sh -c 'id -u; id -G; pwd; id -un >written; exit 7'
        status=$?
        [ $status -eq 7 ] && [ "$(tr '\n' '|' <"$results/vmm-run-user.log")" = "65534|65534 24|$home|" ] && [ "$(stat -c %u "$home/written")" = 65534 ]
        verdict vmm-run-user $? "status $status; $(cat "$results/vmm-run-user.log" "$results/vmm-run-user.err" | head -n 5 | tr '\n' '|')"

        # The same with a kernel of another package than the default's, unpacked but not installed: its name, this user, this directory, this status.
        if ! deb=$("$guest/fetch.sh" amd64 "$("$guest/fetch.sh" --kernel amd64 linux-image-amd64)" 2>"$results/vmm-run-kernel.err"); then
            verdict vmm-run-kernel 4 "$(tail -n 1 "$results/vmm-run-kernel.err")"
        else
            mkdir "$home/kernel"
            dpkg-deb -x "$deb" "$home/kernel"
            chown -R 65534:65534 "$home/kernel"
            image=$(echo "$home"/kernel/boot/vmlinuz-*)
            as_user vmm-run-kernel --kernel "$image" -- sh -c 'uname -r; id -u; pwd; exit 7'
            status=$?
            [ $status -eq 7 ] && [ "$(tr '\n' '|' <"$results/vmm-run-kernel.log")" = "${image#*vmlinuz-}|65534|$home|" ] && ! grep -q cloud "$results/vmm-run-kernel.log"
            verdict vmm-run-kernel $? "status $status; $(cat "$results/vmm-run-kernel.log" "$results/vmm-run-kernel.err" | head -n 5 | tr '\n' '|')"
        fi
        rm -rf "$home"
    fi

    # Streams are what they are here: bytes of every kind, in order, each on its own; arguments arrive as they were.
    head -c 3M /dev/urandom >"$results/vmm-run.in"
    # shellcheck disable=SC2016
    runs vmm-run-streams --rw "$share/rw" -- sh -c 'cat; printf "%s|" "$@" >&2; echo mine >"$0/mine"; echo lost >/etc/ring3-lost && cat /etc/ring3-lost >&2' "$share/rw" "it's" 'a  b' '' '$HOME' <"$results/vmm-run.in"
    status=$?
    [ $status -eq 0 ] && cmp -s "$results/vmm-run.in" "$results/vmm-run-streams.log" && [ "$(cat "$results/vmm-run-streams.err")" = "it's|a  b||\$HOME|lost" ] && [ "$(cat "$share/rw/mine")" = mine ] && [ ! -e /etc/ring3-lost ]
    verdict vmm-run-streams $? "status $status; $(head -n 3 "$results/vmm-run-streams.err" | tr '\n' '|')"

    # On a terminal the command has one, of the same size; Ctrl-C is the command's.
    if command -v script >/dev/null; then
        # shellcheck disable=SC2016
        { until grep -q READY "$results/vmm-run-tty.log" 2>/dev/null || ! kill -0 $$; do sleep 1; done; printf '\003'; } |
            timeout -k 5 240 script -qefc "stty rows 33 cols 77; exec '$root/ring3' run -- sh -c 'trap \"echo; echo interrupted; exit 9\" INT; tty; stty size; echo READ\"Y\"; while :; do sleep 1; done'" /dev/null >"$results/vmm-run-tty.log" 2>&1
        status=${PIPESTATUS[1]}
        [ "$status" -eq 9 ] && grep -q '33 77' "$results/vmm-run-tty.log" && grep -q interrupted "$results/vmm-run-tty.log"
        verdict vmm-run-tty $? "status $status; $(tail -n 5 "$results/vmm-run-tty.log" | tr '\n\r' '| ')"
    else
        verdict vmm-run-tty 4 "needs script (Debian package bsdutils)"
    fi
    refused vmm-run-whole 64 'whole host' run --rw / -- true
    rm -rf "$share"
fi

# Streams between guest and host, both ways, with checksums; VSOCK_MIB makes them longer.
if ! install python3 python3 >"$results/vmm-vsock.install" 2>&1 || ! [ -x /usr/bin/python3 ]; then
    verdict vmm-vsock 4 "needs Debian's python3"
elif [ ! -e $virtiofsd ]; then
    verdict vmm-vsock 4 "needs virtiofsd"
else
    socket=$results/vmm-vsock bytes=$((${VSOCK_MIB:-64} << 20))
    rm -f "$socket" "$socket"_*
    /usr/bin/python3 "$guest/vsock.py" host "$socket" $bytes >"$results/vmm-vsock.host" 2>&1 &
    host=$!
    until [ -e "${socket}_5000" ] || ! kill -0 $host 2>/dev/null; do sleep 1; done
    limit=$((240 + ${VSOCK_MIB:-64})) runs vmm-vsock --vsock "$socket" -- /usr/bin/python3 "$guest/vsock.py" guest $bytes </dev/null
    status=$?
    kill $host 2>/dev/null
    wait $host
    [ ! -e "$socket" ] || status=${status/#0/1}
    cat "$results/vmm-vsock.host" >>"$results/vmm-vsock.log"
    expect vmm-vsock $status '^guest: same' '^host: same' '^host: echoed'
    rm -f "$socket" "$socket"_*
    : >"$results/vmm-vsock-file"
    printf x >>"$results/vmm-vsock-file"
    refused vmm-vsock-taken 66 'is taken' boot --vsock "$results/vmm-vsock-file" --exec true
    refused vmm-vsock-cid 64 'knows cid=N' boot --vsock "$socket,cid=2" --exec true
fi

# Memory that the guest has freed goes back to the host, and comes back when it is used again.
rm -f "$results/vmm-balloon.in"
mkfifo "$results/vmm-balloon.in"
timeout -k 5 240 "$root/ring3" boot --memory 768M --exec 'mount -t tmpfs -o size=600M none /mnt; dd if=/dev/zero of=/mnt/a bs=1M count=400 2>/dev/null; echo full; read x; rm /mnt/a; echo freed; read x
dd if=/dev/urandom of=/mnt/b bs=1M count=40 2>/dev/null; md5sum </mnt/b >/tmp/1; echo 3 >/proc/sys/vm/drop_caches; md5sum </mnt/b | cmp - /tmp/1 && echo same' <"$results/vmm-balloon.in" >"$results/vmm-balloon.log" 2>"$results/vmm-balloon.err" &
machine=$!
exec 9>"$results/vmm-balloon.in"
pid() { pgrep -P $machine | head -n 1; }
resident() { sed -n 's/^VmRSS:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$(pid)/status" 2>/dev/null; }
until grep -q full "$results/vmm-balloon.log" || ! kill -0 $machine 2>/dev/null; do sleep 1; done
before=$(resident)
echo >&9
until [ "$(resident || echo 0)" -lt $((${before:-0} - 300000)) ] 2>/dev/null || ! kill -0 $machine 2>/dev/null; do sleep 1; done
after=$(resident)
echo >&9
exec 9>&-
wait $machine
status=$?
[ $status -eq 0 ] && [ "${after:-0}" -gt 0 ] && grep -q '^same' "$results/vmm-balloon.log"
verdict vmm-balloon $? "status $status; resident ${before:-?} kB, then ${after:-?} kB"
rm -f "$results/vmm-balloon.in"

# Standard input of --exec, to its end.
seq 1 200000 >"$results/vmm-exec.in"
timeout -k 5 240 "$root/ring3" boot --exec 'md5sum; exit 3' <"$results/vmm-exec.in" >"$results/vmm-exec-input.log" 2>"$results/vmm-exec-input.err"
status=$?
[ $status -eq 3 ] && [ "$(cut -d' ' -f1 "$results/vmm-exec-input.log")" = "$(md5sum <"$results/vmm-exec.in" | cut -d' ' -f1)" ]
verdict vmm-exec-input $? "status $status; $(head -n 3 "$results/vmm-exec-input.log" "$results/vmm-exec-input.err" | tr '\n' '|')"

# A qcow2 image: written, flushed, read again, discarded; sound afterwards, and with what was written.
if ! install qemu-utils qemu-img >"$results/vmm-qcow2.install" 2>&1 || ! install qemu-system-common qemu-storage-daemon >>"$results/vmm-qcow2.install" 2>&1; then
    verdict vmm-qcow2 4 "$(tail -n 1 "$results/vmm-qcow2.install")"
else
    image=$results/vmm.qcow2
    rm -f "$image"
    qemu-img create -q -f qcow2 "$image" 64M
    boots vmm-qcow2 240 --cpus 2 --disk "$image,format=qcow2,serial=image" --exec '
cat /sys/block/vda/serial; echo; dd if=/dev/urandom of=/tmp/a bs=1M count=20 2>/dev/null; dd if=/tmp/a of=/dev/vda bs=1M seek=4 conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip=4 count=20 2>/dev/null | cmp - /tmp/a && echo same; md5sum </tmp/a
blkdiscard -o 4194304 -l 1048576 /dev/vda && dd if=/dev/vda bs=1M skip=4 count=1 2>/dev/null | tr -d "\\000" | wc -c | sed "s/^/nonzero /"; sync'
    status=$?
    qemu-img check -q "$image" >"$results/vmm-qcow2.check" 2>&1 || status=${status/#0/1}
    expect vmm-qcow2 $status '^image' '^same' '^nonzero 0'
    refused vmm-qcow2-bad 66 'not in qcow2 format' boot --disk "$root/README.md,format=qcow2" --exec true
    refused vmm-qcow2-format 64 'knows format=raw' boot --disk "$image,format=none" --exec true
    rm -f "$image"
fi

# shellcheck source=/dev/null
. "$root/tests/vmm/sandbox.sh"
# shellcheck source=/dev/null
. "$root/tests/vmm/control.sh"
# shellcheck source=/dev/null
. "$root/tests/vmm/hotplug.sh"
# shellcheck source=/dev/null
. "$root/tests/vmm/library.sh"
# shellcheck source=/dev/null
. "$root/tests/vmm/bad-input.sh"
# shellcheck source=/dev/null
. "$root/tests/suites/vmm-devices.sh"
# shellcheck source=/dev/null
. "$root/tests/suites/vmm-snapshots.sh"
