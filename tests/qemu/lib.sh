# shellcheck shell=bash
# Starting, watching and steering QEMU in the tests: sourced by tests/suites/qemu.sh. Every function that waits has a limit in seconds and ends
# the test with a reason when it runs out. LC_ALL=C: offsets are bytes.

# QEMU in front of its arguments; qemu=(PROGRAM ARGS...) names another than the system's. RING3_QEMU_ORACLE=kvm or tcg runs the same tests on the machine's
# own /dev/kvm or on QEMU's translator, to check the tests themselves.
qemu=(qemu-system-x86_64)
qemu_command() {
    if [ -n "${RING3_QEMU_ORACLE:-}" ]; then command=("${qemu[@]}"); return; fi
    command=("$root/ring3" exec -- "${qemu[@]}")
    if [ -n "${as_user:-}" ]; then
        command=(setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs "$work/ring3-exec" -- qemu-system-x86_64)
    elif [ -n "$hide_kvm" ]; then
        # The machine's /dev/kvm is not there: /dev/null stands in its place.
        command=(unshare -m sh -c 'mount --bind /dev/null /dev/kvm && exec "$@"' sh "${command[@]}")
    fi
}

hide_kvm=
[ ! -e /dev/kvm ] || ! unshare -m true 2>/dev/null || hide_kvm=1

declare -A vm_pid=() vm_cat=() vm_in=() vm_mon=() vm_at=() vm_mon_at=()

# reason TEXT: why the test ends; the verdict shows it.
fail() { echo "$*" > "$reason"; exit 1; }
skip() { echo "$*" > "$reason"; exit 4; }

# vm_start NAME LIMIT_S ARGS...: QEMU with its first serial port in $dir/NAME.log and its monitor in $dir/NAME.mon; killed after LIMIT_S.
vm_start() {
    local name=$1 limit=$2 fd; shift 2
    local command
    qemu_command
    for f in in mon.in mon.out; do rm -f "$dir/$name.$f"; mkfifo -m 666 "$dir/$name.$f"; done
    : > "$dir/$name.log"; : > "$dir/$name.mon"
    exec {fd}<>"$dir/$name.in"; vm_in[$name]=$fd
    exec {fd}<>"$dir/$name.mon.in"; vm_mon[$name]=$fd
    cat "$dir/$name.mon.out" > "$dir/$name.mon" &
    vm_cat[$name]=$!
    echo "+ ${command[*]} $*" > "$dir/$name.err"
    timeout -k 5 "$limit" "${command[@]}" -no-user-config -display none -chardev stdio,id=serial,signal=off -serial chardev:serial \
        -chardev "pipe,id=monitor,path=$dir/$name.mon" -mon chardev=monitor,mode=readline \
        "$@" <"$dir/$name.in" >"$dir/$name.log" 2>>"$dir/$name.err" &
    vm_pid[$name]=$! vm_at[$name]=0 vm_mon_at[$name]=0
}

# accelerator: the options that put a VM on KVM. Variables: irqchip (on, split, off), ring (entries of the dirty ring), xen (the version that the guest sees), cpu.
accelerator() {
    if [ "${RING3_QEMU_ORACLE:-}" = tcg ]; then echo "-accel tcg,thread=multi -cpu ${cpu:-max}"; return; fi
    echo "-accel kvm${irqchip:+,kernel-irqchip=$irqchip}${ring:+,dirty-ring-size=$ring}${xen:+,xen-version=$xen} -cpu ${cpu:-${RING3_QEMU_CPU:-host}}"
}

vm_kill_all() {
    local name
    for name in "${!vm_pid[@]}"; do kill "${vm_pid[$name]}" 2>/dev/null; wait "${vm_pid[$name]}" 2>/dev/null; kill "${vm_cat[$name]}" 2>/dev/null; done
}

