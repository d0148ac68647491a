# shellcheck shell=bash
# Snapshots, clones and warm starts of ring3 boot and ring3 run. Sourced by vmm.sh, after its functions.

snapshot=$results/vmm-guest.snapshot
clone_dir=$results/vmm-clones
rm -rf "$snapshot" "$clone_dir" "$results/vmm-cache"
mkdir -p "$clone_dir"

# clone NAME ARGS...: restores the snapshot.
clone() {
    local name=$1; shift
    timeout -k 5 240 "$root/ring3" restore "$snapshot" "$@" >"$results/$name.log" 2>"$results/$name.err" </dev/null
}

timeout -k 5 240 "$root/ring3" boot --cpus 2 --snapshot "$snapshot" --snapshot-at ready >"$results/vmm-snapshot.log" 2>"$results/vmm-snapshot.err" </dev/null
status=$?
[ $status -eq 0 ] && [ -s "$snapshot" ] && [ "$(stat -c %a "$snapshot")" = 600 ]
verdict vmm-snapshot $? "status $status; $(head -n 2 "$results/vmm-snapshot.err" | tr '\n' '|')"

# Both processors go on, the date is the host's, and what is random differs. Linux has set its clock by the RTC, which counts whole seconds, and takes the middle
# of one: it may be half a second off, either way, ever after.
before=$(($(date +%s) - 1))
# shellcheck disable=SC2016
clone vmm-clone-1 --exec 'date +%s; nproc; od -An -tx1 -N16 /dev/urandom; sleep 1; date +%s; for c in 0 1; do taskset $((c+1)) sh -c "echo on \$0" $c; done; exit 7'
status=$?
clone vmm-clone-2 --exec 'date +%s; nproc; od -An -tx1 -N16 /dev/urandom' || status=1
after=$(($(date +%s) + 1))
said=$(sed -n 1p "$results/vmm-clone-1.log")
[ $status -eq 7 ] && [ "${said:-0}" -ge "$before" ] && [ "$said" -le "$after" ] && [ "$(sed -n 4p "$results/vmm-clone-1.log")" -gt "$said" ] &&
    [ "$(sed -n 2p "$results/vmm-clone-1.log")" = 2 ] && grep -q '^on 1' "$results/vmm-clone-1.log"
verdict vmm-clone $? "status $status; between $before and $after: $(head -n 4 "$results/vmm-clone-1.log" "$results/vmm-clone-1.err" | tr '\n' '|')"
[ "$(sed -n 3p "$results/vmm-clone-1.log" | wc -w)" -eq 16 ] && [ "$(sed -n 3p "$results/vmm-clone-1.log")" != "$(sed -n 3p "$results/vmm-clone-2.log")" ]
verdict vmm-clone-random $? "$(sed -n 3p "$results/vmm-clone-1.log"), $(sed -n 3p "$results/vmm-clone-2.log")"

# Fifty at once: each answers, with the right date and numbers of its own. What they hold for themselves is printed.
clones=50 pids=()
mkfifo "$clone_dir/hold"
exec 7<>"$clone_dir/hold"
before=$(($(date +%s) - 1))
for i in $(seq $clones); do
    timeout -k 5 400 "$root/ring3" restore "$snapshot" --exec 'date +%s; od -An -tx1 -N16 /dev/urandom; cat' <"$clone_dir/hold" 7>&- >"$clone_dir/$i" 2>&1 &
    pids+=($!)
done
for i in $(seq $clones); do
    until [ "$(wc -l <"$clone_dir/$i")" -ge 2 ] || ! kill -0 "${pids[i - 1]}" 2>/dev/null; do sleep 0.2; done
done
after=$(($(date +%s) + 1))
private=$(for pid in "${pids[@]}"; do for child in $(pgrep -P "$pid"); do awk '/^Private_/ { sum += $2 } END { print sum }' "/proc/$child/smaps_rollup"; done; done 2>/dev/null | awk '{ sum += $1 } END { printf "%d", sum / 1024 }')
kill "${pids[@]}"
wait "${pids[@]}"
exec 7>&-
right=$(awk -v a="$before" -v b="$after" 'FNR == 1 && $1 >= a && $1 <= b { n++ } END { print n + 0 }' $(seq -f "$clone_dir/%.0f" $clones))
numbers=$(for i in $(seq $clones); do sed -n 2p "$clone_dir/$i"; done | sort -u | wc -l)
echo "vmm-clones: $clones clones hold $private MiB for themselves"
[ "$right" -eq $clones ] && [ "$numbers" -eq $clones ]
verdict vmm-clones $? "$right of $clones with the right date, $numbers different numbers; $(head -n 1 "$clone_dir/1")"

