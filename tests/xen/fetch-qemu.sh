#!/usr/bin/env bash
# Unpacks the QEMU that this Debian release's backports offer, and the libraries that it needs and the system lacks, into DIRECTORY/root. apt runs with a
# configuration of its own: the system's sources, lists and packages are read at most. Prints QEMU's version; status 4 with a reason when it cannot be had.
# usage: fetch-qemu.sh DIRECTORY
set -euo pipefail
out=$1
cannot() { echo "$*" >&2; exit 4; }
show() { LD_LIBRARY_PATH=$out/root/usr/lib/x86_64-linux-gnu "$out/root/usr/bin/qemu-system-x86_64" --version | sed -n 's/^QEMU emulator version //p' | grep .; }
[ ! -e "$out/complete" ] || { show; exit; }

command -v apt-get >/dev/null || cannot "no apt on this system"
# shellcheck source=/dev/null
codename=$(. /etc/os-release; echo "${VERSION_CODENAME:-}")
# Where the system itself takes its release from.
mirror=$(apt-get update --print-uris 2>/dev/null | sed -n "s|^'\(.*\)/dists/$codename/InRelease'.*|\1|p" | head -n 1)
[ -n "$mirror" ] || cannot "the system's apt names no mirror of Debian $codename"
rm -rf "$out"
mkdir -p "$out"/{lists/partial,archives/partial,root}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
options=
[ ! -e $keyring ] || options="[signed-by=$keyring] "
printf "deb $options$mirror %s main\n" "$codename" "$codename-backports" >"$out/sources.list"
cp /var/lib/dpkg/status "$out/status"
apt=(-qq -o Dir::Etc::sourcelist="$out/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts=/dev/null
    -o Dir::State="$out" -o Dir::State::lists="$out/lists" -o Dir::State::status="$out/status" -o Dir::Cache="$out" -o Dir::Log="$out" -o APT::Sandbox::User= -o Debug::NoLocking=1
    -o Acquire::Languages=none -o Acquire::Retries=2 -o Acquire::http::Timeout=30)
apt-get "${apt[@]}" update >"$out/log" 2>&1 || cannot "cannot read $codename-backports: $(tail -n 1 "$out/log")"
# With --download-only nothing is installed; what is installed already is not fetched.
apt-get "${apt[@]}" -y --download-only --no-install-recommends -t "$codename-backports" install qemu-system-x86 >>"$out/log" 2>&1 || cannot "cannot fetch qemu-system-x86: $(tail -n 1 "$out/log")"
for deb in "$out"/archives/*.deb; do
    case ${deb##*/} in libc6_*|libc-bin_*) continue ;; esac
    dpkg-deb -x "$deb" "$out/root"
done
[ -x "$out/root/usr/bin/qemu-system-x86_64" ] || cannot "$codename-backports offers no newer QEMU than the one that is installed"
# Option ROMs and firmware come from packages that may be installed already.
for package in ipxe-qemu seabios qemu-system-data; do
    [ -n "$(find "$out/archives" -name "${package}_*.deb")" ] && continue
    dpkg -L "$package" 2>/dev/null | grep -E '^/usr/(share|lib)/' | while read -r file; do
        [ ! -f "$file" ] || install -D -m 644 "$file" "$out/root$file"
    done
done
show >/dev/null || cannot "the fetched QEMU does not start: $(LD_LIBRARY_PATH=$out/root/usr/lib/x86_64-linux-gnu ldd "$out/root/usr/bin/qemu-system-x86_64" | grep 'not found' | head -n 1)"
: >"$out/complete"
show
