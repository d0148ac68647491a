# shellcheck shell=bash
# Boots of Debian's kernels on Ring3: sourced by ./test, which provides install, verdict, results and root.

# shellcheck source=/dev/null
. "$root/tests/guest/lib.sh"

# The command line is compiled ahead of time, or says why not: a warning of the compiler is not why.
"$root/ring3" --version >"$results/boot-native.log" 2>&1
status=$?
if [ $status -eq 0 ] && [ -e "$root/artifacts/native/unavailable" ]; then
    reason=$(cat "$root/artifacts/native/unavailable")
    case $reason in
        'this processor '* | 'no C compiler '* | 'error NU'* | 'error NETSDK'* | 'error MSB4236'*) status=4 ;;
        *) status=1 ;;
    esac
fi
verdict boot-native $status "${reason:-$(tail -n 1 "$results/boot-native.log")}"

# What the native program says on a processor that it is not compiled for, where an emulator of one is installed.
if [ $status -ne 0 ]; then
    verdict boot-native-baseline 4 "there is no native program"
elif install qemu-user qemu-x86_64 >"$results/boot-native-install.log" 2>&1; then
    qemu-x86_64 -cpu Nehalem "$root/artifacts/native/ring3" --version >"$results/boot-native-baseline.log" 2>&1
    status=$?
    [ $status -eq 71 ] && [ "$(cat "$results/boot-native-baseline.log")" = 'ring3: this processor does not have AVX2, BMI2 and FMA (x86-64-v3), for which this program is compiled' ]
    verdict boot-native-baseline $? "status $status: $(head -n 1 "$results/boot-native-baseline.log")"
else
    verdict boot-native-baseline 4 "$(tail -n 1 "$results/boot-native-install.log")"
fi

for cpus in 1 2 8; do
    boots "boot-cpus-$cpus" 240 --cpus $cpus --exec 'grep -c ^processor /proc/cpuinfo | sed "s/^/processors /"; uname -a; dmesg | grep -i kvm-clock | head -3'
    expect "boot-cpus-$cpus" $? "^processors $cpus" '^Linux .*cloud-amd64.*x86_64' 'kvm-clock'
done

# The other vendor's processor, and this one's as a model: the kernel takes it for what it says, and finds nothing to complain about.
for cpu in intel amd; do
    boots "boot-cpu-$cpu" 240 --cpus 2 --cpu $cpu --exec 'cat /proc/cpuinfo; dmesg | grep -iE "unchecked MSR|invalid opcode|cpu:.*bug" | sed "s/^/complaint: /"'
    status=$?
    if [ $cpu = intel ]; then
        expect boot-cpu-intel $status '^vendor_id.*GenuineIntel' '^cpu family.*: 6' '^flags.* constant_tsc .* pku ospke .* arch_capabilities' '^cpu cores.*: 2'
    else
        expect boot-cpu-amd $status '^vendor_id.*AuthenticAMD' '^cpu family.*: 25' '^flags.* mmxext .* sse4a misalignsse .* topoext ' '^flags.* clzero .* pku ospke' '^cpu cores.*: 2'
    fi
    ! grep -q '^complaint: ' "$results/boot-cpu-$cpu.log"
    verdict "boot-cpu-$cpu-quiet" $? "$(grep -m 3 '^complaint: ' "$results/boot-cpu-$cpu.log" | tr '\n\r' '| ')"
done

# Protection keys as programs use them, with both places of PKRU in the kernel's state images and both engines.
if ! gcc -O2 -static -pthread -o "$results/pkeys" "$guest/pkeys.c" 2>"$results/boot-pkeys.err"; then
    verdict boot-pkeys 4 "gcc makes no static programs here: $(head -n 1 "$results/boot-pkeys.err")"
