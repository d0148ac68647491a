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
