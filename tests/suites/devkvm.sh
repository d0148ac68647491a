# shellcheck shell=bash
# A KVM client's view of Ring3's /dev/kvm: descriptors, processes, signals, memory. Sourced by ./test, which provides verdict, results and root.
"$root/src/Ring3.DevKvm/native/build.sh" || verdict devkvm-build 1 "artifacts/devkvm-build.log"
devkvm=$results/devkvm
mkdir -p "$devkvm"
# Whether --cpuid can show a processor here: 0, or 69 and why not.
cpuid_refusal=$("$root/artifacts/devkvm/ring3-exec" --cpuid true 2>&1)
cpuid_status=$?
for source in "$root"/tests/native/devkvm/*.c; do
    program=$(basename "$source" .c) options=()
    case $program in direct) continue ;; cpuid) options=(--cpuid) ;; esac
    if ! gcc -std=gnu11 -O2 -g -Wall -Wextra -Werror -o "$devkvm/$program" "$source" -lpthread >"$devkvm/$program.log" 2>&1; then
        verdict "devkvm-$program" 1 "does not compile: artifacts/test/devkvm/$program.log"
        continue
    fi
    for name in $("$devkvm/$program"); do
        if [ "$program" = cpuid ] && [ $cpuid_status -eq 69 ]; then
            verdict "devkvm-$program-$name" 4 "$cpuid_refusal"
            continue
        fi
        RING3_ROUNDS=${RING3_ROUNDS:-10000} timeout -k 5 120 "$root/artifacts/devkvm/ring3-exec" "${options[@]}" "$devkvm/$program" "$name" >"$devkvm/$program.$name.log" 2>&1
        verdict "devkvm-$program-$name" $? "status $?: $(tail -n 1 "$devkvm/$program.$name.log")"
    done
done

# check NAME STATUS_EXPECTED PATTERN ARGS...: what ring3 exec says in one line, and its status.
devkvm_exec() {
    local name=$1 expected=$2 pattern=$3 status
    shift 3
    "$root/ring3" exec "$@" >"$devkvm/exec.$name.log" 2>&1 </dev/null
    status=$?
    [ $status -eq "$expected" ] && [ "$(wc -l <"$devkvm/exec.$name.log")" -le 1 ] && grep -qE -- "$pattern" "$devkvm/exec.$name.log"
    verdict "exec-$name" $? "status $status: $(head -n 1 "$devkvm/exec.$name.log")"
}
# A machine whose CPUID cannot fault: arch_prctl(ARCH_SET_CPUID) gives ENODEV.
cat >"$devkvm/no-faulting.c" <<'SOURCE'
#include <asm/prctl.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args)), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH_SET_CPUID, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENODEV), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
	return argc < 2 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) || execv(argv[1], argv + 1);
}
SOURCE
gcc -o "$devkvm/no-faulting" "$devkvm/no-faulting.c"
# Programs that make system calls themselves: the same tests, linked statically, and those of this way in. What cannot be the same there:
#   every_signal             63 is the runtime's signal
#   clone3_refused, idle, model, others    the core is there from the start, with its descriptors and parameters
#   names_without_a_device   syscall() sees /dev/kvm as well
#   rounds                   is about the table of descriptors, and long
#   sent_while_blocked       SIGRTMAX is that of the program's own C library
for source in "$root"/tests/native/devkvm/*.c; do
    program=$(basename "$source" .c) options=()
    case $program in idle | lookup | model) continue ;; cpuid) options=(--cpuid) ;; esac
    mkdir -p "$devkvm/direct"
    if ! gcc -std=gnu11 -O2 -g -Wall -Wextra -Werror -static -o "$devkvm/direct/$program" "$source" -lpthread >"$devkvm/direct-$program.log" 2>&1; then
        verdict "direct-$program" 1 "does not compile: artifacts/test/devkvm/direct-$program.log"
        continue
    fi
    for name in $("$devkvm/direct/$program"); do
        case $program-$name in signals-every_signal | confined-clone3_refused | paths-names_without_a_device | paths-others | descriptors-rounds | cpuid-sent_while_blocked) continue ;; esac
        if [ "$program" = cpuid ] && [ $cpuid_status -eq 69 ]; then
            verdict "direct-$program-$name" 4 "$cpuid_refusal"
            continue
        fi
        RING3_DIRECT_TEST="a value" timeout -k 5 120 "$root/artifacts/devkvm/ring3-exec" "${options[@]}" "$devkvm/direct/$program" "$name" >"$devkvm/direct-$program.$name.log" 2>&1
        verdict "direct-$program-$name" $? "status $?: $(tail -n 1 "$devkvm/direct-$program.$name.log")"
    done
done
# A Go client, where there is a Go.
if command -v go >/dev/null; then
    if (cd "$devkvm" && cp "$root/tests/native/devkvm/client.go" . && CGO_ENABLED=0 GO111MODULE=off GOFLAGS= go build -o client-go client.go) >"$devkvm/client-go.log" 2>&1; then
        timeout 120 "$root/ring3" exec "$devkvm/client-go" "$(readlink -f "$devkvm/client-go")" >"$devkvm/client-go.log" 2>&1
        [ $? -eq 0 ] && grep -qx ok "$devkvm/client-go.log"; verdict direct-go $? "$(tail -n 1 "$devkvm/client-go.log")"
    else
        verdict direct-go 1 "client.go does not build: $(tail -n 1 "$devkvm/client-go.log")"
    fi
else
    verdict direct-go 4 "no go (Debian's golang-go)"
fi

printf '%s\n' '#include <stdio.h>' 'int main(int argc, char **argv) { printf("%d %s\n", argc, argv[argc - 1]); return argc; }' >"$devkvm/static.c"
gcc -static -o "$devkvm/static" "$devkvm/static.c" && devkvm_exec static 3 '^3 b$' "$devkvm/static" a b
gcc -static-pie -o "$devkvm/static-pie" "$devkvm/static.c" 2>/dev/null && devkvm_exec static-pie 2 '^2 a$' "$devkvm/static-pie" a
devkvm_exec direct-option 0 '^/dev/kvm$' --direct "$(command -v ls)" -d /dev/kvm
# The dynamic linker as the program. It has no interpreter either.
linker=$(readlink -f /lib64/ld-linux-x86-64.so.2)
devkvm_exec linker 0 '/libring3.so' "$linker" --library-path /nowhere --argv0 x "$(command -v grep)" -m1 libring3.so /proc/self/maps
devkvm_exec linker-static 126 '^ring3: .*static: is statically linked' "$linker" --inhibit-cache "$devkvm/static"
# What the Go linker leaves in a program: a note, and without the note a section.
printf '%s\n' '.section .note.go.buildid, "a", @note' '.p2align 2' '.long 4, 8, 4' '.ascii "Go\0\0"' '.ascii "buildid\0"' >"$devkvm/go-note.s"
printf '%s\n' '.section .go.buildinfo, "aw"' '.ascii "\377 Go buildinf:\10\2"' >"$devkvm/go-section.s"
cat >"$devkvm/is-direct.c" <<'SOURCE'
#include <stdio.h>
#include <string.h>
int main(void)
{
	char line[4096];
	FILE *maps = fopen("/proc/self/maps", "r");
	while (fgets(line, sizeof line, maps))
		if (strstr(line, "ring3-direct"))
			return puts("direct"), 0;
	return 1;
}
SOURCE
for go in go-note go-section; do
    gcc -o "$devkvm/$go" "$devkvm/is-direct.c" "$devkvm/$go.s" -z noexecstack && devkvm_exec $go 0 '^direct$' "$devkvm/$go"
    devkvm_exec "linker-$go" 0 '^direct$' "$linker" "$devkvm/$go"
done
gcc -o "$devkvm/musl" "$devkvm/static.c" -Wl,--dynamic-linker=/nowhere/ld-musl-x86_64.so.1 && devkvm_exec musl 126 '^ring3: /nowhere/ld-musl-x86_64.so.1: No such file' "$devkvm/musl"
printf '#!%s\n' "$devkvm/static" >"$devkvm/of-static" && chmod +x "$devkvm/of-static" && devkvm_exec script-of-static 126 '^ring3: .*static: makes system calls itself' "$devkvm/of-static"
for cut in 20 64 200 1000; do
    head -c $cut "$devkvm/go-note" >"$devkvm/cut" && chmod +x "$devkvm/cut" && devkvm_exec "cut-$cut" 126 '^ring3: ' "$devkvm/cut"
    head -c $cut "$devkvm/static" >"$devkvm/cut" && chmod +x "$devkvm/cut" && devkvm_exec "cut-static-$cut" 126 '^ring3: ' "$devkvm/cut"
done
# The core uses the C library that is there, not a file of that name beside the program.
beside=$devkvm/beside
mkdir -p "$beside" && cp "$devkvm/paths" "$beside"
printf '%s\n' '#include <unistd.h>' '__attribute__((constructor)) static void loaded(void) { _exit(9); }' >"$beside/libc.c"
gcc -shared -fPIC -o "$beside/libc.so" "$beside/libc.c" && "$root/artifacts/devkvm/ring3-exec" "$beside/paths" names >"$devkvm/exec.beside.log" 2>&1
verdict exec-libc-beside-program $? "status $?: $(tail -n 1 "$devkvm/exec.beside.log")"
# A kernel without Syscall User Dispatch.
sed -e 's/SYS_arch_prctl/SYS_prctl/; s/ARCH_SET_CPUID/59/; s/ENODEV/EINVAL/' "$devkvm/no-faulting.c" >"$devkvm/no-dispatch.c"
gcc -o "$devkvm/no-dispatch" "$devkvm/no-dispatch.c"
"$devkvm/no-dispatch" "$root/artifacts/devkvm/ring3-exec" "$devkvm/static" >"$devkvm/exec.no-dispatch.log" 2>&1
status=$?
[ $status -eq 69 ] && [ "$(wc -l <"$devkvm/exec.no-dispatch.log")" -eq 1 ] && grep -q '^ring3: .*static: makes system calls itself, and this kernel has no Syscall User Dispatch' "$devkvm/exec.no-dispatch.log"
verdict exec-no-dispatch $? "status $status: $(head -n 1 "$devkvm/exec.no-dispatch.log")"
# Without a stack limit libraries lie at the low end, where the program's code goes.
if (ulimit -s unlimited) 2>/dev/null; then
    (ulimit -s unlimited && "$root/artifacts/devkvm/ring3-exec" "$devkvm/static") >"$devkvm/exec.unlimited.log" 2>&1
    status=$?
    [ $status -eq 69 ] && [ "$(wc -l <"$devkvm/exec.unlimited.log")" -eq 1 ] && grep -q '^ring3: .*needs a stack limit' "$devkvm/exec.unlimited.log"
    verdict exec-unlimited $? "status $status: $(head -n 1 "$devkvm/exec.unlimited.log")"
else
    verdict exec-unlimited 4 "the stack limit cannot be raised"
fi
# LD_PRELOAD splits at spaces and colons.
spaced="$devkvm/a b:c" names=$devkvm/names
rm -rf "$spaced" "$names" && mkdir -p "$spaced" "$names" && cp "$root"/artifacts/devkvm/{ring3-exec,ring3-direct,libring3.so,libring3-core.so} "$spaced"
for round in first second; do
    XDG_RUNTIME_DIR=$names "$spaced/ring3-exec" "$devkvm/paths" names >"$devkvm/exec.spaces.log" 2>&1
    verdict "exec-spaces-$round" $? "status $?: $(tail -n 1 "$devkvm/exec.spaces.log")"
done
for link in "$names"/ring3-*/*; do ln -sfn /nowhere "$link"; done
XDG_RUNTIME_DIR=$names "$spaced/ring3-exec" true >"$devkvm/exec.spaces.log" 2>&1
[ $? -eq 66 ] && grep -qE '^ring3: .* does not lead to' "$devkvm/exec.spaces.log"
verdict exec-spaces-other-link $? "$(tail -n 1 "$devkvm/exec.spaces.log")"
chmod 777 "$names"/ring3-*
XDG_RUNTIME_DIR=$names "$spaced/ring3-exec" true >"$devkvm/exec.spaces.log" 2>&1
[ $? -eq 66 ] && grep -qE '^ring3: .* belongs to somebody else' "$devkvm/exec.spaces.log"
verdict exec-spaces-open-directory $? "$(tail -n 1 "$devkvm/exec.spaces.log")"
rm -rf "$spaced" "$names"
# What stands in the way is said in one line.
"$root/ring3" exec --help 2>"$devkvm/exec.full.log" >/dev/full
[ $? -eq 74 ] && grep -qx 'ring3: cannot write standard output: No space left on device' "$devkvm/exec.full.log"; verdict exec-help-full $? "$(tail -n 1 "$devkvm/exec.full.log")"
for limit in 20 64; do
    (ulimit -n $limit && "$root/ring3" --help) >"$devkvm/limit.log" 2>&1
    [ $? -eq 71 ] && grep -qx "ring3: needs 128 open files; the limit is $limit (ulimit -n)" "$devkvm/limit.log"; verdict "limit-$limit" $? "$(head -n 1 "$devkvm/limit.log")"
    (ulimit -n $limit && "$root/ring3" exec "$devkvm/paths" others) >"$devkvm/limit.log" 2>&1; verdict "exec-limit-$limit" $? "$(tail -n 1 "$devkvm/limit.log")"