else
    (cd "$results" && echo pkeys | cpio -o -H newc --quiet) >"$results/pkeys.cpio"
    for cpu in intel amd; do
        for engine in interpreter translator; do
            boots "boot-pkeys-$cpu-$engine" 240 --cpus 2 --cpu $cpu --engine $engine --initrd "$results/pkeys.cpio" --exec /pkeys
            expect "boot-pkeys-$cpu-$engine" $? '^pkeys work'
        done
    done
fi

# The interpreter alone, with two processors. RING3_ENGINE=interpreter runs any suite so.
boots boot-interpreter 240 --cpus 2 --engine interpreter --exec 'uname -r; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo $i; (head -c 3000000 /dev/zero | sha256sum) & head -c 3000000 /dev/zero | md5sum; wait'
expect boot-interpreter $? 'cloud-amd64' '^20000' '35bce4eae54ec8e6cc2868baa8d157914d6ae2858811b4cc0c078c94460fa26f' 'c9fc2d3dd83ab67a129ac10b09c9ebbb'

# Both engines in lockstep through the kernel's boot to a command: every stay in the guest twice, everything compared (docs/translator.md).
timeout 600 "$root/artifacts/bin/Ring3.Lockstep/release/Ring3.Lockstep" --exec 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; echo $i | sha256sum' >"$results/boot-lockstep.log" 2>&1
verdict boot-lockstep $? "$(grep -m 1 -A 3 DIFFERENCE "$results/boot-lockstep.log" | tr '\n' ' '): artifacts/test/boot-lockstep.log"

boots boot-exit-status 240 --cpus 1 --exec 'exit 7'
status=$?
[ $status -eq 7 ]; verdict boot-exit-status $? "ring3 exited with $status, the command with 7"

# A command whose output cannot be written is ended, with a status and one line.
timeout 240 "$root/ring3" boot --exec 'yes' 2>"$results/boot-full.err" >/dev/full
status=$?
[ $status -eq 74 ] && [ "$(cat "$results/boot-full.err")" = "ring3: cannot write standard output: No space left on device" ]; verdict boot-output-full $? "status $status; $(tail -n 1 "$results/boot-full.err")"
timeout 240 "$root/ring3" boot --exec 'echo short' 2>"$results/boot-full.err" >/dev/full
status=$?
[ $status -eq 74 ]; verdict boot-output-full-at-the-end $? "status $status; $(tail -n 1 "$results/boot-full.err")"
timeout 240 "$root/ring3" boot --exec 'yes' 2>"$results/boot-gone.err" | head -n 1 >"$results/boot-gone.log"
status=${PIPESTATUS[0]}
[ "$status" -eq 74 ] && [ "$(tr -d '\r' <"$results/boot-gone.log")" = y ] && grep -q '^ring3: cannot write standard output: Broken pipe$' "$results/boot-gone.err"
verdict boot-output-gone $? "status $status; $(tail -n 1 "$results/boot-gone.err")"

# assemble NAME ADDRESS LD_OPTIONS: builds tests/guest/NAME.S for ADDRESS as $results/NAME-ADDRESS.
assemble() { gcc -m32 -nostdlib -static -no-pie -Wl,-n,-Ttext="$2",--build-id=none"${3:-}" -o "$results/$1-$2" "$guest/$1.S" 2>"$results/boot-$1.err"; }

# A Multiboot kernel looks at its command line and its modules itself: above 1 MiB, below it, and compressed.
printf 'first module' >"$results/one"
printf 'second' >"$results/two"
for address in 0x100000 0x8000; do
    name=boot-multiboot-$address
    if ! assemble multiboot $address; then
        verdict "$name" 1 "cannot build tests/guest/multiboot.S: $(head -n 1 "$results/boot-multiboot.err")"
        continue
    fi
    gzip -kf "$results/multiboot-$address"
    boots "$name" 60 --cpus 1 --memory 64M --kernel "$results/multiboot-$address.gz" --initrd "$results/one" --initrd "$results/two with words" --append 'alpha beta'
    status=$?
    printf 'multiboot-%s.gz alpha beta\none:first module\ntwo with words:second\n' $address >"$results/boot-multiboot.want"
    [ $status -eq 33 ] && tr -d '\r' <"$results/$name.log" | cmp -s - "$results/boot-multiboot.want"
    verdict "$name" $? "status $status (33 = good); $(head -n 3 "$results/$name.log" "$results/$name.err" | tr '\n' '|')"
