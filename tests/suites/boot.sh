# shellcheck shell=bash
# Boots of Debian's kernels on Ring3: sourced by ./test, which provides install, verdict, results and root.

# shellcheck source=/dev/null
. "$root/tests/guest/lib.sh"

for cpus in 1 2 8; do
    boots "boot-cpus-$cpus" 240 --cpus $cpus --exec 'grep -c ^processor /proc/cpuinfo | sed "s/^/processors /"; uname -a; dmesg | grep -i kvm-clock | head -3'
    expect "boot-cpus-$cpus" $? "^processors $cpus" '^Linux .*cloud-amd64.*x86_64' 'kvm-clock'
done

# The other vendor's processor, and this one's as a model: the kernel takes it for what it says, and finds nothing to complain about.
for cpu in intel amd; do
    boots "boot-cpu-$cpu" 240 --cpus 2 --cpu $cpu --exec 'cat /proc/cpuinfo; dmesg | grep -iE "unchecked MSR|invalid opcode|cpu:.*bug" | sed "s/^/complaint: /"'
    status=$?
    if [ $cpu = intel ]; then
        expect boot-cpu-intel $status '^vendor_id.*GenuineIntel' '^cpu family.*: 6' '^flags.* constant_tsc .* arch_capabilities' '^cpu cores.*: 2'
    else
        expect boot-cpu-amd $status '^vendor_id.*AuthenticAMD' '^cpu family.*: 25' '^flags.* mmxext .* topoext ' '^cpu cores.*: 2'
    fi
    ! grep -q '^complaint: ' "$results/boot-cpu-$cpu.log"
    verdict "boot-cpu-$cpu-quiet" $? "$(grep -m 3 '^complaint: ' "$results/boot-cpu-$cpu.log" | tr '\n\r' '| ')"
done

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

# A Multiboot kernel looks at its command line and its modules itself.
if gcc -m32 -nostdlib -static -no-pie -Wl,-n,-Ttext=0x100000,--build-id=none -o "$results/multiboot" "$guest/multiboot.S" 2>"$results/boot-multiboot.err"; then
    printf 'first module' >"$results/one"
    printf 'second' >"$results/two"
    boots boot-multiboot 60 --cpus 1 --memory 64M --kernel "$results/multiboot" --initrd "$results/one" --initrd "$results/two" --append 'alpha beta'
    status=$?
    printf 'multiboot alpha beta\none:first module\ntwo:second\n' >"$results/boot-multiboot.want"
    if [ $status -eq 33 ] && tr -d '\r' <"$results/boot-multiboot.log" | cmp -s - "$results/boot-multiboot.want"; then
        verdict boot-multiboot 0
    else
        verdict boot-multiboot 1 "status $status (33 = good); $(head -n 3 "$results/boot-multiboot.log" | tr '\n' '|')"
    fi
else
    verdict boot-multiboot 1 "cannot build tests/guest/multiboot.S: $(head -n 1 "$results/boot-multiboot.err")"
fi

exercise exercise-cloud amd64 "$("$guest/fetch.sh" --kernel amd64 linux-image-cloud-amd64)" 2 "$guest/exercise.expected" perl-base openssl libssl3 libc6 libcrypt1 zlib1g
grep -v '^perl\|^openssl' "$guest/exercise.expected" >"$results/exercise.short"
exercise exercise-amd64 amd64 "$("$guest/fetch.sh" --kernel amd64 linux-image-amd64)" 1 "$results/exercise.short"
exercise exercise-686-pae i386 "$("$guest/fetch.sh" --kernel i386 linux-image-686-pae)" 1 "$results/exercise.short"

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
