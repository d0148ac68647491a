# shellcheck shell=bash
# Hostile guests against a busy host with the TLB sanitizer: sourced by ./test, which provides verdict, results and root. A minute; ten as './test nightly'; then some seconds of slots that come and go phase by phase. The seed rotates with the day unless SEED is set.
seed=${SEED:-$(date +%Y%m%d)}
seconds=${STRESS_SECONDS:-60}
timeout $((seconds * 2 + 120)) env DOTNET_TieredPGO=0 "$root/artifacts/bin/Ring3.Stress/release/Ring3.Stress" --seconds "$seconds" --seed "$seed" >"$results/stress.log" 2>&1
status=$?
cat "$results/stress.log"
[ $status -eq 4 ] && status=1
verdict "stress ($seconds s, seed $seed)" $status "status $status: artifacts/test/stress.log"

timeout 120 env DOTNET_TieredPGO=0 "$root/artifacts/bin/Ring3.Stress/release/Ring3.Stress" --storm --seconds 8 --seed "$seed" >"$results/storm.log" 2>&1
status=$?
cat "$results/storm.log"
[ $status -eq 4 ] && status=1
verdict "stress --storm (8 s, seed $seed)" $status "status $status: artifacts/test/storm.log"