done

# A PVH kernel in an ELF file of class 32 for x86-64, above 1 MiB and below it.
for address in 0x200000 0x1000; do
    name=boot-pvh-x32-$address
    if ! gcc -mx32 -nostdlib -static -no-pie -Wl,-n,-Ttext=$address,--build-id=none -o "$results/pvh" "$guest/pvh.S" 2>"$results/$name.err"; then
        verdict "$name" 4 "gcc makes no x32 programs here: $(head -n 1 "$results/$name.err")"
        continue
    fi
    boots "$name" 60 --cpus 1 --memory 16M --kernel "$results/pvh" --initrd "$results/one" --append 'alpha beta'
    status=$?
    [ $status -eq 33 ] && grep -q ' alpha beta$' "$results/$name.log"
    verdict "$name" $? "status $status (33 = good); $(head -n 3 "$results/$name.log" "$results/$name.err" | tr '\n' '|')"
done

# The BIOS: data area, tick, and a key that comes when the guest waits for it.
if assemble bios 0x7c00 ,--oformat=binary; then
    mkfifo "$results/bios.in" 2>/dev/null
    timeout -k 5 60 "$root/ring3" boot --cpus 1 --memory 4M --kernel "$results/bios-0x7c00" <>"$results/bios.in" >"$results/boot-bios.log" 2>"$results/boot-bios.err" &
    machine=$!
    printf k >"$results/bios.in"
    wait $machine
    status=$?
    [ $status -eq 33 ] && grep -q '^bios k$' "$results/boot-bios.log"
    verdict boot-bios $? "status $status (33 = good; 35 + 2N: check N); $(cat "$results/boot-bios.log" "$results/boot-bios.err" | head -n 3 | tr '\n' '|')"
else
    verdict boot-bios 1 "cannot build tests/guest/bios.S: $(head -n 1 "$results/boot-bios.err")"
fi

# A kernel for i386 gets a busybox for i386.
if deb=$("$guest/fetch.sh" i386 "$("$guest/fetch.sh" --kernel i386 linux-image-686)" 2>"$results/boot-i386.err"); then
    dpkg-deb --fsys-tarfile "$deb" | tar -xO --wildcards './boot/vmlinuz-*' >"$results/vmlinuz-686"
    boots boot-i386 240 --cpus 1 --kernel "$results/vmlinuz-686" --exec 'uname -m; busybox | head -1'
    expect boot-i386 $? '^i686' '^BusyBox'
else
    verdict boot-i386 4 "cannot fetch linux-image-686: $(tail -n 1 "$results/boot-i386.err")"
fi

exercise exercise-cloud amd64 "$("$guest/fetch.sh" --kernel amd64 linux-image-cloud-amd64)" 2 "$guest/exercise.expected" perl-base openssl libssl3 libc6 libcrypt1 zlib1g
grep -v '^perl\|^openssl' "$guest/exercise.expected" >"$results/exercise.short"
exercise exercise-amd64 amd64 "$("$guest/fetch.sh" --kernel amd64 linux-image-amd64)" 1 "$results/exercise.short"
exercise exercise-686-pae i386 "$("$guest/fetch.sh" --kernel i386 linux-image-686-pae)" 1 "$results/exercise.short"

# shellcheck source=/dev/null
. "$root/tests/guest/guests.sh"
run_guests

