#!/usr/bin/env bash
# Prints the path of a Debian package file of this machine's release, fetched once into the user's cache with an apt configuration of its own:
# the system's sources, lists and installed packages are not touched.
# usage: fetch.sh ARCH PACKAGE            path of the fetched package file
#        fetch.sh --kernel ARCH META [SERIES]   name of the newest kernel package that META's release offers, of the series (6.12) when one is given
#                                               (no file is fetched)
#        fetch.sh --newest ARCH REGEX           name of the last package, by version, that matches
set -euo pipefail
kernel=
if [ "$1" = --kernel ]; then kernel=1; shift; fi
newest=
if [ "$1" = --newest ]; then newest=1; shift; fi
arch=$1 package=$2 series=${3:-}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ring3/test/$arch
mkdir -p "$cache/lists/partial" "$cache/archives/partial" "$cache/debs"
touch "$cache/status"
apt=(-qq -o APT::Architecture="$arch" -o APT::Architectures::="$arch" -o Dir::State::lists="$cache/lists" -o Dir::Cache="$cache"
    -o Dir::State::status="$cache/status" -o APT::Sandbox::User= -o Debug::NoLocking=1)
refresh() { [ -n "$(find "$cache/lists" -name '*Packages*' -mmin -600 | head -1)" ] || apt-get "${apt[@]}" update >/dev/null 2>&1 || true; }
if [ -n "$newest" ]; then
    refresh
    apt-cache "${apt[@]}" search --names-only "$package" | cut -d' ' -f1 | sort -V | tail -1 | grep . && exit 0
    echo "fetch.sh: no package like $package ($arch)" >&2
    exit 1
fi
if [ -n "$kernel" ]; then
    # The meta package may name a signed build that is not published yet; any build of the same flavour serves.
    refresh
    flavour=${package#linux-image-}
    pattern='[0-9.]+-[0-9]+'
    [ -z "$series" ] || pattern="${series//./\\.}\\.[0-9]+(\\+deb[0-9]+|-[0-9]+)?"
    apt-cache "${apt[@]}" search --names-only "^linux-image-$pattern-$flavour(-unsigned)?$" | cut -d' ' -f1 | sort -V | tail -1 | grep . && exit 0
    echo "fetch.sh: no kernel package of flavour $flavour ($arch)" >&2
    exit 1
fi
found() { find "$cache/debs" -name "${package}_*.deb" | head -1; }
if [ -z "$(found)" ]; then
    refresh
    (cd "$cache/debs" && apt-get "${apt[@]}" download "$package" >&2)
fi
found | grep . || { echo "fetch.sh: cannot get Debian package $package ($arch)" >&2; exit 1; }