done
rm -rf "$devkvm/unbuilt" && mkdir -p "$devkvm/unbuilt/src/Ring3.DevKvm/native" "$devkvm/unbuilt/src/Ring3.Cli" && cp "$root/ring3" "$root/Directory.Build.props" "$devkvm/unbuilt" && cp "$root/src/Ring3.Cli/build.sh" "$devkvm/unbuilt/src/Ring3.Cli" && cp "$root/src/Ring3.DevKvm/native/build.sh" "$devkvm/unbuilt/src/Ring3.DevKvm/native"
touch "$devkvm/unbuilt/artifacts" # a file: not even root can write below it
for command in --help 'exec true'; do
    # shellcheck disable=SC2086
    "$devkvm/unbuilt/ring3" $command >"$devkvm/unbuilt.log" 2>&1
    [ $? -eq 66 ] && [ "$(wc -l <"$devkvm/unbuilt.log")" -eq 1 ] && grep -q '^ring3: .*is not built, and .* cannot be written$' "$devkvm/unbuilt.log"
    verdict "unbuilt-${command%% *}" $? "$(head -n 1 "$devkvm/unbuilt.log")"
done
"$devkvm/no-faulting" "$root/artifacts/devkvm/ring3-exec" --cpuid true >"$devkvm/exec.no-faulting.log" 2>&1
status=$?
[ $status -eq 69 ] && [ "$(wc -l <"$devkvm/exec.no-faulting.log")" -eq 1 ] && grep -q '^ring3: --cpuid: this machine cannot make CPUID fault' "$devkvm/exec.no-faulting.log"
verdict exec-no-faulting $? "status $status: $(head -n 1 "$devkvm/exec.no-faulting.log")"
if [ $cpuid_status -eq 0 ]; then
    devkvm_exec cpuid 0 '^Virtualization: *(VT-x|AMD-V)$' --cpuid sh -c 'lscpu | grep ^Virtualization:'
