#!/usr/bin/env bash
# What `ring3 boot` and `ring3 run` are used for, in figures: each program beside this one prints some. Name, value, unit, separated by tabs.
# usage: run.sh [PART...]        parts: the programs' names (default: all)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -eq 0 ]; then
    for part in "$here"/*.sh; do
        [ "${part##*/}" = run.sh ] || set -- "$@" "$(basename "$part" .sh)"
    done
fi
for part in "$@"; do
    [ -x "$here/$part.sh" ] && [ "$part" != run ] || { echo "vmm: no part '$part'" >&2; exit 2; }
done
for part in "$@"; do
    "$here/$part.sh"
done