# Files that are none, or no more, what they were.
size=$(stat -c %s "$snapshot")
for at in 9 40 700 20000; do
    cp "$snapshot" "$clone_dir/bad"
    byte=$(od -An -tu1 -j $at -N1 "$clone_dir/bad")
    # shellcheck disable=SC2059
    printf "\\$(printf %o $((byte ^ 16)))" | dd of="$clone_dir/bad" bs=1 seek=$at conv=notrunc 2>/dev/null
    refused "vmm-clone-flipped-$at" 65 'snapshot' restore "$clone_dir/bad" --exec true
done
cp "$snapshot" "$clone_dir/bad"
printf 'X' | dd of="$clone_dir/bad" bs=1 seek=$((size - 3)) conv=notrunc 2>/dev/null
refused vmm-clone-verify 65 'memory has a wrong checksum' restore "$clone_dir/bad" --verify --exec true
truncate -s $((size - 4096)) "$clone_dir/bad"
refused vmm-clone-cut 65 'should have' restore "$clone_dir/bad" --exec true
refused vmm-clone-none 66 'no such file' restore "$clone_dir/none"
refused vmm-clone-other 65 'is not a snapshot' restore "$root/README.md"
refused vmm-snapshot-disk 64 'not possible with --disk and a format' boot --disk "$root/README.md,format=qcow2" --snapshot "$clone_dir/none"
refused vmm-snapshot-place 64 'needs --snapshot' boot --snapshot-at ready
rm -f "$snapshot"

# A guest with a network and sockets: a clone has another passt, another socket and new forwards, and comes to what listens here.
if ! { [ -e /usr/bin/passt ] || install passt passt; } >"$results/vmm-clone-net.install" 2>&1 || ! install python3 python3 >>"$results/vmm-clone-net.install" 2>&1; then
    verdict vmm-clone-net 4 "$(tail -n 1 "$results/vmm-clone-net.install")"
else
    timeout -k 5 240 "$root/ring3" boot --net user --vsock "$clone_dir/socket" --snapshot "$snapshot" --snapshot-at ready >"$results/vmm-snapshot-net.log" 2>"$results/vmm-snapshot-net.err" </dev/null
    status=$?
    mkdir "$clone_dir/served"
    head -c 3M /dev/urandom >"$clone_dir/served/file"
    /usr/bin/python3 -u -m http.server --bind 127.0.0.1 --directory "$clone_dir/served" 0 >"$clone_dir/server.log" 2>&1 &
    server=$!
    until grep -q 'port [0-9]' "$clone_dir/server.log" || ! kill -0 $server 2>/dev/null; do sleep 0.2; done
    port=$(sed -n 's/.*port \([0-9]*\) .*/\1/p' "$clone_dir/server.log")
    fetch="wget -q -O - http://\$(ip route | sed -n 's/^default via \([^ ]*\).*/\1/p'):$port/file | md5sum"
    clone vmm-clone-net --exec "$fetch" || status=1
    clone vmm-clone-net-2 --net "user,forward=$port:80" --vsock "$clone_dir/other" --exec "$fetch"
    [ $? -ne 0 ] && grep -q 'Address already in use' "$results/vmm-clone-net-2.err" || status=2
    kill $server
    wait $server 2>/dev/null
    [ $status -eq 0 ] && [ "$(cut -d' ' -f1 "$results/vmm-clone-net.log")" = "$(md5sum <"$clone_dir/served/file" | cut -d' ' -f1)" ]
    verdict vmm-clone-net $? "status $status; $(head -n 3 "$results/vmm-snapshot-net.err" "$results/vmm-clone-net.log" "$results/vmm-clone-net.err" "$results/vmm-clone-net-2.err" | tr '\n' '|')"
    refused vmm-clone-net-tap 64 'is one of user' restore "$snapshot" --net tap=none0 --exec true
fi