# A disk of both layouts, with two queues: what is written, flushed and read again after the caches are dropped is the same, in the guest and in the file; a discarded range is a hole.
for ring in packed split; do
    name=boot-disk-$ring disk=$results/boot-disk.img
    rm -f "$disk"
    head -c 48M /dev/urandom >"$disk"
    head -c 16M "$disk" | md5sum | cut -d' ' -f1 >"$results/boot-disk.first"
    # shellcheck disable=SC2016
    boots $name 240 --cpus 2 --disk "$disk,serial=first,ring=$ring" --disk "$disk.ro,ro" --exec 'true' && verdict $name-missing 1 "a disk that is not there was taken"
    boots $name 240 --cpus 2 --disk "$disk,serial=first,ring=$ring" --exec '
cd /sys/block/vda; echo "serial $(cat serial) queues $(ls mq | wc -l) ro $(cat ro)"; cut -c35 /sys/bus/virtio/drivers/virtio_blk/virtio*/features | sed "s/^/packed /"
dd if=/dev/vda bs=1M count=16 2>/dev/null | md5sum
dd if=/dev/vda of=/tmp/a bs=1M count=8 2>/dev/null; dd if=/tmp/a of=/dev/vda bs=64k seek=256 conv=fsync 2>/dev/null & dd if=/dev/zero of=/dev/vda bs=64k seek=512 count=32 conv=fsync 2>/dev/null; wait
echo 3 >/proc/sys/vm/drop_caches
dd if=/dev/vda bs=64k skip=256 count=128 2>/dev/null | cmp - /tmp/a && echo "reread same"
blkdiscard -o 41943040 -l 8388608 /dev/vda && echo discarded
mkdir /m; dd if=/dev/vda bs=1M skip=40 count=8 2>/dev/null | tr -d "\\000" | wc -c | sed "s/^/nonzero /"'
    status=$?
    { head -c 8M "$disk" | cmp -s - <(dd if="$disk" bs=1M skip=16 count=8 status=none) && [ "$(($(stat -c '%b * %B' "$disk")))" -le $((41 << 20)) ]; } || status=${status/#0/1}
    packed=0; [ $ring = packed ] && packed=1
    expect $name $status '^serial first queues 2 ro 0' "^packed $packed" "^$(cat "$results/boot-disk.first") " '^reread same' '^discarded' '^nonzero 0'
done
boots boot-disk-xen 240 --cpus 2 --xen --disk "$disk" --exec 'dd if=/dev/vda bs=1M count=16 2>/dev/null | md5sum; grep "xen-pirq.*virtio" /proc/interrupts'
expect boot-disk-xen $? "^$(cat "$results/boot-disk.first") " 'virtio'
# What cannot be a disk is refused in one line.
head -c 1000 /dev/urandom >"$results/boot-cut.img"
for case in "66 no such file:$results/none.img" "65 no multiple of 512:$results/boot-cut.img" "66 neither a file nor a block device:/dev/null" "64 --disk knows:$disk,rw"; do
    boots boot-disk-bad 60 --disk "${case#*:}" --exec true
    status=$?
    want=${case%%:*} name=boot-disk-bad-$(basename "${case#*:}")
    [ $status -eq "${want%% *}" ] && [ "$(wc -l <"$results/boot-disk-bad.err")" -le 3 ] && grep -q -- "${want#* }" "$results/boot-disk-bad.err"
    verdict "$name" $? "status $status; $(head -n 2 "$results/boot-disk-bad.err" | tr '\n' '|')"
done
rm -f "$disk"

# A network without privileges: the guest reads a file from a server on the host's loopback, and serves one that the host reads through a forward. Nothing of it is left afterwards.
name=boot-net-user
if ! install passt passt >"$results/$name.install" 2>&1 || ! install python3 python3 >>"$results/$name.install" 2>&1 || ! install curl curl >>"$results/$name.install" 2>&1; then
    verdict $name 4 "$(tail -n 1 "$results/$name.install")"
elif [ -z "$(ip route show default 2>/dev/null)" ]; then
    verdict $name 4 "passt needs a default route of the host"
else
    served=$results/boot-net mine=$((20000 + $$ % 5000)) theirs=$((25000 + $$ % 5000))
    rm -rf "$served"
    mkdir -p "$served"
    head -c 2M /dev/urandom >"$served/file"
    (cd "$served" && exec python3 -m http.server --bind 127.0.0.1 $mine >/dev/null 2>&1) &
    server=$!
    # shellcheck disable=SC2016
    boots $name 240 --cpus 2 --net "user,forward=$theirs:80" --exec '
gw=$(ip route | sed -n "s/^default via \([^ ]*\).*/\1/p")
wget -q -O /tmp/file http://$gw:'$mine'/file && md5sum </tmp/file
mkdir /w && cp /tmp/file /w/back && httpd -h /w
# Until the host has it.
i=0; until wget -q -O /dev/null http://$gw:'$mine'/done || [ $i = 60 ]; do i=$((i+1)); sleep 1; done; echo served' &
    guest_pid=$!
    until curl -s -f -m 20 -o "$served/back.part" "http://127.0.0.1:$theirs/back" || ! kill -0 $guest_pid 2>/dev/null; do sleep 1; done
    touch "$served/done"
    wait $guest_pid
    status=$?
    kill $server
    cmp -s "$served/file" "$served/back.part" || status=${status/#0/1}
    expect $name $status "^$(md5sum <"$served/file" | cut -d' ' -f1)" '^served'
    rm -rf "$served"
fi
boots boot-net-bad 60 --net user,forward=80 --exec true
status=$?
[ $status -eq 64 ] && grep -q -- '--net user knows forward=HOST:GUEST' "$results/boot-net-bad.err"
verdict boot-net-bad $? "status $status; $(head -n 2 "$results/boot-net-bad.err" | tr '\n' '|')"

# A guest of 128 MiB in 32 MiB: files with a seeded pattern are written and verified twice; pages come back by the thousand, and none is wrong. The picture is a PNG.
boots boot-resident 240 --cpus 2 --memory 128M --resident 32M --heatmap "$results/boot-resident.png" --stats --exec '
mount -t tmpfs -o size=80M none /mnt
for i in 0 1 2 3 4 5 6 7; do yes "seed $i pattern $((i * 7919))" | head -c 7000000 >/mnt/f$i; done
md5sum /mnt/f* >/tmp/sums
md5sum -c /tmp/sums | grep -c OK'
status=$?
# value NAME: a figure of the last --stats.
value() { sed -n "s/^stat $1  *//p" "$results/boot-resident.err"; }
if [ $status -ne 0 ] || [ "$(tr -d '\r' <"$results/boot-resident.log")" != 8 ]; then
    verdict boot-resident 1 "status $status; $(tail -n 3 "$results/boot-resident.log" "$results/boot-resident.err" | tr '\n\r' '| ')"
elif [ "$(value max_resident_pages)" -gt 8192 ] || [ "$(value refaults)" -lt 5000 ]; then
    verdict boot-resident 1 "$(value max_resident_pages) pages were resident (limit 8192), $(value refaults) came back (at least 5000 expected)"
elif [ "$(head -c 8 "$results/boot-resident.png" | od -An -tx1 | tr -d ' \n')" != 89504e470d0a1a0a ]; then
    verdict boot-resident 1 "the picture is no PNG"
else
    verdict boot-resident 0
fi

# A boot that is killed once the guest has spoken leaves nothing in the directory for temporary files.
rm -rf "$results/killed"
mkdir -p "$results/killed/tmp"
mkfifo "$results/killed/console"
TMPDIR=$results/killed/tmp "$root/ring3" boot </dev/null >"$results/killed/console" 2>"$results/killed/log" &
killed=$!
head -c 1 "$results/killed/console" >"$results/killed/spoke"
kill -KILL $killed
wait $killed 2>/dev/null
[ -s "$results/killed/spoke" ] && [ -z "$(ls -A "$results/killed/tmp")" ]; verdict boot-killed $? "left: $(ls -A "$results/killed/tmp" | tr '\n' ' ')$(tail -n 1 "$results/killed/log")"
