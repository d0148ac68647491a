#!/usr/bin/env bash
# Builds libring3.so, libring3-core.so, ring3-exec, ring3-direct and ring3-selftest into artifacts/devkvm when they are missing or older than their sources.
# usage: build.sh [--force]
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
root=$(cd "$here/../../.." && pwd)
out=$root/artifacts/devkvm
log=$root/artifacts/devkvm-build.log
export DOTNET_CLI_TELEMETRY_OPTOUT=1 DOTNET_NOLOGO=1
version=$(sed -n 's:.*<Version>\(.*\)</Version>.*:\1:p' "$root/Directory.Build.props")
# The files are the same wherever the repository is.
flags=(-std=gnu11 -O2 -g -fPIC -fvisibility=hidden -fno-strict-aliasing -Wall -Wextra -Werror "-ffile-prefix-map=$root=/ring3" "-DRING3_VERSION=\"$version\"")

# outdated TARGET DIRECTORY NAME...: whether TARGET is missing or older than a file below DIRECTORY with one of the names.
outdated() {
    local target=$1 directory=$2 tests=()
    shift 2
    [ -e "$target" ] || return 0
    for name in "$@"; do tests+=(-o -name "$name"); done
    [ -n "$(find "$directory" \( "${tests[@]:1}" \) -newer "$target" -print -quit)" ]
}

shim_outdated() { outdated "$out/libring3.so" "$here" '*.c' '*.h' '*.sh' || [ "$root/Directory.Build.props" -nt "$out/libring3.so" ]; }
core_outdated() {
    outdated "$out/libring3-core.so" "$root/src" '*.cs' 'Ring3.*.csproj' threads.c strings.c ||
        [ "$root/Directory.Build.props" -nt "$out/libring3-core.so" ] || [ "$root/Directory.Packages.props" -nt "$out/libring3-core.so" ]
}

toolchain() {
    command -v gcc >/dev/null && [ -e /usr/include/stdio.h ] && [ -e /usr/include/linux/kvm.h ] && return 0
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev; } >"$root/artifacts/apt-gcc.log" 2>&1 && return 0
    fi
    echo "ring3: needs a C compiler to build libring3.so: run 'apt-get install gcc libc6-dev' as root" >&2
    exit 66
}

failed() {
    grep -E 'error' "$log" | sort -u | head -5 >&2
    echo "ring3: the build of $1 failed; see artifacts/devkvm-build.log" >&2
    exit 70
}

build_shim() {
    : >"$log"
    gcc "${flags[@]}" -shared -Wl,-z,nodelete -Wl,-z,initfirst -Wl,-soname,libring3.so -o "$out/libring3.so.new" \
        "$here"/{core,cpuid,cpuinfo,helpers,filters,bpf,lookup,table,ioctl,resolve,sysfs,paths,signals,masks,descriptors,irqfd,memory}.c "$here"/direct/{entry,host,calls,paths,signals,clone,processes,image,load}.c "$here/elf_file.c" -ldl -lpthread >>"$log" 2>&1 || failed libring3.so
    gcc "${flags[@]}" -o "$out/ring3-exec.new" "$here/exec.c" "$here/elf_file.c" >>"$log" 2>&1 || failed ring3-exec
    mv -f "$out/ring3-exec.new" "$out/ring3-exec"
    gcc "${flags[@]}" -pie -o "$out/ring3-direct.new" "$here/direct/main.c" "$out/libring3.so.new" -Wl,-rpath,'$ORIGIN' >>"$log" 2>&1 || failed ring3-direct
    mv -f "$out/ring3-direct.new" "$out/ring3-direct"
    gcc "${flags[@]}" -o "$out/ring3-selftest.new" "$here/selftest.c" >>"$log" 2>&1 || failed ring3-selftest
    mv -f "$out/ring3-selftest.new" "$out/ring3-selftest"
    mv -f "$out/libring3.so.new" "$out/libring3.so"
}

build_core() {
    : >"$log"
    gcc "${flags[@]}" -r -o "$out/threads.o" "$here/threads.c" "$here/strings.c" >>"$log" 2>&1 || failed libring3-core.so
    rm -f "$root"/artifacts/bin/Ring3.DevKvm.Native/*/native/Ring3.DevKvm.so # the object is no input that the linking step knows of
    dotnet publish "$root/src/Ring3.DevKvm" -c Release -v q -nologo -p:Ring3Native=Ring3.DevKvm \
        -p:Ring3CoreObject="$out/threads.o" -o "$out/publish" >>"$log" 2>&1 || failed libring3-core.so
    mv -f "$out/publish/Ring3.DevKvm.so" "$out/libring3-core.so"
    mv -f "$out/publish/Ring3.DevKvm.so.dbg" "$out/Ring3.DevKvm.so.dbg" 2>/dev/null || true
    touch "$out/libring3-core.so"
}

if [ "${1:-}" = --force ]; then rm -f "$out"/libring3*.so; fi
if shim_outdated || core_outdated; then
    if ! mkdir -p "$out" 2>/dev/null || [ ! -w "$out" ] || [ ! -w "$root/artifacts" ]; then
        echo "ring3: libring3.so is not built, and $out cannot be written" >&2
        exit 66
    fi
    exec 9>"$root/artifacts/.devkvm-build.lock"
    flock 9
    if shim_outdated; then toolchain; build_shim; fi
    if core_outdated; then
        command -v dotnet >/dev/null || { echo "ring3: needs the .NET SDK 10 to build (https://dot.net)" >&2; exit 66; }
        toolchain
        echo "ring3: building libring3-core.so (once)" >&2
        build_core
    fi
fi
