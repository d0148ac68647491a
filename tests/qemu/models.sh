# shellcheck shell=bash
# QEMU's named processors: which features each asks for that Ring3 does not offer. QEMU itself is asked (query-cpu-definitions); `-cpu MODEL,enforce` starts exactly where its list is empty.
# tests/qemu/features.csv has the features that are known to be missing, and why: another one fails the test. `tests/qemu/models.sh --write` writes the table of docs/qemu.md, on the host that it is called on.

# cpu_definitions: MODEL|ALIASES|MISSING FEATURES, one line a versioned model, from QEMU's answer in $1.
cpu_definitions() {
    grep -a '"typename"' "$1" | tr '{' '\n' | grep -a '"typename"' | sed -E 's/.*"name": "([^"]*)".*/\1 &/' | while read -r name rest; do
        local missing='' alias=''
        [[ $rest =~ \"unavailable-features\":\ \[([^]]*)\] ]] && missing=$(tr -d '",' <<<"${BASH_REMATCH[1]}" | tr ' ' '\n' | sort -u | tr '\n' ' ')
        [[ $rest =~ \"alias-of\":\ \"([^\"]*)\" ]] && alias=${BASH_REMATCH[1]}
        echo "${alias:-$name}|${alias:+$name}|$(echo $missing)"
    done | sort -t'|' -k1,1V -k2,2 | awk -F'|' '$1 != last { if (last != "") print last "|" aliases "|" missing; last = $1; aliases = ""; missing = $3 } $2 != "" { aliases = aliases (aliases == "" ? "" : ", ") $2 } END { print last "|" aliases "|" missing }'
}

# cpu_query FILE COMMAND...: QEMU's definitions into FILE.
cpu_query() {
    local file=$1; shift
    printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"query-cpu-definitions"}' '{"execute":"quit"}' |
        timeout -k 5 120 "$@" -machine q35 -cpu host -S -nodefaults -no-user-config -display none -qmp stdio >"$file"
}

# known FEATURE: whether it is one that Ring3 does not offer on this host: `all` hosts, those of the other vendor, or a host that does not have it itself.
known() {
    local feature=$1 vendor=$2 name where why
    while IFS=, read -r name where why; do
        [ "$name" = "$feature" ] || continue
        case $where in
            all) return 0 ;;
            host) grep -qwE "${why%%:*}" /proc/cpuinfo || return 0 ;;
            *) [ "$where" = "$vendor" ] && return 0 ;;
        esac
    done < <(grep -v '^#' "$root/tests/qemu/features.csv")
    return 1
}

host_vendor() { if grep -qm1 AuthenticAMD /proc/cpuinfo; then echo amd; else echo intel; fi; }

# cpu_models: nothing is missing but what features.csv knows, and one model of each generation starts with enforce.
cpu_models() {
    local command vendor model aliases missing feature worse='' log=$dir/definitions.json
    qemu_command
    cpu_query "$log" "${command[@]}" -accel kvm 2>"$dir/query.err" || fail "QEMU does not answer: $(tail -n 1 "$dir/query.err")"
    vendor=$(host_vendor)
    while IFS='|' read -r model aliases missing; do
        for feature in $missing; do known "$feature" "$vendor" || worse+=" $model:$feature"; done
    done < <(cpu_definitions "$log")
    [ "$(cpu_definitions "$log" | wc -l)" -gt 50 ] || fail "QEMU names few models: $(head -c 200 "$log")"
    [ -z "$worse" ] || fail "missing features that tests/qemu/features.csv does not know:$worse"
    for model in qemu64 kvm64 Nehalem-IBRS Westmere-IBRS SandyBridge-IBRS IvyBridge-IBRS Haswell-noTSX-IBRS Broadwell-noTSX-IBRS Skylake-Client-noTSX-IBRS $([ "$vendor" = intel ] || echo Opteron_G2); do
        printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"quit"}' |
            timeout -k 5 60 "${command[@]}" -accel kvm -machine q35 -cpu "$model,enforce" -S -nodefaults -no-user-config -display none -qmp stdio >"$dir/$model.json" 2>"$dir/$model.err" ||
            fail "-cpu $model,enforce: $(tail -n 2 "$dir/$model.err" | tr '\n' ' ')"
        ! grep -q warning "$dir/$model.err" || fail "-cpu $model,enforce: $(grep -m1 warning "$dir/$model.err")"
    done
}

# cpu_table FILE: the table of docs/qemu.md.
cpu_table() {
    echo '| model | also called | `enforce` |'
    echo '|---|---|---|'
    cpu_definitions "$1" | grep -vE '^(base|host|max)\|' | while IFS='|' read -r model aliases missing; do
        echo "| $model | $aliases | ${missing:-starts} |"
    done
}

if [ "${1:-}" = --write ]; then
    set -euo pipefail
    root=$(cd "$(dirname "$0")/../.." && pwd)
    file=$(mktemp)
    cpu_query "$file" "$root/ring3" exec -- qemu-system-x86_64 -accel kvm
    awk -v table="$(cpu_table "$file")" '/^<!-- models -->/ { print; print table; skip = 1 } /^<!-- end of models -->/ { skip = 0 } !skip' "$root/docs/qemu.md" >"$file.md"
    mv "$file.md" "$root/docs/qemu.md"
    rm -f "$file"
fi
