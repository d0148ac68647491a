#!/usr/bin/env bash
# Runs KVM selftests, two at a time (those that the plan marks 'alone' after the others, singly), each with a limit of 120 s unless the plan says otherwise, and writes one line a test: name, status, milliseconds, the arguments it was given.
# usage: run.sh BIN_DIR OUT_DIR MODE PLAN -- RUNNER...    MODE full or quick; PLAN is plan.tsv; RUNNER is put before each test's path
#        ONLY='a b' runs only the tests with these names
set -uo pipefail
bin=$1 out=$2 mode=$3 plan=$4
shift 5
runner=("$@")
limit=120 jobs=2
mkdir -p "$out/logs"
: >"$out/results.tsv"
export TMPDIR=${TMPDIR:-/tmp}

# arguments NAME: what the plan gives a test in this mode.
arguments() {
    awk -F'\t' -v name="$1" -v mode="$mode" '$1 == "args" && $2 == name { a = $3 } $1 == "quick" && $2 == name && mode == "quick" { a = $3 } END { print a }' "$plan"
    [ "$(id -u)" != 0 ] || planned root "$1"
}

# planned KIND NAME: what the plan says.
planned() {
    awk -F'\t' -v kind="$1" -v name="$2" '$1 == kind && $2 == name { print $3 }' "$plan"
}

# has_memory NAME: there are the huge pages that the test needs.
has_memory() {
    local huge
    huge=$(planned huge "$1")
    [ -z "$huge" ] || [ "$(awk '/^HugePages_Free/ { print $2 }' /proc/meminfo)" -ge "$huge" ]
}

one() {
    local path=$1 name args own start status
    local -a set
    name=$(basename "$path")
    args=$(arguments "$name" | xargs)
    own=$(planned limit "$name")
    mapfile -t set < <(planned env "$name")
    start=$(date +%s%N)
    if has_memory "$name"; then
        # shellcheck disable=SC2086  # the arguments are words
        (cd "$out" && timeout -k 5 "${own:-$limit}" env "${set[@]}" "${runner[@]}" "$path" $args) >"$out/logs/$name.log" 2>&1 </dev/null
        status=$?
    else
        status=4
    fi
    printf '%s\t%s\t%s\t%s\n' "$name" $status $((($(date +%s%N) - start) / 1000000)) "$args" >>"$out/results.tsv"
    [ -z "${VERBOSE:-}" ] || echo "$name $status" >&2
}

alone=$(awk -F'\t' '$1 == "alone" { printf " %s ", $2 }' "$plan")
later=()
while read -r path; do
    name=$(basename "$path")
    [ -z "${ONLY:-}" ] || case " $ONLY " in *" $name "*) ;; *) continue ;; esac
    case $alone in *" $name "*) later+=("$path"); continue ;; esac
    while [ "$(jobs -rp | wc -l)" -ge $jobs ]; do wait -n; done
    one "$path" &
done < <(find "$bin" -type f -perm -u+x | sort)
wait
for path in "${later[@]}"; do one "$path"; done
sort -o "$out/results.tsv" "$out/results.tsv"
