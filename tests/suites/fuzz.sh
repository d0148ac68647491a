# shellcheck shell=bash
# Hostile guests and hostile clients, a seeded sample: sourced by ./test, which provides verdict, results and root. The seed rotates with the day unless SEED is set.
seed=${SEED:-$(date +%Y%m%d)}
for target in "streams 4000" "kernels 40000" "xen 4000" "virtio 20000" "ioctls 500" "ioctls 300 --threads 3"; do
    set -- $target
    name=fuzz-$1${4:+-$4-threads}
    timeout 300 "$root/artifacts/bin/Ring3.Fuzz/release/Ring3.Fuzz" "$1" --runs "$2" --seed "$seed" "${@:3}" >"$results/$name.log" 2>&1
    status=$?
    cat "$results/$name.log"
    [ $status -eq 4 ] && status=1
    verdict "$name ($2 runs, seed $seed)" $status "status $status: artifacts/test/$name.log"
done

# The processor as libring3-core.so has it: compiled ahead of time, with the same settings (Directory.Build.props). It knows the same instructions as the one that is compiled at run time, and executes them as the recorded
# processors and this host do.
native=$root/artifacts/native-fuzz
if dotnet publish "$root/tests/Ring3.Cpu.Fuzz" -c Release -v q -nologo -p:Ring3Native=Ring3.Cpu.Fuzz -o "$native" >"$results/fuzz-native-build.log" 2>&1; then
    "$native/Ring3.Cpu.Fuzz" --list >"$results/fuzz-native-list.log" 2>&1
    "$root/artifacts/bin/Ring3.Cpu.Fuzz/release/Ring3.Cpu.Fuzz" --list >"$results/fuzz-list.log" 2>&1
    [ -s "$results/fuzz-list.log" ] && cmp -s "$results/fuzz-list.log" "$results/fuzz-native-list.log"
    verdict "fuzz-native: the instructions of the processor compiled ahead of time" $? "artifacts/test/fuzz-list.log and fuzz-native-list.log differ"
    for set in "$root"/tests/vectors/replay/*.r3v; do
        name=fuzz-native-$(basename "$set" .r3v)
        timeout 120 "$native/Ring3.Cpu.Fuzz" --replay "$set" >"$results/$name.log" 2>&1
        status=$?
        verdict "$name: $(tail -1 "$results/$name.log")" $status "see artifacts/test/$name.log"
    done
    for bits in 64 32 16; do
        name=fuzz-native-host-$bits
        timeout 300 "$native/Ring3.Cpu.Fuzz" --bits $bits --cases 100000 --seed "$seed" >"$results/$name.log" 2>&1
        status=$?
        # This host cannot run them: the replayed sets remain.
        [ $status -eq 4 ] && status=0
        verdict "$name: $(tail -1 "$results/$name.log")" $status "see artifacts/test/$name.log"
    done
else
    verdict "fuzz-native" 1 "the build failed: artifacts/test/fuzz-native-build.log"
fi

# The processor in libring3-core.so itself, where `ring3 exec` has it: the cases run in a VM of its /dev/kvm (tests/native/kvm_oracle.c).
# core NAME VENDOR ENGINE ARGS...: one run of the fuzzer against the core as that vendor's processor; its log is fuzz-core-NAME.log.
core() {
    local name=$1 vendor=$2 engine=$3
    shift 3
    RING3_PARAMETERS=cpu=$vendor,engine=$engine timeout -k 5 300 "$root/artifacts/bin/Ring3.Cpu.Fuzz/release/Ring3.Cpu.Fuzz" \
        --kvm "$root/artifacts/devkvm/ring3-exec" --model "$vendor" --coverage "$@" >"$results/fuzz-core-$name.log" 2>&1
}
if "$root/src/Ring3.DevKvm/native/build.sh" >"$results/fuzz-core-build.log" 2>&1; then
    for set in "$root"/tests/vectors/replay/*.r3v; do
        for engine in interpreter translator:0; do
            name=$(basename "$set" .r3v)-${engine%:*} vendor=intel
            case $name in amd-*) vendor=amd ;; esac
            core "$name" $vendor $engine --replay "$set"
            status=$?
            verdict "fuzz-core-$name: $(tail -1 "$results/fuzz-core-$name.log")" $status "see artifacts/test/fuzz-core-$name.log"
        done
    done
    for bits in 64 32 16; do
        core host-$bits host interpreter --bits $bits --cases 50000 --seed "$seed"
        status=$?
        # This host cannot run them: the replayed sets remain.
        [ $status -eq 4 ] && status=0
        verdict "fuzz-core-host-$bits: $(tail -1 "$results/fuzz-core-host-$bits.log")" $status "see artifacts/test/fuzz-core-host-$bits.log"
    done
    # Every instruction of 64-bit mode has run in one of these, or does so here: chance makes cases of some gathers rare.
    "$root/artifacts/bin/Ring3.Cpu.Fuzz/release/Ring3.Cpu.Fuzz" --list | sed -n 's/^+ //p' | sort >"$results/fuzz-core-list"
    cp "$results/fuzz-core-list" "$results/fuzz-core-left"
    for name in amd-zen5-64-interpreter intel-emerald-rapids-64-interpreter host-64; do
        sed -n 's/^never ran: //p' "$results/fuzz-core-$name.log" | tr ' ' '\n' | sort | comm -12 "$results/fuzz-core-left" - >"$results/fuzz-core-both"
        grep -q '^never ran:' "$results/fuzz-core-$name.log" && mv "$results/fuzz-core-both" "$results/fuzz-core-left"
    done
    rare=$(wc -l <"$results/fuzz-core-left") status=0
    [ "$rare" -gt 20 ] && status=1
    for code in $([ $status -eq 0 ] && cat "$results/fuzz-core-left"); do
        # The filter may choose others besides, whose names have this one in them.
        core rare host interpreter --filter "$code" --cases 2000 --seed "$seed" && grep -q '^ran \([0-9]*\) of \1 instructions$' "$results/fuzz-core-rare.log" && continue
        status=1
        break
    done
    listed=$(wc -l <"$results/fuzz-core-list")
    [ "$listed" -gt 1900 ] || status=1
    verdict "fuzz-core-list: $listed instructions, $rare of them in runs of their own" $status "see artifacts/test/fuzz-core-left and fuzz-core-rare.log"
    # Control: of every seventh result one bit is changed, somewhere in the state; each is found.
    FLIP=7 core control intel interpreter --replay "$root/tests/vectors/replay/intel-emerald-rapids-64.r3v"
    status=$?
    changed=$(sed -n 's/^kvm_oracle: \([0-9]*\) results changed$/\1/p' "$results/fuzz-core-control.log")
    [ $status -eq 1 ] && [ "${changed:-0}" -gt 300 ] && grep -q "instructions, $changed mismatches\$" "$results/fuzz-core-control.log"
    verdict "fuzz-core-control: $changed changed results" $? "status $status: artifacts/test/fuzz-core-control.log"
else
    verdict "fuzz-core" 1 "the build failed: artifacts/test/fuzz-core-build.log"
fi