# watch FILE PID AT LIMIT_S REGEX: waits until REGEX matches FILE behind offset AT; sets found (BASH_REMATCH) and behind (offset after the match).
watch() {
    local file=$1 pid=$2 at=$3 limit=$4 regex=$5 text start=$SECONDS gone=
    while :; do
        text=$(tail -c "+$((at + 1))" "$file" | tr -d '\0\r')
        if [[ $text =~ $regex ]]; then
            found=("${BASH_REMATCH[@]}")
            text=$(tail -c "+$((at + 1))" "$file" | tr '\0\r' '  ')
            [[ $text =~ $regex ]] || { behind=$(stat -c %s "$file"); return 0; }
            text=${text%%"${BASH_REMATCH[0]}"*}
            behind=$((at + ${#text} + ${#BASH_REMATCH[0]}))
            return 0
        fi
        [ -z "$gone" ] || return 2
        kill -0 "$pid" 2>/dev/null || { gone=1; continue; }
        [ $((SECONDS - start)) -lt "$limit" ] || return 1
        sleep 0.2
    done
}

# last NAME: the end of what the VM said, in one line.
last() { echo "$(grep -av '^+ ' "$dir/$1.err" | tail -n 2 | tr '\n' '|') $(tail -c 300 "$dir/$1.log" | tr -d '\0' | tr -c '[:print:]' ' ' | tr -s ' ')"; }

# vm_expect NAME LIMIT_S REGEX: the serial port says REGEX, behind what was expected before.
vm_expect() {
    watch "$dir/$1.log" "${vm_pid[$1]}" "${vm_at[$1]}" "$2" "$3"
    case $? in
        0) vm_at[$1]=$behind ;;
        1) fail "no '$3' within $2 s; last: $(last "$1")" ;;
        *) fail "QEMU ended before '$3'; last: $(last "$1")" ;;
    esac
}

# vm_type NAME TEXT: a line for the guest's shell.
vm_type() { printf '%s\n' "$2" >&"${vm_in[$1]}"; }

# vm_key NAME TEXT: the same without an end of line.
vm_key() { printf '%s' "$2" >&"${vm_in[$1]}"; }

# vm_run NAME LIMIT_S COMMAND REGEX: the shell's COMMAND prints REGEX.
vm_run() { vm_type "$1" "$3"; vm_expect "$1" "$2" "$4"; }

# vm_monitor NAME LIMIT_S COMMAND [REGEX]: a monitor command, done when REGEX or the next prompt is there. Its output is in found.
vm_monitor() {
    [ "${vm_mon_at[$1]}" != 0 ] || { watch "$dir/$1.mon" "${vm_pid[$1]}" 0 30 '\(qemu\) ' || fail "no monitor prompt: $(last "$1")"; vm_mon_at[$1]=$behind; }
    printf '%s\n' "$3" >&"${vm_mon[$1]}"
    watch "$dir/$1.mon" "${vm_pid[$1]}" "${vm_mon_at[$1]}" "$2" "${4:-$'\n'\\(qemu\\) }" || fail "monitor command '$3' did not say '${4:-(qemu)}' in $2 s: $(tail -c 200 "$dir/$1.mon" | tr -c '[:print:]' ' ') $(last "$1")"
    vm_mon_at[$1]=$behind
    local said=("${found[@]}")
    [ -z "${4:-}" ] || { watch "$dir/$1.mon" "${vm_pid[$1]}" "$behind" 30 '\(qemu\) ' && vm_mon_at[$1]=$behind; }
    found=("${said[@]}")
}

# vm_end NAME LIMIT_S STATUS: QEMU ends by itself with STATUS.
vm_end() {
    local start=$SECONDS status
    while kill -0 "${vm_pid[$1]}" 2>/dev/null; do
        [ $((SECONDS - start)) -lt "$2" ] || fail "QEMU still runs after $2 s; last: $(last "$1")"
        sleep 0.2
    done
    wait "${vm_pid[$1]}"; status=$?
    [ $status -eq "$3" ] || fail "QEMU ended with status $status, expected $3; last: $(last "$1")"
}

# qemu_test NAME FUNCTION ARGS...: one test in a process of its own, booked with its time.
qemu_test() {
    local name=qemu-$1 function=$2 start=$SECONDS status; shift 2
    [[ $name =~ ${QEMU_TESTS:-.} ]] || return 0
    dir=$work/run/$name reason=$work/run/$name/reason
    rm -rf "$dir"; mkdir -p "$dir"; chmod 777 "$dir"
    ( trap vm_kill_all EXIT; "$function" "$@" ) >"$dir/test.log" 2>&1 </dev/null
    status=$?
    verdict "$name ($((SECONDS - start)) s)" $status "$(cat "$reason" 2>/dev/null || tail -n 1 "$dir/test.log")"
}
