# shellcheck shell=bash
# Debian packages that the tests and benchmarks need: sourced with root set.

# install PACKAGE COMMAND: makes sure that COMMAND exists, installing Debian's PACKAGE when allowed to; else says what to do, and fails.
updated=
install() {
    command -v "$2" >/dev/null 2>&1 && return 0
    mkdir -p "$root/artifacts"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        [ -n "$updated" ] || { apt-get update -qq >/dev/null 2>&1; updated=1; }
        apt-get install -y -qq --no-install-recommends "$1" >"$root/artifacts/apt-$1.log" 2>&1 && return 0
    fi
    echo "$(basename "$0"): needs Debian package $1: run 'apt-get install $1' as root" >&2
    return 1
}
