# shellcheck shell=bash
# QEMU's named processors: which features each asks for that Ring3 does not offer, as Intel's processor and as AMD's. QEMU itself is asked
# (query-cpu-definitions); `-cpu MODEL,enforce` starts exactly where its list is empty. tests/qemu/features.csv has the features that are known to be missing,
# and why: another one fails the test, and so does a table in docs/qemu.md that is not QEMU's answer. `tests/qemu/models.sh --write` writes the table.

features=$(dirname "${BASH_SOURCE[0]}")/features.csv

# cpu_definitions: MODEL|ALIASES|MISSING FEATURES, one line a versioned model, from QEMU's answer in $1.
cpu_definitions() {
    grep -a '"typename"' "$1" | tr '{' '\n' | grep -a '"typename"' | sed -E 's/.*"name": "([^"]*)".*/\1 &/' | while read -r name rest; do
        local missing='' alias=''
        [[ $rest =~ \"unavailable-features\":\ \[([^]]*)\] ]] && missing=$(tr -d '",' <<<"${BASH_REMATCH[1]}" | tr ' ' '\n' | sort -u | tr '\n' ' ')
        [[ $rest =~ \"alias-of\":\ \"([^\"]*)\" ]] && alias=${BASH_REMATCH[1]}
        echo "${alias:-$name}|${alias:+$name}|$(echo $missing)"
    done | sort -t'|' -k1,1V -k2,2 | awk -F'|' '$1 != last { if (last != "") print last "|" aliases "|" missing; last = $1; aliases = ""; missing = $3 } $2 != "" { aliases = aliases (aliases == "" ? "" : ", ") $2 } END { print last "|" aliases "|" missing }'
}

# cpu_query VENDOR FILE COMMAND...: QEMU's definitions into FILE, on Ring3 with that vendor's processor.
cpu_query() {
    local vendor=$1 file=$2; shift 2
    printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"query-cpu-definitions"}' '{"execute":"quit"}' |
        RING3_PARAMETERS=cpu=$vendor timeout -k 5 120 "$@" -accel kvm -machine q35 -cpu host \
            -S -nodefaults -no-user-config -display none -qmp stdio >"$file"
}

# known FEATURE VENDOR: whether it is one that Ring3 does not offer: never, not with that vendor's processor, or not on a host that does not have it itself.
known() {
    local feature=$1 vendor=$2 name where why
    while IFS=, read -r name where why; do
        [ "$name" = "$feature" ] || continue
        case $where in
            all) return 0 ;;
            host) grep -qwE "${why%%:*}" /proc/cpuinfo || return 0 ;;
            *) [ "$where" = "$vendor" ] && return 0 ;;
        esac
    done < <(grep -v '^#' "$features")
    return 1
}

# cpu_table INTEL AMD: the table of docs/qemu.md from both answers, without the features of the host's own units.
cpu_table() {
    echo '| model | also called | `enforce` with `cpu=intel` | `enforce` with `cpu=amd` |'
    echo '|---|---|---|---|'
    awk -F'[|]' '
        function missing(list, n, f, i, text) {
            n = split(list, f, " ")
            text = ""
            for (i = 1; i <= n; i++) if (!(f[i] in unit)) text = text (text == "" ? "" : " ") f[i]
            return text == "" ? "starts" : text
        }
        FNR == 1 { file++ }
        file == 1 { split($0, field, ","); if (field[2] == "host") unit[field[1]]; next }
        file == 2 { intel[$1] = $3; next }
        $1 !~ /^(base|host|max)$/ { print "| " $1 " | " $2 " | " missing(intel[$1]) " | " missing($3) " |" }
    ' "$features" <(cpu_definitions "$1") <(cpu_definitions "$2")
}

# cpu_documented: the table as it stands in docs/qemu.md.
cpu_documented() { awk '/^<!-- models -->/ { inside = 1; next } /^<!-- end of models -->/ { inside = 0 } inside' "$root/docs/qemu.md"; }

# cpu_models: nothing is missing but what features.csv knows, the table says what is, and models of each generation start with enforce.
cpu_models() {
    local command vendor model aliases missing feature worse='' differs
    qemu_command
    for vendor in intel amd; do
        cpu_query $vendor "$dir/$vendor.json" "${command[@]}" 2>"$dir/query.err" || fail "QEMU does not answer: $(tail -n 1 "$dir/query.err")"
        [ "$(cpu_definitions "$dir/$vendor.json" | wc -l)" -gt 50 ] || fail "QEMU names few models: $(head -c 200 "$dir/$vendor.json")"
        while IFS='|' read -r model aliases missing; do
            for feature in $missing; do known "$feature" $vendor || worse+=" $vendor:$model:$feature"; done
        done < <(cpu_definitions "$dir/$vendor.json")
    done
    [ -z "$worse" ] || fail "missing features that tests/qemu/features.csv does not know:$worse"
    differs=$(diff <(cpu_documented) <(cpu_table "$dir/intel.json" "$dir/amd.json")) ||
        fail "docs/qemu.md's table is not QEMU's answer: $(head -n 4 <<<"$differs")"
    cpu_enforce intel qemu64 kvm64 Nehalem-IBRS Westmere-IBRS SandyBridge-IBRS IvyBridge-IBRS Haswell-noTSX-IBRS Broadwell-noTSX-IBRS \
        Skylake-Client-noTSX-IBRS Denverton-v3
    cpu_enforce amd qemu64 kvm64 Opteron_G2 Opteron_G3 EPYC EPYC-IBPB Dhyana
}

# cpu_enforce VENDOR MODEL...: each starts with enforce and without a warning.
cpu_enforce() {
    local vendor=$1 model; shift
    for model; do
        printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"quit"}' |
            RING3_PARAMETERS=cpu=$vendor timeout -k 5 60 "${command[@]}" -accel kvm -machine q35 -cpu "$model,enforce" \
                -S -nodefaults -no-user-config -display none -qmp stdio >"$dir/$model.json" 2>"$dir/$model.err" ||
            fail "-cpu $model,enforce: $(tail -n 2 "$dir/$model.err" | tr '\n' ' ')"
        ! grep -q warning "$dir/$model.err" || fail "-cpu $model,enforce: $(grep -m1 warning "$dir/$model.err")"
    done
}

if [ "${1:-}" = --write ]; then
    set -euo pipefail
    root=$(cd "$(dirname "$0")/../.." && pwd)
    work=$(mktemp -d)
    for vendor in intel amd; do cpu_query $vendor "$work/$vendor.json" "$root/ring3" exec -- qemu-system-x86_64; done
    awk -v table="$(cpu_table "$work/intel.json" "$work/amd.json")" '
        /^<!-- models -->/ { print; print table; skip = 1 }
        /^<!-- end of models -->/ { skip = 0 }
        !skip' "$root/docs/qemu.md" >"$work/qemu.md"
    cat "$work/qemu.md" >"$root/docs/qemu.md"
    rm -r "$work"
fi