else
    verdict exec-cpuid 4 "$cpuid_refusal"
fi
devkvm_exec missing 127 '^ring3: nosuchprogram: command not found' -- nosuchprogram
devkvm_exec not-a-program 126 '^ring3: .*Permission denied' "$devkvm/static.c"
devkvm_exec status 7 '^one two$' -- sh -c 'echo "$@"; exit 7' sh one two
devkvm_exec script 0 '^12$' sh -c 'test -c /dev/kvm && echo 12'
devkvm_exec usage 64 '^ring3: exec needs a program'
# Languages that look the C library's functions up by name.
if command -v python3 >/dev/null; then
    devkvm_exec python-ctypes 0 '^12$' python3 -c 'import ctypes; c = ctypes.CDLL("libc.so.6"); print(c.ioctl(c.open(b"/dev/kvm", 2), 0xae00, 0))'
else
    verdict exec-python-ctypes 4 "no python3"
fi
devkvm_exec dotnet-dllimport 0 '^hello$' "$root/artifacts/bin/PInvokeClient/release/PInvokeClient"
if [ "$(id -u)" = 0 ] && cp "$devkvm/descriptors" "$devkvm/setuid" && chown 1:1 "$devkvm/setuid" && chmod 4755 "$devkvm/setuid"; then
    devkvm_exec set-uid 126 '^ring3: .*setuid: is set-uid' "$devkvm/setuid"
fi
"$root/ring3" exec -- sh -c 'kill -TERM $$' 2>/dev/null
[ $? -eq 143 ]; verdict exec-signal $? "the program's signal is not the status"
