#!/usr/bin/env bash
# Makes Ring3 the /dev/kvm of a CI job: unpacks a tarball, checks that it works here, and tells the following steps.
# usage: setup.sh [--no-preload] TARBALL [SHA256]      TARBALL: a file or a URL
# On GitHub the steps that follow get it by $GITHUB_ENV and $GITHUB_PATH. Elsewhere: eval "$(setup.sh TARBALL)"
set -euo pipefail
fail() { echo "ring3: $2" >&2; exit "$1"; }
preload=1
if [ "${1:-}" = --no-preload ]; then preload=; shift; fi
case $# in 1 | 2) ;; *) fail 64 "usage: setup.sh [--no-preload] TARBALL [SHA256]" ;; esac
tarball=$1 sum=${2:-}
[ "$(uname -sm)" = "Linux x86_64" ] || fail 69 "is for x86-64 Linux, not for $(uname -sm)"

home=${RING3_HOME:-${RUNNER_TOOL_CACHE:-${HOME:-/nonexistent}/.local/share}/ring3}
# Unpacked there as well: /tmp may be small, on another disk, or not writable.
{ mkdir -p "$home" && work=$(mktemp -d "$home/.setup.XXXXXX"); } 2>/dev/null || fail 73 "cannot write to $home; set RING3_HOME"
trap 'rm -rf "$work"' EXIT
case $tarball in
    https://* | http://*)
        command -v curl >/dev/null || fail 66 "needs curl to fetch $tarball"
        curl --fail --silent --show-error --location --retry 3 -o "$work/ring3.tar.gz" "$tarball" 2>"$work/curl" || fail 66 "cannot fetch $tarball: $(tail -n 1 "$work/curl")"
        tarball=$work/ring3.tar.gz ;;
    *) [ -r "$tarball" ] || fail 66 "cannot read $tarball" ;;
esac
if [ -n "$sum" ]; then
    [ "$(sha256sum <"$tarball" | cut -d' ' -f1)" = "$sum" ] || fail 65 "$1 does not have the SHA-256 $sum"
fi
tar -C "$work" --no-same-owner -xzf "$tarball" 2>"$work/tar" || fail 65 "$1 is not a tarball of Ring3: $(head -n 1 "$work/tar")"
tree=$(find "$work" -mindepth 1 -maxdepth 1 -type d -name 'ring3-*-linux-x86_64' -print -quit)
[ -n "$tree" ] || fail 65 "$1 is not a tarball of Ring3"
place=$home/$(basename "$tree")
rm -rf "$place"
mv "$tree" "$place"

if ! "$place/bin/ring3" doctor >"$work/doctor" 2>&1; then
    cat "$work/doctor" >&2
    fail 70 "does not work here: the lines with 'no' say why"
fi
cat "$work/doctor" >&2
# Where scripts ask: kvm-ok (cpu-checker) and virt-host-validate look at the processor's flags, which are the host's.
mkdir -p "$place/ci"
cat >"$place/ci/kvm-ok" <<'PROBE'
#!/bin/sh
# Answers as kvm-ok does, by what Ring3's own test says.
if ring3 doctor | grep -q '^self-test *ok'; then
    echo "INFO: /dev/kvm exists"
    echo "KVM acceleration can be used"
else
    echo "INFO: Ring3 does not work here: see 'ring3 doctor'"
    echo "KVM acceleration can NOT be used"
    exit 1
fi
PROBE
chmod 755 "$place/ci/kvm-ok"

if [ -n "${GITHUB_ENV:-}" ]; then
    printf '%s\n' "$place/ci" "$place/bin" >>"$GITHUB_PATH"
    echo "RING3_HOME=$home" >>"$GITHUB_ENV"
    if [ -n "$preload" ]; then echo "LD_PRELOAD=$place/lib/ring3/libring3.so${LD_PRELOAD:+:$LD_PRELOAD}" >>"$GITHUB_ENV"; fi
else
    # shellcheck disable=SC2016 # what the caller's shell expands
    printf 'export PATH=%q:"$PATH" RING3_HOME=%q\n' "$place/bin:$place/ci" "$home"
    # shellcheck disable=SC2016 # likewise
    if [ -n "$preload" ]; then printf 'export LD_PRELOAD=%q"${LD_PRELOAD:+:$LD_PRELOAD}"\n' "$place/lib/ring3/libring3.so"; fi
fi