# A guest that is connected to a program of the host when its snapshot is made: in a clone the connection has been reset, and another one leads to the clone's own socket.
if ! install python3 python3 >"$results/vmm-clone-vsock.install" 2>&1 || ! install cpio cpio >>"$results/vmm-clone-vsock.install" 2>&1 || ! gcc -O2 -static -Wall -Wextra -Werror -o "$clone_dir/streams" "$root/tests/vmm/streams.c" 2>>"$results/vmm-clone-vsock.install"; then
    verdict vmm-clone-vsock 4 "$(tail -n 1 "$results/vmm-clone-vsock.install")"
else
    (cd "$clone_dir" && echo streams | cpio -o -H newc --quiet >initrd) 2>>"$results/vmm-clone-vsock.install"
    servers=()
    for name in first second; do
        /usr/bin/python3 "$guest/vsock.py" answer "$clone_dir/$name" "$name" &
        servers+=($!)
        until [ -e "$clone_dir/${name}_5000" ] || ! kill -0 "${servers[-1]}" 2>/dev/null; do sleep 0.2; done
    done
    timeout -k 5 240 "$root/ring3" boot --cold --initrd "$clone_dir/initrd" --vsock "$clone_dir/first" --exec /streams --snapshot "$snapshot" --snapshot-at is-connected >"$results/vmm-snapshot-vsock.log" 2>&1 </dev/null
    status=$?
    clone vmm-clone-vsock --vsock "$clone_dir/second" || status=1
    kill "${servers[@]}"
    wait "${servers[@]}" 2>/dev/null
    [ $status -eq 0 ] && grep -qE '^the first has ended: (Transport endpoint is not connected|Connection reset by peer)' "$results/vmm-clone-vsock.log" && grep -q '^the second says second' "$results/vmm-clone-vsock.log"
    verdict vmm-clone-vsock $? "status $status; $(tail -n 3 "$results/vmm-snapshot-vsock.log" "$results/vmm-clone-vsock.log" "$results/vmm-clone-vsock.err" | tr '\n\r' '| ')"
fi
rm -rf "$clone_dir" "$snapshot"

