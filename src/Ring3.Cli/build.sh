#!/usr/bin/env bash
# Builds the ring3 command line: artifacts/native/ring3, compiled ahead of time; or, where that cannot be done, artifacts/bin/Ring3.Cli/release/ring3, which needs the .NET runtime, and
# artifacts/native/unavailable with the reason. Called by ./ring3 when neither is newer than its sources.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
root=$(cd "$here/../.." && pwd)
out=$root/artifacts/native
native=$out/ring3 reason=$out/unavailable
log=$root/artifacts/ring3-build.log native_log=$root/artifacts/ring3-native-build.log
export DOTNET_CLI_TELEMETRY_OPTOUT=1 DOTNET_NOLOGO=1

started=$(date +%s%N)
command -v dotnet >/dev/null || { echo "ring3: needs the .NET SDK 10 to build (https://dot.net)" >&2; exit 66; }
if ! mkdir -p "$out" 2>/dev/null || [ ! -w "$out" ]; then
    echo "ring3: is not built, and $root/artifacts cannot be written" >&2
    exit 66
fi
# One build at a time; whoever waited finds it done.
exec 9>"$root/artifacts/.ring3-build.lock"
flock 9
for file in "$native" "$reason"; do
    [ -e "$file" ] && [ "$(date -r "$file" +%s%N)" -gt "$started" ] && exit
done
echo "ring3: building (once)" >&2

# What the program is compiled for: Directory.Build.props, native/baseline.c.
baseline() {
    local flags
    flags=" $(sed -n 's/^flags[^:]*://p;/^flags/q' /proc/cpuinfo) "
    for flag in avx avx2 bmi1 bmi2 f16c fma movbe; do
        case $flags in *" $flag "*) ;; *) return 1 ;; esac
    done
}

# ahead: compiles it ahead of time, or leaves why it cannot be done in $why.
ahead() {
    why=
    rm -f "$root"/artifacts/bin/Ring3.Cli.Native/*/native/ring3 # the object is no input that the linking step knows of
    if ! baseline; then
        why="this processor does not have AVX2, BMI2 and FMA (x86-64-v3)"
    elif ! command -v gcc >/dev/null || ! gcc -O2 -Wall -Wextra -Werror -c -o "$out/baseline.o" "$here/native/baseline.c" >"$native_log" 2>&1; then
        why="no C compiler (Debian packages gcc and libc6-dev)"
    elif ! dotnet publish "$here" -c Release -v q -nologo -p:Ring3Native=Ring3.Cli -p:Ring3Baseline="$out/baseline.o" -o "$out/publish" >"$native_log" 2>&1; then
        why=$(grep -m 1 -oE 'error.*' "$native_log" | sed 's/ \[[^]]*\]$//') || why="artifacts/ring3-native-build.log"
    else
        mv -f "$out/publish/ring3.dbg" "$out/ring3.dbg"
        touch "$out/publish/ring3"
        mv -f "$out/publish/ring3" "$native"
        rm -rf "$reason" "$out/publish"
        return 0
    fi
    return 1
}

if ! ahead; then
    if ! dotnet build "$here" -c Release -v q -nologo >"$log" 2>&1; then
        grep -E 'error' "$log" | sort -u | head -5 >&2
        echo "ring3: the build failed; see artifacts/ring3-build.log" >&2
        exit 70
    fi
    rm -f "$native"
    echo "$why" >"$reason"
fi
