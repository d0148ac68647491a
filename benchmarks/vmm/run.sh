#!/usr/bin/env bash
# What `ring3 boot` and `ring3 run` are used for, in figures: each program beside this one prints some. Name, value, unit, separated by tabs.
# usage: run.sh [PART...]        parts: devices (default: all)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
for part in "${@:-devices}"; do
    [ -x "$here/$part.sh" ] && [ "$part" != run ] || { echo "vmm: no part '$part'" >&2; exit 2; }
done
for part in "${@:-devices}"; do
    "$here/$part.sh"
done