# A Xen guest, with event channels of both kinds: a clone's processors wake each other, their timers fire, and no event that was on its way is missed. Two clones of one that waits for a command;
# one of a guest that was busy with all that.
for option in --xen --xen-fifo; do
    name=vmm-clone${option#-}
    timeout -k 5 240 "$root/ring3" boot $option --cpus 2 --snapshot "$snapshot" --snapshot-at ready >"$results/vmm-snapshot${option#-}.log" 2>"$results/vmm-snapshot${option#-}.err" </dev/null
    status=$?
    clone "$name" --exec "$(cat "$root/tests/xen/guest.sh")" || status=1
    expect "$name" $status 'ping-pong 400 400' 'processor 1 came back 3 times' 'sums 1$' 'slept on processor 1' 'xen timer rows grow' 'xen ipi rows grow' '^clock (xen|tsc)' 'end of the exercise'
    ! grep -E 'kernel reports' "$results/$name.log" || verdict "$name-reports" 1 "$(grep -m1 'kernel reports' "$results/$name.log")"
    before=$(($(date +%s) - 1))
    clone "$name-date" --exec 'date +%s; od -An -tx1 -N16 /dev/urandom'
    status=$?
    clone "$name-other" --exec 'date +%s; od -An -tx1 -N16 /dev/urandom' || status=1
    said=$(sed -n 1p "$results/$name-date.log")
    [ $status -eq 0 ] && [ "${said:-0}" -ge "$before" ] && [ "$said" -le "$(($(date +%s) + 1))" ] && [ "$(sed -n 2p "$results/$name-date.log" | wc -w)" -eq 16 ] &&
        ! cmp -s <(sed -n 2p "$results/$name-date.log") <(sed -n 2p "$results/$name-other.log")
    verdict "$name-date" $? "status $status; from $before on: $(head -n 2 "$results/$name-date.log" "$results/$name-date.err" | tr '\n' '|')"
    rm -f "$snapshot"

    # In the middle of it: pipes between two processors, a sleeper and interrupts of the console.
    # shellcheck disable=SC2016
    printf 'mkfifo /tmp/a /tmp/b; taskset 2 sh -c "while read -r n; do echo \\$((n + 1)); done" </tmp/a >/tmp/b &\n(for i in 1 2 3 4 5 6 7 8; do sleep 0.5; done; echo slept 8) &\nexec 3>/tmp/a 4</tmp/b; n=0; while [ $n -lt 3000 ]; do echo $n >&3; read -r n <&4; [ $n -ne 300 ] || echo is-bu"sy"; done; wait %%2; echo counted $n; dmesg | grep -E "BUG:|rcu_.*stall|soft lockup" | sed "s/^/kernel reports: /"; poweroff -f\n' >"$results/vmm-snapshot-busy.in"
    timeout -k 5 240 "$root/ring3" boot $option --cpus 2 --snapshot "$snapshot" --snapshot-at is-busy <"$results/vmm-snapshot-busy.in" >"$results/vmm-snapshot-busy.log" 2>&1
    status=$?
    clone "$name-busy" || status=1
    ! grep -q 'kernel reports' "$results/$name-busy.log" || status=2
    tr '\r' '\n' <"$results/$name-busy.log" >"$results/$name-busy.txt" && mv "$results/$name-busy.txt" "$results/$name-busy.log"
    expect "$name-busy" $status '^slept 8' '^counted 3000'
    rm -f "$snapshot"
done

# A console's text says when; nobody waits for a command there, and the guest goes on.
# shellcheck disable=SC2016
printf 'i=0; echo is-re"ady"; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo counted $i; poweroff -f\n' >"$results/vmm-snapshot-text.in"
timeout -k 5 240 "$root/ring3" boot --snapshot "$snapshot" --snapshot-at is-ready <"$results/vmm-snapshot-text.in" >"$results/vmm-snapshot-text.log" 2>&1
status=$?
clone vmm-clone-text
[ $? -eq 0 ] && [ $status -eq 0 ] && grep -q 'counted 100000' "$results/vmm-clone-text.log"
verdict vmm-snapshot-text $? "status $status; $(tail -n 2 "$results/vmm-clone-text.log" "$results/vmm-clone-text.err" | tr '\n' '|')"
refused vmm-clone-no-command 64 'nobody waits for a command' restore "$snapshot" --exec true
rm -f "$snapshot"

# Warm start: the second time from the cache, another option makes another snapshot, and --cold none. The cache has its own files for everything else.
cache=$results/vmm-cache
mkdir -p "$cache"
cp -a "${XDG_CACHE_HOME:-$HOME/.cache}/ring3" "$cache/ring3" 2>/dev/null
rm -rf "$cache/ring3/warm"
kept() { find "$cache/ring3/warm" -name '*.snapshot' 2>/dev/null | wc -l; }
# warm NAME ARGS...: boots with that cache. The kernel says at which address it is, which each boot chooses anew.
warm() {
    local name=$1; shift
    XDG_CACHE_HOME=$cache timeout -k 5 240 "$root/ring3" boot "$@" --exec 'echo here; grep -m 1 " _text$" /proc/kallsyms; exit 5' >"$results/$name.log" 2>"$results/$name.err" </dev/null
    [ $? -eq 5 ] && grep -q '^here' "$results/$name.log"
}
warm vmm-warm-1 --cold && [ "$(kept)" -eq 0 ] && warm vmm-warm-2 && [ "$(kept)" -eq 1 ] && warm vmm-warm-3 && [ "$(kept)" -eq 1 ] && cmp -s "$results/vmm-warm-2.log" "$results/vmm-warm-3.log" && warm vmm-warm-4 --cpus 1 && [ "$(kept)" -eq 2 ] &&
    warm vmm-warm-5 --append quiet && [ "$(kept)" -eq 3 ]
verdict vmm-warm $? "$(kept) kept; $(tail -n 2 "$results"/vmm-warm-?.log | tr '\n' '|')"

# A snapshot that is damaged is made anew, and so is one of a kernel that has changed.
first=$(find "$cache/ring3/warm" -name '*.snapshot' -printf '%T@ %p\n' | sort -g | cut -d' ' -f2 | head -n 1)
printf 'X' | dd of="$first" bs=1 seek=100 conv=notrunc 2>/dev/null
warm vmm-warm-6 && warm vmm-warm-7 && [ "$(kept)" -eq 3 ] && touch "$cache/ring3/linux-cloud-amd64/vmlinuz" && warm vmm-warm-8 && [ "$(kept)" -eq 4 ]
verdict vmm-warm-anew $? "$(kept) kept; $(tail -n 2 "$results"/vmm-warm-[678].log | tr '\n' '|')"
rm -rf "$cache"
