# shellcheck shell=bash
# Boots of Debian's kernels by ring3 boot: sourced by the suites, with install, verdict, results and root of ./test. boot_options: options that every boot gets.

install cpio cpio
install xz-utils xz
guest=$root/tests/guest
boot_options=()

# boots NAME LIMIT_S ARGS...: runs ./ring3 boot without any /dev/kvm and leaves the output in $results/NAME.log.
boots() {
    local name=$1 limit=$2; shift 2
    timeout -k 5 "$limit" "$root/ring3" boot --cold "${boot_options[@]}" "$@" >"$results/$name.log" 2>"$results/$name.err" </dev/null
}

# starts NAME LIMIT_S ARGS...: as boots, but does not wait: sets machine to its process. Descriptor 8 is what the guest's console reads.
starts() {
    local name=$1 limit=$2; shift 2
    rm -f "$results/$name.in"
    mkfifo "$results/$name.in"
    exec 8<>"$results/$name.in"
    : >"$results/$name.log"
    timeout -k 5 "$limit" "$root/ring3" boot "$@" <&8 8>&- >"$results/$name.log" 2>"$results/$name.err" &
    machine=$!
}

# printed LOG REGEX: a line, or a piece between escapes and carriage returns, matches. No pipe: grep stops early, and pipefail would take the writer's SIGPIPE for "no".
printed() { grep -qaE -- "$2" <(tr '\r\033' '\n\n' <"$1"); }

# expect NAME STATUS PATTERN...: the boot ended with status 0 and its output has every pattern.
expect() {
    local name=$1 status=$2 p; shift 2
    if [ "$status" -ne 0 ]; then
        verdict "$name" "$status" "status $status; last lines: $(tail -n 3 "$results/$name.log" "$results/$name.err" | tr '\n\r' '| ')"
        return
    fi
    for p in "$@"; do
        grep -qE -- "$p" "$results/$name.log" || { verdict "$name" 1 "no line like '$p' in artifacts/test/$name.log"; return; }
    done
    verdict "$name" 0
}

# exercise NAME ARCH KERNEL_PACKAGE CPUS EXPECTED [PACKAGE...]
exercise() {
    local name=$1 arch=$2 package=$3 cpus=$4 expected=$5; shift 5
    local deb tree=$results/$name.kernel initrd=$results/$name.cpio.gz
    if ! deb=$("$guest/fetch.sh" "$arch" "$package" 2>"$results/$name.err"); then
        verdict "$name" 4 "cannot fetch $package: $(tail -n 1 "$results/$name.err")"
        return
    fi
    rm -rf "$tree"
    mkdir -p "$tree"
    dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$tree" ./boot
    if ! "$guest/root.sh" "$arch" "$initrd" "$guest/init.sh" "$@" 2>>"$results/$name.err"; then
        verdict "$name" 1 "cannot build the guest's root: $(tail -n 1 "$results/$name.err")"
        return
    fi
    boots "$name" 600 --cpus "$cpus" --memory 1024M --kernel "$(echo "$tree"/boot/vmlinuz-*)" --initrd "$initrd" --append 'console=ttyS0 quiet panic=-1'
    local status=$?
    tr -d '\r' <"$results/$name.log" | sed -n '/== begin/,/== end/p' | sed '1,2d;$d' >"$results/$name.got"
    if [ $status -eq 0 ] && diff "$expected" "$results/$name.got" >"$results/$name.diff"; then
        verdict "$name" 0
    else
        verdict "$name" 1 "status $status; $(head -n 3 "$results/$name.diff" | tr '\n' ' ')"
    fi
}
