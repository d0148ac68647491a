# shellcheck shell=bash
# The kernel's KVM selftests on libring3.so: sourced by ./test, which provides verdict, results, root and, when every suite runs, all=1. The table of the run is
# artifacts/test/selftests/selftests.md; tests/selftests/publish.sh makes it docs/selftests.md.
# The real /dev/kvm, if any, is out of reach of the tests.
install make make
install xz-utils xz
tests=$root/tests/selftests
out=$results/selftests
mode=full
[ -z "${all:-}" ] || mode=quick

# shellcheck source=/dev/null
. "$tests/away.sh"

# One test wants 2 GiB of huge pages: they are reserved for the time of the run where root can, and the memory is there.
pages=/proc/sys/vm/nr_hugepages huge=1100
reserved=
reserve() {
    [ "$(id -u)" = 0 ] && [ -w $pages ] && [ "$(cat $pages)" -lt $huge ] && [ "$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)" -gt 8000000 ] || return 0
    reserved=$(cat $pages)
    echo $huge >$pages
    [ "$(cat $pages)" -ge $huge ] || unreserve
}
unreserve() {
    [ -z "$reserved" ] || echo "$reserved" >$pages
    reserved=
}

planned() { awk -F'\t' -v kind="$1" -v name="$2" '$1 == kind && $2 == name { print $3 }' "$tests/plan.tsv"; }

# may_skip TEST: the reason for which the test may skip on this machine.
may_skip() {
    planned skip "$1"
    [ "$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)" = tsc ] || planned clock "$1"
}

# row TEST STATUS MS ARGS: books one test and prints its line of the table.
row() {
    local name=$1 status=$2 seconds result reason args=$4
    seconds=$(($3 / 1000)).$(($3 % 1000 / 100))
    reason=$(may_skip "$name")
    case $status in
        0) result=PASS reason=; verdict "selftest $name" 0 ;;
        4)  if [ -n "$reason" ]; then
                result=SKIP; verdict "selftest $name" 4 "$reason"
            else
                result=FAIL reason="skips, and is not allowed to: $(last "$name")"; verdict "selftest $name" 1 "$reason"
            fi ;;
        124 | 137) result=FAIL reason="not done in its time"; verdict "selftest $name" 1 "$reason" ;;
        *) result=FAIL reason="status $status: $(last "$name")"; verdict "selftest $name" 1 "$reason" ;;
    esac
    [ -z "$args" ] || reason="${reason:+$reason; }arguments: $args"
    echo "| $name | $result | $seconds | ${reason//|/\\|} |" >>"$out/rows.md"
}

# last TEST: what the test said at its end, in one line.
last() { grep -aE 'SKIP|skip|Assert|==|!=|errno|failed|not ok|ring3' "$out/logs/$1.log" | tail -n 3 | tr -s ' \n\t' ' ' | cut -c 1-200; }

selftests() {
    local bin name status ms args count
    if ! bin=$("$tests/build.sh" 2>"$results/selftests-build.err"); then
        verdict selftests 4 "cannot build them: $(tail -n 1 "$results/selftests-build.err")"
        return
    fi
    rm -rf "$out"
    mkdir -p "$out"
    # Without the library no test may find a KVM: then what passes with it has passed on Ring3.
    ONLY=guest_print_test away "$tests/run.sh" "$bin" "$out/control" full "$tests/plan.tsv" -- env
    read -r name status ms args <"$out/control/results.tsv"
    if [ "$status" = 0 ]; then
        verdict selftests-without-ring3 1 "the tests reach a real /dev/kvm"
        return
    fi
    verdict selftests-without-ring3 0
    trap unreserve EXIT
    reserve
    away "$tests/run.sh" "$bin" "$out" $mode "$tests/plan.tsv" -- "$root/ring3" exec --
    unreserve
    trap - EXIT
    count=$(wc -l <"$out/results.tsv")
    [ "$count" -eq 85 ]; verdict selftests-count $? "$count of the 85 tests were built and run: $results/selftests-build.err"
    while IFS=$'\t' read -r name status ms args; do
        row "$name" "$status" "$ms" "$args"
    done <"$out/results.tsv"
    table "$bin" >"$out/selftests.md"
}

# table BIN: what docs/selftests.md is made of.
table() {
    echo "# KVM selftests on Ring3"
    echo
    echo "Debian's linux-source-6.12, version $(basename "$1"), every test run under \`ring3 exec\` without a real /dev/kvm. \`tests/selftests/publish.sh\` puts the table of the last run here;"
    echo "\`./test selftests\` runs the tests' own parameters, the default \`./test\` gives the longest ones smaller parameters (shown). Limit 120 s a test (plan.tsv names exceptions), two at a time."
    echo
    echo "$(grep -c '| PASS |' "$out/rows.md") pass, $(grep -c '| FAIL |' "$out/rows.md") fail, $(grep -c '| SKIP |' "$out/rows.md") skip ($mode run, $(nproc) host processors, $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1))."
    echo
    echo "| test | result | s | reason |"
    echo "|---|---|---|---|"
    cat "$out/rows.md"
}

selftests
