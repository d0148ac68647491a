#!/usr/bin/env bash
# Prints the directory of the built KVM selftests of Debian's linux-source-6.12. They are built once per package version, in the user's cache and from a pruned copy of the source;
# nothing of them enters this tree.
# usage: build.sh    status 0 with the path; 4 with a reason on standard error when the source cannot be had
set -euo pipefail
package=linux-source-6.12
here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/ring3/selftests
installed=/usr/src/$package.tar.xz

if [ -f "$installed" ]; then
    version=$(dpkg-query -W -f '${Version}' $package 2>/dev/null || stat -c %Y "$installed")
elif deb=$("$here/../guest/fetch.sh" amd64 $package 2>/dev/null); then
    version=$(dpkg-deb -f "$deb" Version)
else
    # Without a network the newest earlier build serves.
    built=$(find "$cache" -mindepth 2 -maxdepth 2 -name .built 2>/dev/null | sort -V | tail -1)
    [ -n "$built" ] || { echo "no $package installed, none in the cache, and no network to fetch it" >&2; exit 4; }
    dirname "$built"
    exit 0
fi

bin=$cache/$version
[ -f "$bin/.built" ] && { echo "$bin"; exit 0; }
for tool in gcc make xz; do
    command -v $tool >/dev/null || { echo "$tool is missing" >&2; exit 4; }
done

# One builder at a time; whoever waited finds it done.
mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9
[ -f "$bin/.built" ] && { echo "$bin"; exit 0; }
source=$cache/source
rm -rf "$source" "$bin"
mkdir -p "$source" "$bin"
{
    if [ -f "$installed" ]; then cat "$installed"; else dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$package.tar.xz"; fi
} | xz -dc -T2 | tar -x -C "$source" --strip-components=1 --wildcards '*/Makefile' '*/Kbuild' '*/Kbuild.include' "$package/scripts" "$package/include" "$package/arch/x86" "$package/tools/arch/x86" \
    "$package/tools/include" "$package/tools/scripts" "$package/tools/build" "$package/tools/testing/selftests/*.h" "$package/tools/testing/selftests/*.mk" "$package/tools/testing/selftests/kvm" \
    "$package/tools/lib" "$package/tools/testing/selftests/rseq"
log=$cache/build.log
if ! { make -C "$source" -j2 headers && make -C "$source/tools/testing/selftests/kvm" -j2 -k; } >"$log" 2>&1; then
    # With -k the rest is there; the number of tests is checked by whoever runs them.
    echo "build.sh: some selftests did not build: $log" >&2
fi
(cd "$source/tools/testing/selftests/kvm" && find . -type f -perm -u+x ! -name '*.sh' ! -name '*.py' -exec cp --parents -t "$bin" {} +)
# The exported headers serve the check of the ABI structures.
cp -r "$source/usr/include" "$bin/include" || true
rm -rf "$source"
[ -x "$bin/guest_print_test" ] || { tail -n 5 "$log" >&2; rm -rf "$bin"; exit 1; }
touch "$bin/.built"
echo "$bin"
