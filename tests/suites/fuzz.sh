# shellcheck shell=bash
# Hostile guests and hostile clients, a seeded sample: sourced by ./test, which provides verdict, results and root. The seed rotates with the day unless SEED is set.
seed=${SEED:-$(date +%Y%m%d)}
for target in "streams 4000" "kernels 40000" "xen 4000" "ioctls 500" "ioctls 300 --threads 3"; do
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
