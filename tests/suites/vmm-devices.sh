# shellcheck shell=bash
# Real work on the devices of `ring3 boot`: a raw disk, a network with a package mirror behind it, a clone and a compile in a shared folder, a disk with systemd. Sourced by vmm.sh.

# A raw image: written, flushed, read again, discarded; the host's file has what was written, and the space of what was discarded is its again.
image=$results/vmm.raw
rm -f "$image"
truncate -s 64M "$image"
boots vmm-raw 240 --cpus 2 --disk "$image,serial=raw" --exec '
cat /sys/block/vda/serial; echo; dd if=/dev/urandom of=/tmp/a bs=1M count=20 2>/dev/null; dd if=/tmp/a of=/dev/vda bs=1M seek=4 conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip=4 count=20 2>/dev/null | cmp - /tmp/a && echo same
dd if=/dev/vda bs=4k skip=1024 count=5120 iflag=direct 2>/dev/null | cmp - /tmp/a && echo direct
blkdiscard -o 4194304 -l 10485760 /dev/vda && dd if=/dev/vda bs=1M skip=4 count=10 2>/dev/null | tr -d "\\000" | wc -c | sed "s/^/nonzero /"
dd if=/tmp/a bs=1M skip=10 2>/dev/null | md5sum | cut -d" " -f1 | sed "s/^/kept /"'
status=$?
kept=$(dd if="$image" bs=1M skip=14 count=10 2>/dev/null | md5sum | cut -d' ' -f1)
[ "$(sed -n 's/^kept //p' "$results/vmm-raw.log")" = "$kept" ] && [ "$(stat -c %b "$image")" -lt $((12 << 11)) ] || status=${status/#0/1}
expect vmm-raw $status '^raw' '^same' '^direct' '^nonzero 0'
rm -f "$image"

# Past the host's page cache: what is written through whole and broken blocks, from memory of any alignment, is what is read, and is in the file when the guest has flushed. The program's descriptor
# says that it is so, and the host has not one page of the image.
# vmm_direct NAME FORMAT
vmm_direct() {
    local name=$1 format=$2 image=$results/$1.image status flags pid
    rm -f "$image" "$results/$name.in"
    if [ "$format" = raw ]; then truncate -s 64M "$image"; else qemu-img create -q -f "$format" "$image" 64M || { verdict "$name" 4 'needs qemu-img'; return; }; fi
    mkfifo "$results/$name.in"
    # A command whose input does not end stays until the host has looked.
    timeout -k 5 240 "$root/ring3" boot --cold --cpus 2 --disk "$image,direct,format=$format" --exec '
dd if=/dev/urandom of=/tmp/a bs=1M count=20 2>/dev/null; dd if=/tmp/a of=/dev/vda bs=1M seek=4 conv=fsync 2>/dev/null
echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip=4 count=20 2>/dev/null | cmp - /tmp/a && echo same
dd if=/tmp/a of=/dev/vda bs=512 seek=100001 count=3 oflag=direct conv=notrunc 2>/dev/null && dd if=/dev/vda bs=512 skip=100001 count=3 iflag=direct 2>/dev/null | md5sum | cut -d" " -f1 | sed "s/^/sectors /"
dd if=/tmp/a bs=512 count=3 2>/dev/null | md5sum | cut -d" " -f1 | sed "s/^/source /"
md5sum </tmp/a | cut -d" " -f1 | sed "s/^/kept /"; sync; echo written; cat' <"$results/$name.in" >"$results/$name.log" 2>"$results/$name.err" &
    machine=$!
    exec 9>"$results/$name.in"
    until grep -q '^written' "$results/$name.log" || ! kill -0 $machine 2>/dev/null; do sleep 0.3; done
    for pid in $(pgrep -P $machine) $(pgrep -f "qemu-storage-daemon.*$image"); do
        for fd in "/proc/$pid/fd/"*; do
            [ "$(readlink "$fd")" = "$image" ] && flags=$(sed -n 's/^flags:[^0-9]*//p' "/proc/$pid/fdinfo/${fd##*/}")
        done
    done 2>/dev/null
    exec 9>&-
    wait $machine
    status=$?
    # O_DIRECT is 040000.
    (( (0${flags:-0} & 040000) != 0 )) || { grep -q 'has no direct access' "$results/$name.err" || status=${status/#0/2}; }
    [ "$(sed -n 's/^sectors //p' "$results/$name.log")" = "$(sed -n 's/^source //p' "$results/$name.log")" ] || status=${status/#0/3}
    # The daemon is ended when the machine has gone, and has the image's lock so long.
    while pgrep -f "qemu-storage-daemon.*$image" >/dev/null; do sleep 0.2; done
    [ "$format" = raw ] || { qemu-img convert -f "$format" -O raw "$image" "$image.raw" && mv "$image.raw" "$image"; } || status=${status/#0/4}
    [ "$(dd if="$image" bs=1M skip=4 count=20 2>/dev/null | md5sum | cut -d' ' -f1)" = "$(sed -n 's/^kept //p' "$results/$name.log")" ] || status=${status/#0/5}
    expect "$name" $status '^same' '^written'
    rm -f "$image" "$results/$name.in"
}
vmm_direct vmm-direct raw
[ ! -x /usr/bin/qemu-storage-daemon ] || ! command -v qemu-img >/dev/null || vmm_direct vmm-direct-qcow2 qcow2

# A file system that has no such access: one line, and the disk works. ramfs is one on every kernel.
if [ "$(id -u)" != 0 ] || ! mkdir -p "$results/vmm-ramfs" || ! mount -t ramfs none "$results/vmm-ramfs" 2>"$results/vmm-direct-none.err"; then
    verdict vmm-direct-none 4 "cannot mount a ramfs: needs root"
else
    truncate -s 8M "$results/vmm-ramfs/image"
    boots vmm-direct-none 240 --disk "$results/vmm-ramfs/image,direct" --exec 'echo there | dd of=/dev/vda conv=fsync 2>/dev/null; head -c 5 /dev/vda; echo'
    status=$?
    [ "$(cat "$results/vmm-direct-none.err")" = "ring3: --disk $results/vmm-ramfs/image: its file system has no direct access (O_DIRECT); it goes through the page cache" ] || status=${status/#0/1}
    [ "$(head -c 5 "$results/vmm-ramfs/image")" = there ] || status=${status/#0/1}
    expect vmm-direct-none $status '^there'
    umount "$results/vmm-ramfs"
fi

# A host that has no room left is an I/O error of the guest, which goes on, and so does the disk when there is room again.
if [ "$(id -u)" != 0 ] || ! mkdir -p "$results/vmm-full" || ! mount -t tmpfs -o size=24M none "$results/vmm-full" 2>"$results/vmm-full.err"; then
    verdict vmm-disk-full 4 "cannot mount a small file system: needs root"
else
    truncate -s 64M "$results/vmm-full/image"
    boots vmm-disk-full 240 --disk "$results/vmm-full/image" --exec '
dd if=/dev/zero of=/dev/vda bs=1M count=40 conv=fsync 2>&1 | grep -o "Input/output error\|No space left on device" | head -n 1
blkdiscard -o 0 -l 33554432 /dev/vda; dd if=/dev/urandom of=/tmp/a bs=1M count=8 2>/dev/null; dd if=/tmp/a of=/dev/vda bs=1M conv=fsync 2>/dev/null && echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/vda bs=1M count=8 2>/dev/null | cmp - /tmp/a && echo same'
    expect vmm-disk-full $? '^Input/output error' '^same'
    umount "$results/vmm-full"
fi

# vmm_net: a package from a mirror on the host's loopback; files from and to the host; and a server in the guest, behind a forward, that is read and written to.
vmm_net() {
    local folder=$results/vmm-net-files mirror served sum server machine status i
    for tool in passt:passt curl:curl dpkg-dev:dpkg-scanpackages; do
        install "${tool%:*}" "${tool#*:}" >"$results/vmm-net.install" 2>&1 || { verdict vmm-net 4 "$(tail -n 1 "$results/vmm-net.install")"; return; }
    done
    [ -x /usr/bin/python3 ] && [ -e "$virtiofsd" ] || { verdict vmm-net 4 "needs Debian's python3 and virtiofsd"; return; }
    [ "$(id -u)" = 0 ] || { verdict vmm-net 4 "needs root: the guest installs a package"; return; }
    rm -rf "$folder"
    mkdir -p "$folder/mirror" "$folder/package/DEBIAN" "$folder/package/usr/bin"
    printf 'Package: ring3-greeting\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: greets\n' >"$folder/package/DEBIAN/control"
    printf '#!/bin/sh\necho greetings from a package\n' >"$folder/package/usr/bin/ring3-greeting"
    chmod 755 "$folder/package/usr/bin/ring3-greeting"
    dpkg-deb --root-owner-group -Zgzip -b "$folder/package" "$folder/mirror/ring3-greeting_1_all.deb" >"$results/vmm-net.install" 2>&1
    (cd "$folder/mirror" && dpkg-scanpackages . >Packages 2>/dev/null)
    head -c 8M /dev/urandom >"$folder/large"
    echo small >"$folder/small"
    sum=$(md5sum <"$folder/large" | cut -d' ' -f1)
    rm -f "$results/vmm-net.in" "$results/vmm-net.port"
    mkfifo "$results/vmm-net.in"
    (cd "$folder" && exec /usr/bin/python3 "$guest/web.py" 127.0.0.1 0 >"$results/vmm-net.port") &
    server=$!
    until [ -s "$results/vmm-net.port" ] || ! kill -0 $server 2>/dev/null; do sleep 0.2; done
    mirror=$(cat "$results/vmm-net.port")
    served=$(/usr/bin/python3 "$guest/web.py" free)
    runs vmm-net --net "user,forward=$served:8000" -- sh "$guest/net.sh" "$mirror" 8000 "$folder" <"$results/vmm-net.in" &
    machine=$!
    exec 9>"$results/vmm-net.in"
    until grep -q '^serving' "$results/vmm-net.log" 2>/dev/null || ! kill -0 $machine 2>/dev/null; do sleep 0.5; done
    for i in 1 2; do
        echo "got $(curl -sS --noproxy '*' --max-time 100 "http://127.0.0.1:$served/large" 2>&1 | md5sum | cut -d' ' -f1)"
        echo "put $(curl -sS --noproxy '*' --max-time 100 -T "$folder/large" "http://127.0.0.1:$served/large" 2>&1)"
    done >"$results/vmm-net.forward"
    # Its input's end is what ends the guest's command.
    exec 9>&-
    wait $machine
    status=$?
    kill $server
    wait $server 2>/dev/null
    cat "$results/vmm-net.forward" >>"$results/vmm-net.log"
    [ ! -e /usr/bin/ring3-greeting ] || status=${status/#0/1}
    expect vmm-net $status '^greetings from a package' "^fetched $sum" "^sent $sum" "^got $sum" "^put $sum"
    rm -rf "$folder" "$results/vmm-net.in"
}
vmm_net

# vmm_git: a clone and a compile in a shared folder.
vmm_git() {
    local folder=$results/vmm-git-files status
    for tool in git:git make:make gcc:gcc; do
        install "${tool%:*}" "${tool#*:}" >"$results/vmm-git.install" 2>&1 || { verdict vmm-git 4 "$(tail -n 1 "$results/vmm-git.install")"; return; }
    done
    [ -e "$virtiofsd" ] || { verdict vmm-git 4 "needs virtiofsd"; return; }
    rm -rf "$folder"
    mkdir -p "$folder/origin" "$folder/shared"
    (
        cd "$folder/origin" || exit 1
        export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        git init -q .
        for n in 1 2 3; do
            printf 'int f%s(int x);\nint f%s(int x) { return x * %s; }\n' $n $n $n >f$n.c
            head -c 200K /dev/urandom >data$n
            git add . && git commit -qm "step $n" || exit 1
        done
        printf '#include <stdio.h>\nint f1(int), f2(int), f3(int);\nint main(void) { printf("product %%d\\n", f1(f2(f3(7)))); return 0; }\n' >main.c
        printf 'all: f1.o f2.o f3.o main.o\n\t$(CC) -o $@ $^\n' >Makefile
        git add . && git commit -qm main
    ) >"$results/vmm-git.install" 2>&1
    runs vmm-git --rw "$folder/shared" -- sh -c "cd '$folder/shared' && git -c safe.directory='*' clone -q '$folder/origin' clone && cd clone && make -s -j2 CC=gcc TMPDIR=/tmp && ./all && git -c safe.directory='*' status --porcelain | wc -l | sed 's/^/new /' &&
        git -c safe.directory='*' fsck --strict && echo sound" </dev/null
    status=$?
    # What the host finds is what the guest has made.
    [ "$("$folder/shared/clone/all" 2>&1)" = 'product 42' ] && cmp -s "$folder/origin/data3" "$folder/shared/clone/data3" || status=${status/#0/1}
    expect vmm-git $status '^product 42' '^new 5' '^sound'
    rm -rf "$folder"
}
vmm_git

# A TAP interface whose other side is a name space of the host: an address is pinged, and a file goes each way.
vmm_tap() {
    local space=ring3-tap-$$ folder=$results/vmm-tap-files status server sum
    [ "$(id -u)" = 0 ] && [ -c /dev/net/tun ] || { verdict vmm-tap 4 'needs root and /dev/net/tun'; return; }
    command -v ip >/dev/null && [ -x /usr/bin/python3 ] || { verdict vmm-tap 4 'needs ip (Debian package iproute2) and python3'; return; }
    if ! { ip netns add "$space" && ip -n "$space" tuntap add dev tap0 mode tap && ip -n "$space" address add 10.77.0.1/24 dev tap0 && ip -n "$space" link set tap0 up &&
        ip -n "$space" link set lo up; } 2>"$results/vmm-tap.err"; then
        ip netns delete "$space" 2>/dev/null
        verdict vmm-tap 4 "cannot make a TAP interface in a name space: $(tail -n 1 "$results/vmm-tap.err")"
        return
    fi
    rm -rf "$folder" "$results/vmm-tap.host"
    mkdir "$folder"
    head -c 4M /dev/urandom >"$folder/large"
    sum=$(md5sum <"$folder/large" | cut -d' ' -f1)
    (cd "$folder" && exec ip netns exec "$space" /usr/bin/python3 "$guest/web.py" 10.77.0.1 8077 >"$results/vmm-tap.port") &
    server=$!
    until [ -s "$results/vmm-tap.port" ] || ! kill -0 $server 2>/dev/null; do sleep 0.2; done
    # The default guest's busybox is server and client.
    timeout -k 5 240 ip netns exec "$space" "$root/ring3" boot --net tap=tap0 --exec '
ip address add 10.77.0.2/24 dev eth0; ip link set eth0 up; ping -c 3 -w 30 10.77.0.1 >/dev/null && echo pinged
wget -q -O /tmp/large http://10.77.0.1:8077/large; md5sum </tmp/large | cut -d" " -f1 | sed "s/^/fetched /"
nc -l -p 9 </tmp/large >/dev/null & until grep -q ":0009 [^ ]* 0A" /proc/net/tcp /proc/net/tcp6 2>/dev/null; do sleep 0.1; done; echo listening; wait; echo sent' >"$results/vmm-tap.log" 2>"$results/vmm-tap.err" </dev/null &
    machine=$!
    until grep -q '^listening' "$results/vmm-tap.log" || ! kill -0 $machine 2>/dev/null; do sleep 0.3; done
    ip netns exec "$space" "${XDG_CACHE_HOME:-$HOME/.cache}/ring3/busybox-static/busybox" ping -c 3 -w 30 10.77.0.2 >>"$results/vmm-tap.err" 2>&1 && echo 'pinged the guest' >>"$results/vmm-tap.host"
    ip netns exec "$space" /usr/bin/python3 -c 'import socket,hashlib
s=socket.create_connection(("10.77.0.2",9),60); h=hashlib.md5()
while d:=s.recv(65536): h.update(d)
print("got",h.hexdigest())' >>"$results/vmm-tap.host" 2>>"$results/vmm-tap.err"
    wait $machine
    status=$?
    kill $server
    wait $server 2>/dev/null
    ip netns delete "$space"
    cat "$results/vmm-tap.host" >>"$results/vmm-tap.log"
    expect vmm-tap $status '^pinged$' "^fetched $sum" '^sent' '^pinged the guest' "^got $sum"
    rm -rf "$folder" "$results/vmm-tap.host"
}
vmm_tap

# debian_image FILE: a disk with Debian of this release and systemd, whose root has no password; made once, by root, from the mirror that this machine's apt uses.
debian_image() {
    local mirror suite tree=$1.tree
    [ ! -e "$1" ] || return 0
    [ "$(id -u)" = 0 ] || { echo "needs root to make a Debian root" >&2; return 1; }
    install mmdebstrap mmdebstrap && install e2fsprogs mke2fs || return 1
    # shellcheck disable=SC1091
    suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
    # shellcheck disable=SC2016 # apt's variable
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep '/debian/$' | head -n 1)
    rm -rf "$tree"
    # shellcheck disable=SC2016 # mmdebstrap's parameter
    mmdebstrap --quiet --variant=minbase --include=systemd-sysv,udev --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --customize-hook='chroot "$1" passwd -qd root' --customize-hook='echo disk >"$1/etc/hostname"' "$suite" "$tree" "${mirror:-http://deb.debian.org/debian/}" >&2 || { echo "mmdebstrap makes no root here" >&2; return 1; }
    mke2fs -q -t ext4 -d "$tree" "$1.new" 600M >&2 && mv "$1.new" "$1"
    rm -rf "$tree"
}

# session_wait NAME PATTERN: until the console of the machine that was started has a line like it, or the machine has ended.
session_wait() {
    until printed "$results/$1.log" "$2"; do
        kill -0 "$machine" 2>/dev/null || return 1
        sleep 0.3
    done
}

# vmm_root: a disk with systemd boots to its login. What was synced is there when ring3 was killed, and the file system sound; it shuts down cleanly.
vmm_root() {
    local base=$root/artifacts/test-debian.img disk=$results/vmm-root.img machine status options=(--cpus 2 --append 'quiet root=/dev/vda')
    # It takes two minutes, and a mirror: the run of everything leaves it to those who ask.
    if [ -n "${all:-}" ] && [ -z "${RING3_VMM_ALL:-}" ]; then
        verdict vmm-root 4 "makes a Debian system from a mirror: './test vmm', './test nightly' or RING3_VMM_ALL=1"
        return
    fi
    if ! debian_image "$base" 2>"$results/vmm-root.install"; then
        verdict vmm-root 4 "$(tail -n 1 "$results/vmm-root.install")"
        return
    fi
    cp --sparse=always "$base" "$disk"

    starts vmm-root-killed 400 "${options[@]}" --disk "$disk"
    session_wait vmm-root-killed 'login: $' && echo root >&8 && session_wait vmm-root-killed 'root@disk:~# $' &&
        echo 'head -c 3000000 /dev/urandom >kept; md5sum <kept >sum; sync; echo syn''ced; while :; do head -c 100000 /dev/urandom >>lost; done' >&8 && session_wait vmm-root-killed '^synced'
    status=$?
    # timeout's child is the machine: it has no moment to do anything in.
    kill -KILL "$(pgrep -P "$machine" | head -n 1)"
    wait "$machine" 2>/dev/null
    exec 8>&-
    [ $status -eq 0 ] && e2fsck -fp "$disk" >"$results/vmm-root.fsck" 2>&1
    status=$?
    # 1: what the journal had was done.
    [ $status -le 1 ] && e2fsck -fn "$disk" >>"$results/vmm-root.fsck" 2>&1
    verdict vmm-root-killed $? "login, or fsck with status $status; $(tail -n 2 "$results/vmm-root-killed.log" "$results/vmm-root-killed.err" "$results/vmm-root.fsck" | tr '\n\r' '| ')"

    starts vmm-root 400 "${options[@]}" --disk "$disk"
    session_wait vmm-root 'login: $' && echo root >&8 && session_wait vmm-root 'root@disk:~# $' &&
        echo 'md5sum <kept | cmp - sum && echo sa''me; systemctl is-system-running --wait; cat /proc/1/comm; systemctl poweroff' >&8
    wait "$machine"
    status=$?
    exec 8>&-
    # The shell's escapes stand before what it prints.
    tr '\r\033' '\n\n' <"$results/vmm-root.log" >"$results/vmm-root.txt" && mv "$results/vmm-root.txt" "$results/vmm-root.log"
    e2fsck -fn "$disk" >"$results/vmm-root.fsck" 2>&1 || status=${status/#0/1}
    expect vmm-root $status '^same' 'running$' '^systemd'

    # What is no root says so, and the default guest's shell is there.
    printf 'echo still "here"\n' | timeout -k 5 240 "$root/ring3" boot --append 'quiet root=/dev/vdb rootdelay=1' --disk "$disk,ro" >"$results/vmm-root-none.log" 2>"$results/vmm-root-none.err"
    expect vmm-root-none $? '^ring3: cannot mount root=/dev/vdb' '^still here'
    rm -f "$disk" "$results"/vmm-root*.in
}
vmm_root
