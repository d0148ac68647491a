#!/usr/bin/env bash
# Packs STAGE as a Debian package.
# usage: deb.sh STAGE VERSION OUT
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
stage=$1 version=$2 out=$3
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree"
mkdir -p "$tree/usr" "$tree/DEBIAN"
cp -a "$stage/." "$tree/usr"
doc=$tree/usr/share/doc/ring3
mkdir "$tree/usr/share/zsh/vendor-completions"
mv "$tree/usr/share/zsh/site-functions/_ring3" "$tree/usr/share/zsh/vendor-completions/"
rmdir "$tree/usr/share/zsh/site-functions"

gzip -n -9 "$tree"/usr/share/man/man1/*.1
{
    echo "ring3 ($version) unstable; urgency=medium"
    echo
    echo "  * Release $version: see CHANGELOG.md.gz."
    echo
    echo " -- The Ring3 authors <ring3@localhost>  $(date -u -d "@$SOURCE_DATE_EPOCH" -R)"
} | gzip -n -9 >"$doc/changelog.gz"
gzip -n -9 "$doc/CHANGELOG.md"
{
    cat "$here/debian/copyright"
    sed -n '/^Permission/,$s/^$/./p;/^Permission/,$s/^\(..*\)$/\1/p' "$doc/LICENSE" | sed 's/^/ /'
} >"$doc/copyright"
rm "$doc/LICENSE"
install -d "$tree/usr/share/lintian/overrides"
install -m 644 "$here/debian/lintian-overrides" "$tree/usr/share/lintian/overrides/ring3"

# The newest symbol version of the C library that a file asks for: what it needs to load.
glibc=$(objdump -T "$tree"/usr/bin/ring3 "$tree"/usr/lib/ring3/* | grep -o 'GLIBC_2\.[0-9]*' | sort -uV | tail -n 1)
size=$(find "$tree/usr" -type f -printf '%s\n' | awk '{ n += int(($1 + 1023) / 1024) } END { print n }')
sed -e "s/@VERSION@/$version/" -e "s/@GLIBC@/${glibc#GLIBC_}/" -e "s/@SIZE@/$size/" "$here/debian/control" >"$tree/DEBIAN/control"
(cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) >"$tree/DEBIAN/md5sums"
chmod -R u+rw,go=u-w "$tree"
find "$tree" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zxz --build "$tree" "$out/ring3_${version}_amd64.deb" >/dev/null
