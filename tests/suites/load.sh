# shellcheck shell=bash
# The timing-sensitive selftests and clients, LOAD_ROUNDS times in a row beside LOAD spinning processes: sourced by ./test, which provides install, verdict, results and root. Only when it is asked for: a round takes a minute.
install make make && install xz-utils xz
# shellcheck source=/dev/null
. "$root/tests/selftests/away.sh"
"$root/src/Ring3.DevKvm/native/build.sh" || verdict load-build 1 "artifacts/devkvm-build.log"
load=$results/load
rm -rf "$load"
mkdir -p "$load"
timed="apic_bus_clock_test kvm_clock_test xen_shinfo_test xen_vmcall_test tsc_msrs_test set_memory_region_test steal_time rseq_test xapic_ipi_test hyperv_clock monitor_mwait_test tsc_scaling_sync"

# load_clients DIR: signals, idle and irqfd as the devkvm suite runs them; prints what failed.
load_clients() {
    local program name
    for program in signals idle irqfd; do
        for name in $("$load/$program"); do
            RING3_ROUNDS=2000 timeout -k 5 120 "$root/artifacts/devkvm/ring3-exec" "$load/$program" "$name" >"$1/$program.$name.log" 2>&1 || echo "$program-$name: status $?: $(tail -n 1 "$1/$program.$name.log")"
        done
    done
}

load_rounds() {
    local bin program round spinners=() dir bad ran now clients
    if ! bin=$("$root/tests/selftests/build.sh" 2>"$load/build.err"); then
        verdict load 4 "cannot build the selftests: $(tail -n 1 "$load/build.err")"
        return
    fi
    for program in signals idle irqfd; do
        gcc -std=gnu11 -O2 -g -Wall -Wextra -Werror -o "$load/$program" "$root/tests/native/devkvm/$program.c" -lpthread 2>"$load/$program.err" || { verdict load 1 "$program.c does not compile"; return; }
    done
    for _ in $(seq "${LOAD:-8}"); do
        while :; do :; done &
        spinners+=($!)
    done
    for round in $(seq "${LOAD_ROUNDS:-10}"); do
        dir=$load/$round
        mkdir -p "$dir"
        load_clients "$dir" >"$dir/clients" 2>&1 &
        clients=$!
        ONLY=$timed away "$root/tests/selftests/run.sh" "$bin" "$dir/selftests" quick "$root/tests/selftests/plan.tsv" -- "$root/ring3" exec -- >"$dir/selftests.log" 2>&1
        wait $clients
        bad=$(awk '$2 != 0 && $2 != 4 { printf "%s: status %s; ", $1, $2 }' "$dir/selftests/results.tsv"; tr '\n' ';' <"$dir/clients")
        ran=$(wc -l <"$dir/selftests/results.tsv") now="load $(cut -d' ' -f1 /proc/loadavg), $(find "$dir" -name '*.*.log' | wc -l) client tests"
        [ -z "$bad" ] && [ "$ran" -eq "$(wc -w <<<"$timed")" ]
        verdict "load round $round ($now)" $? "$ran selftests; $bad"
    done
    kill "${spinners[@]}"
    wait "${spinners[@]}" 2>/dev/null
}
load_rounds
