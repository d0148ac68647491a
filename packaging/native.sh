#!/usr/bin/env bash
# Builds the native programs and puts an installation's files into STAGE: bin, lib/ring3, share. Run by ./package in a copy of the sources.
# usage: native.sh STAGE VERSION
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
stage=$1 version=$2
export Ring3Package=true
failed() { echo "package: $1" >&2; exit 70; }

"$root/src/Ring3.Cli/build.sh"
[ ! -e "$root/artifacts/native/unavailable" ] || failed "ring3 cannot be compiled ahead of time: $(cat "$root/artifacts/native/unavailable")"
"$root/src/Ring3.DevKvm/native/build.sh"

install -d "$stage/bin" "$stage/lib/ring3" "$stage/share/man/man1" "$stage/share/doc/ring3"
install -m 755 "$root/artifacts/native/ring3" "$stage/bin/ring3"
for program in ring3-exec ring3-direct ring3-selftest; do install -m 755 "$root/artifacts/devkvm/$program" "$stage/lib/ring3/"; done
for library in libring3.so libring3-core.so; do install -m 644 "$root/artifacts/devkvm/$library" "$stage/lib/ring3/"; done
# What debuggers need stays with whoever built it.
strip --strip-unneeded --remove-section=.comment --remove-section=.gnu_debuglink "$stage"/bin/* "$stage"/lib/ring3/*
ln -s ../lib/ring3/ring3-exec "$stage/bin/ring3-exec"

ring3=$stage/bin/ring3
[ "$("$ring3" --version)" = "$version" ] || failed "ring3 says it is $("$ring3" --version), not $version"
date=$(date -u -d "@$SOURCE_DATE_EPOCH" +%F)
"$ring3" manual --date "$date" >"$stage/share/man/man1/ring3.1"
# A page for every command: those that the page of ring3 itself refers to.
commands=$(sed -n 's/^\\fBring3\\-\([a-z]*\)\\fR(1).*/\1/p' "$stage/share/man/man1/ring3.1")
[ -n "$commands" ] || failed "ring3(1) refers to no other page"
for command in $commands; do "$ring3" manual "$command" --date "$date" >"$stage/share/man/man1/ring3-$command.1"; done
install -d "$stage/share/bash-completion/completions" "$stage/share/zsh/site-functions" "$stage/share/fish/vendor_completions.d"
"$ring3" completion bash >"$stage/share/bash-completion/completions/ring3"
"$ring3" completion zsh >"$stage/share/zsh/site-functions/_ring3"
"$ring3" completion fish >"$stage/share/fish/vendor_completions.d/ring3.fish"

doc=$stage/share/doc/ring3
install -m 644 "$root/LICENSE" "$root/README.md" "$root/CHANGELOG.md" "$doc/"
for page in cli devkvm install ci; do install -m 644 "$root/docs/$page.md" "$doc/"; done
unset Ring3Package
dotnet run "$root/packaging/inventory.cs" -- "$doc" "$version" "$SOURCE_DATE_EPOCH" "$root/LICENSE" \
    "$root/artifacts/obj/Ring3.Cli.Native/project.assets.json" "$root/artifacts/obj/Ring3.DevKvm.Native/project.assets.json"
