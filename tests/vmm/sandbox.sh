# shellcheck shell=bash
# What a guest that owned the process of ring3 boot could do: captive.c tries in every thread, with the sandbox, without, and with each half of it. Sourced by tests/suites/vmm.sh.

captive=$results/captive
gcc -O2 -Wall -Wextra -Werror -o "$captive" "$root/tests/vmm/captive.c" && gcc -O2 -Wall -Wextra -Werror -shared -fPIC -DLIBRARY -o "$captive.so" "$root/tests/vmm/captive.c"

# captures NAME PROGRAM... : runs a guest in the program, has every thread of its process try, and leaves what came of it in $results/NAME.tries, the threads' states in .threads. $then: done behind that.
then=:
captures() {
    local name=$1 threads machine pid status; shift
    rm -f "$results/$name".* "$results/$name.in"
    mkfifo "$results/$name.in"
    : >"$results/$name.victim"
    CAPTIVE_LOG=$results/$name.tries CAPTIVE_FILE=$results/$name.made CAPTIVE_TO=$results/$name.moved CAPTIVE_VICTIM=$results/$name.victim LD_PRELOAD=$captive.so timeout -k 5 240 "$@" --exec 'echo ready; read x; echo more' \
        <"$results/$name.in" >"$results/$name.log" 2>"$results/$name.err" &
    machine=$!
    exec 9>"$results/$name.in"
    until grep -q ready "$results/$name.log" || ! kill -0 $machine 2>/dev/null; do sleep 1; done
    # The process that has the guest's processors: there may be a tracer above it.
    pid=$(grep -ls '^ring3-vcpu0' /proc/[0-9]*/task/*/comm | while IFS=/ read -r _ _ p _; do
        tr '\0' '\n' <"/proc/$p/environ" 2>/dev/null | grep -qx "CAPTIVE_LOG=$results/$name.tries" && echo "$p" && break
    done)
    grep -hE '^(Seccomp|NoNewPrivs):' "/proc/${pid:-0}"/task/*/status >"$results/$name.threads" 2>/dev/null
    threads=$("$captive" "${pid:-0}" 60)
    until [ "$(grep -c ' end$' "$results/$name.tries")" -ge "${threads:-0}" ] || ! kill -0 $machine 2>/dev/null; do sleep 1; done
    $then "$pid"
    (echo >&9) 2>/dev/null # it may have ended
    exec 9>&-
    wait $machine
    status=$?
    rm -f "$results/$name.in"
    echo "$name: $threads threads, $(grep -vc ' end$' "$results/$name.tries") attempts, $(refusals "$name") refused" >>"$results/$name.err"
    return $status
}

# refusals NAME [PATTERN]: attempts that ended with EPERM or EACCES; for clone3, whose arguments a filter cannot see, ENOSYS.
refusals() { grep -E "^[0-9]+ ${2:-.*} [0-9]+$" "$results/$1.tries" | grep -cE ' (1|13)$| clone3 38$'; }

# captive NAME STATUS [PATTERN]: every attempt of that name was refused, in at least ten threads, and the guest went on.
captive() {
    local name=$1 status=$2 pattern=${3:-.*} all refused
    all=$(grep -v ' end$' "$results/$name.tries" | grep -cE "^[0-9]+ $pattern [0-9]+$")
    refused=$(refusals "$name" "$pattern")
    [ "$status" -eq 0 ] && [ "$(grep -c ' end$' "$results/$name.tries")" -ge 10 ] && [ "$all" -gt 0 ] && [ "$all" = "$refused" ] && [ ! -e "$results/$name.made" ] && [ -e "$results/$name.victim" ] && grep -q more "$results/$name.log"
    verdict "$name" $? "status $status; $refused of $all refused; $(grep -E "^[0-9]+ $pattern [0-9]+$" "$results/$name.tries" | grep -vE ' (1|13)$| clone3 38$' | cut -d' ' -f2- | sort | uniq -c | sort -rn | head -n 4 | tr '\n' '|')"
}

captures vmm-sandbox "$root/ring3" boot --name vmm-sandbox
status=$?
# No thread is left out.
[ "$(sort -u "$results/vmm-sandbox.threads" | tr -d '\t' | tr '\n' ' ')" = 'NoNewPrivs:1 Seccomp:2 ' ] || status=${status/#0/1}
captive vmm-sandbox $status

# Without it the same attempts are not refused: they could have been made.
captures vmm-sandbox-none "$root/ring3" boot --no-sandbox
status=$?
[ $status -eq 0 ] && [ "$(refusals vmm-sandbox-none '(files .*|rename|openat2|execve|socket-inet|socket-unix|connect|bind|fork|kill-parent|stat|umask)')" = 0 ] && [ -e "$results/vmm-sandbox-none.moved" ] &&
    [ "$(grep -c '^ring3: --no-sandbox: ' "$results/vmm-sandbox-none.err")" = 1 ]
verdict vmm-sandbox-none $? "status $status; $(head -n 3 "$results/vmm-sandbox-none.err" | tr '\n' '|')"

# The program for the .NET runtime makes code and loads on demand.
if [ -e "$root/artifacts/bin/Ring3.Cli/release/ring3.dll" ]; then
    export DOTNET_EnableDiagnostics=0
    captures vmm-sandbox-runtime dotnet "$root/artifacts/bin/Ring3.Cli/release/ring3.dll" boot
    captive vmm-sandbox-runtime $?
    unset DOTNET_EnableDiagnostics
else
    verdict vmm-sandbox-runtime 4 "the program for the .NET runtime is not built"
fi

# Each half alone: strace has the other one's system call do nothing.
if ! install strace strace >"$results/vmm-strace.install" 2>&1; then
    verdict vmm-sandbox-landlock 4 "needs strace"
else
    captures vmm-sandbox-landlock strace -f --seccomp-bpf -qq -o /dev/null -e trace=seccomp -e inject=seccomp:retval=0 "$root/ring3" boot
    status=$?
    if ! grep -qw landlock /sys/kernel/security/lsm 2>/dev/null && [ "$(refusals vmm-sandbox-landlock 'files .*')" = 0 ]; then
        verdict vmm-sandbox-landlock 4 "this kernel has no Landlock"
    else
        captive vmm-sandbox-landlock $status 'files .*'
    fi
    captures vmm-sandbox-seccomp strace -f --seccomp-bpf -qq -o /dev/null -e trace=landlock_create_ruleset -e inject=landlock_create_ruleset:error=ENOSYS "$root/ring3" boot
    captive vmm-sandbox-seccomp $?
fi

# A call by numbers that the filter does not know ends the process.
foreign() { kill -61 "$1"; }
then=foreign
captures vmm-sandbox-abi "$root/ring3" boot
status=$?
then=:
[ $status -eq 159 ]
verdict vmm-sandbox-abi $? "status $status, not that of SIGSYS"
