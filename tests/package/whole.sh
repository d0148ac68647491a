# shellcheck shell=bash
# shellcheck disable=SC2154 # set by tests/suites/package.sh
# All packages and fresh Debian systems that they are installed in: sourced by tests/suites/package.sh, which says what of it has its turn.

# wants PART: it is to run. Else the reason is printed.
wants() {
    [ -z "$whole" ] && [ "$part" != "$1" ] || return 0
    verdict "package-$1" 4 "$part has its turn; './test package' runs all, RING3_PACKAGE_PART=$1 this"
    return 1
}

built=build
[ -z "$whole" ] || built=reproducible
"$root/package" ${whole:+--check} >"$package/build.log" 2>&1
verdict "package-$built" $? "$(tail -n 1 "$package/build.log")"
packages=$root/artifacts/packages
tarball=$packages/ring3-$package_version-linux-x86_64.tar.gz deb=$packages/ring3_${package_version}_amd64.deb

size=$(stat -c %s "$tarball" 2>/dev/null || echo 0)
[ "$size" -gt 0 ] && [ "$size" -le $((40 << 20)) ]
verdict package-size $? "the tarball has $size bytes"

# What is linked in has a licence text, and the other way round.
rm -rf "$package/tree"
mkdir "$package/tree"
tar -C "$package/tree" --strip-components=1 -xzf "$tarball"
doc=$package/tree/share/doc/ring3
if install jq jq >"$package/install.log" 2>&1; then
    jq -r '.packages[1:][].name' "$doc/sbom.spdx.json" 2>"$package/sbom.log" | sort >"$package/sbom.names"
    (cd "$doc/licenses" && ls) | sed 's/\.txt$//' | sort | diff "$package/sbom.names" - >"$package/sbom.log" 2>&1 &&
        grep -qx Iced "$package/sbom.names" && grep -q NativeAOT "$package/sbom.names" &&
        jq -e '.spdxVersion == "SPDX-2.3" and ([.packages[] | select(.SPDXID and .versionInfo and .downloadLocation)] | length) == (.packages | length)' "$doc/sbom.spdx.json" >>"$package/sbom.log" 2>&1
    verdict package-sbom $? "$(head -n 1 "$package/sbom.log")"
else
    verdict package-sbom 4 "$(tail -n 1 "$package/install.log")"
fi

# Nothing but the C library, and no newer one than said.
ldd "$package/tree/bin/ring3" "$package/tree/lib/ring3/libring3-core.so" 2>&1 | grep -E '=>' | grep -vE 'lib(c|m|dl|pthread|rt)\.so|ring3' >"$package/ldd.log"
[ ! -s "$package/ldd.log" ]
verdict package-libraries $? "$(head -n 1 "$package/ldd.log")"

# The runtime's cryptography ends the process where OpenSSL is missing: it is not in what clients load (src/BannedSymbols.txt). In ring3 SharpCompress brings it, for formats that
# ring3 does not read; below it runs where there is none.
! grep -qa 'No usable version of libssl' "$package/tree/lib/ring3/libring3-core.so"
verdict package-no-openssl $? "libring3-core.so loads libssl"

if install lintian lintian >"$package/install.log" 2>&1; then
    lintian --fail-on error --allow-root "$deb" >"$package/lintian.log" 2>&1
    verdict package-lintian $? "$(grep -m 1 '^E:' "$package/lintian.log")"
else
    verdict package-lintian 4 "$(tail -n 1 "$package/install.log")"
fi

# one_line NAME STATUS PATTERN COMMAND...: it ends with the status, and one line of its own on standard error that matches.
one_line() {
    local name=$1 expected=$2 pattern=$3 status
    shift 3
    "$@" >"$package/$name.out" 2>"$package/$name.err" </dev/null
    status=$?
    [ $status -eq "$expected" ] && [ "$(grep -c . "$package/$name.err")" -eq 1 ] && grep -qE -- "$pattern" "$package/$name.err"
    verdict "$name" $? "status $status: $(head -n 1 "$package/$name.err")"
}

# system SUITE [PACKAGE]: a Debian system with the essential packages, apt and PACKAGE, made once, as $tree; 1 and a reason in $why when it cannot be.
system() {
    tree=$root/artifacts/package-systems/$1${2:+-$2}
    why=
    if [ "$(id -u)" != 0 ]; then why="needs root"; return 1; fi
    if [ ! -e "$tree/made" ]; then
        install mmdebstrap mmdebstrap >"$package/install.log" 2>&1 || { why=$(tail -n 1 "$package/install.log"); return 1; }
        rm -rf "$tree"
        mkdir -p "$(dirname "$tree")"
        mmdebstrap --quiet --variant=minbase ${2:+"--include=$2"} "$1" "$tree" http://deb.debian.org/debian >"$package/$1.log" 2>&1 || { why="mmdebstrap: $(tail -n 1 "$package/$1.log")"; rm -rf "$tree"; return 1; }
        chroot "$tree" useradd -m user
        touch "$tree/made"
    fi
    cp /etc/resolv.conf "$tree/etc/resolv.conf"
}
inside() { "$root/tests/package/root.sh" "$tree" "$@"; }
# fresh: a copy of it that this run alone has used, as $tree.
fresh() {
    why="cannot copy $tree"
    rm -rf "$tree-used" && cp -a "$tree" "$tree-used" && tree=$tree-used
}

# shellcheck source=/dev/null
! wants refusals || . "$root/tests/package/refusals.sh"

# use NAME RING3: what an ordinary user does with an installed one.
use() {
    local name=$1 ring3=$2 status
    inside user "$ring3" doctor >"$package/$name-doctor.log" 2>&1
    status=$?
    [ $status -eq 0 ] && grep -q '^self-test *ok' "$package/$name-doctor.log" && ! grep -q gcc "$package/$name-doctor.log"
    verdict "$name-doctor" $? "status $status: $(grep ' no ' "$package/$name-doctor.log" | head -n 1)"
    inside user "$ring3" boot --exec 'uname -a' >"$package/$name-boot.log" 2>"$package/$name-boot.err"
    status=$?
    [ $status -eq 0 ] && grep -qE '^Linux .*cloud-amd64.*x86_64' <(tr -d '\r' <"$package/$name-boot.log") && { [ -n "${cached:-}" ] || grep -q 'downloading Debian package linux-image' "$package/$name-boot.err"; }
    verdict "$name-boot" $? "status $status: $(tail -n 1 "$package/$name-boot.err")"
    cached=1
    # From the snapshot that the last one left, and not from it.
    find "$tree/home/user/.cache/ring3/warm" -name '*.snapshot' 2>/dev/null | grep -q .
    verdict "$name-snapshot" $? "there is none"
    for start in '' --cold; do
        # shellcheck disable=SC2086 # no word without it
        inside user "$ring3" boot $start --exec 'uname -r; exit 3' >"$package/$name-again.log" 2>"$package/$name-again.err"
        status=$?
        [ $status -eq 3 ] && grep -q cloud-amd64 "$package/$name-again.log"
        verdict "$name-boot${start:--warm}" $? "status $status: $(tail -n 1 "$package/$name-again.err")"
    done
}

# shell NAME RING3: QEMU with a Linux guest, to its shell.
shell() {
    cp "$root/tests/package/shell.sh" "$tree/opt/shell.sh"
    inside user /opt/shell.sh "$2" >"$package/$1-qemu.log" 2>&1 && grep -q '^shell of .*cloud-amd64 on kvm-clock, 2 processors$' <(tr -d '\r' <"$package/$1-qemu.log")
    verdict "$1-qemu" $? "$(tail -n 1 "$package/$1-qemu.log")"
}

# places NAME: an ordinary user may write to /tmp, or to his home, or to neither.
places() {
    local name=$1 places status writable
    for places in tmp home both; do
        writable=1
        [ $places != both ] || writable=0
        for command in 'boot --exec' 'boot --cold --exec' 'run -- sh -c'; do
            # The helper of a share is met at a socket, which has to be somewhere.
            case $places:$command in tmp:run* | both:run*) continue ;; esac
            ( # The cache of the last boots is there, and is only read.
                [ $places = tmp ] || export RING3_READ_ONLY=1
                [ $places = home ] || export RING3_TMP_MODE=755
                # shellcheck disable=SC2016,SC2086 # the inner shell's own; a command of some words
                inside user sh -c 'for place in "$HOME" /tmp; do ! touch "$place/x" 2>/dev/null || echo "$place can be written to"; done; exec "$@"' sh ring3 $command 'uname -r; exit 3'
            ) >"$package/$name-$places.log" 2>"$package/$name-$places.err"
            status=$?
            [ $status -eq 3 ] && [ ! -s "$package/$name-$places.err" ] && grep -q cloud-amd64 "$package/$name-$places.log" && [ "$(grep -c 'can be written' "$package/$name-$places.log")" = $writable ]
            verdict "$name-no-$places-${command// /-}" $? "status $status: $(tail -n 1 "$package/$name-$places.err")"
        done
    done
    RING3_READ_ONLY=1 RING3_TMP_MODE=755 inside user ring3 exec /usr/lib/ring3/ring3-selftest >"$package/$name-places.log" 2>&1 && grep -q 'signals arrive' "$package/$name-places.log"
    verdict "$name-no-both-exec" $? "$(tail -n 1 "$package/$name-places.log")"
    RING3_TMP_MODE=755 one_line "$name-no-tmp-run" 66 '^ring3: --share /: virtiofsd cannot be started: cannot write to /tmp/; set TMPDIR$' inside user ring3 run -- true
    # shellcheck disable=SC2016 # the inner shell's own
    RING3_TMP_MODE=755 inside user sh -c 'TMPDIR=$HOME exec ring3 run -- uname -r' >"$package/$name-places.log" 2>"$package/$name-places.err" && grep -q cloud-amd64 "$package/$name-places.log" && [ ! -s "$package/$name-places.err" ]
    verdict "$name-no-tmp-run-elsewhere" $? "$(tail -n 1 "$package/$name-places.err")"
    RING3_TMP_MODE=755 one_line "$name-no-tmp-name" 66 '^ring3: the directory for control sockets, /tmp/ring3-[0-9]*: ' inside user ring3 boot --name vm1 --exec true
    # shellcheck disable=SC2016 # the inner shell's own
    RING3_READ_ONLY=1 one_line "$name-no-home-empty" 66 '^ring3: cannot write to the cache directory /home/user/none/ring3: ' inside user sh -c 'XDG_CACHE_HOME=$HOME/none ring3 boot --exec true'
}

# sudos NAME: what it drops, with the real one.
sudos() {
    inside root apt-get install -y -qq --no-install-recommends sudo >"$package/$1-sudo.log" 2>&1 && echo 'user ALL=(ALL) NOPASSWD: ALL' >"$tree/etc/sudoers.d/user"
    verdict "$1-sudo-install" $? "$(tail -n 1 "$package/$1-sudo.log")"
    one_line "$1-sudo" 126 "^ring3: .*/sudo: is set-uid or set-gid, so the system ignores LD_PRELOAD for it" inside user ring3 exec sudo true
    inside user sudo ring3 exec /usr/lib/ring3/ring3-selftest >"$package/$1-sudo.log" 2>&1 && grep -q 'signals arrive' "$package/$1-sudo.log" &&
        inside user ring3 exec sh -c 'test -w /dev/kvm && ! sudo test -e /dev/kvm' >"$package/$1-sudo.log" 2>&1 && inside user ring3 doctor >"$package/$1-sudo.log" 2>&1 && grep -q '^sudo .*drops LD_PRELOAD' "$package/$1-sudo.log"
    verdict "$1-sudo-first" $? "$(tail -n 1 "$package/$1-sudo.log")"
}

for debian in bookworm trixie; do
    wants $debian || continue
    if ! system $debian || ! fresh; then
        verdict "package-$debian" 4 "$why"
        continue
    fi
    cached=
    cp "$deb" "$tree/root/ring3.deb"
    inside root apt-get install -y -qq /root/ring3.deb >"$package/$debian-install.log" 2>&1
    verdict "package-$debian-install" $? "$(tail -n 1 "$package/$debian-install.log")"
    use "package-$debian-deb" ring3
    [ -n "$(find "$tree/usr/share/bash-completion/completions/ring3" "$tree/usr/share/zsh/vendor-completions/_ring3")" ]
    verdict "package-$debian-completions" $? "not there"
    # With what the package recommends.
    server=virtiofsd
    [ $debian = trixie ] || server=qemu-system-common
    # shellcheck disable=SC2016 # the inner shell's own
    inside root sh -c 'apt-get update -qq && apt-get install -y -qq --no-install-recommends "$1"' sh $server >"$package/$debian-virtiofsd.log" 2>&1
    for user in root user; do
        inside $user ring3 run -- sh -c 'uname -r; id -un; exit 7' >"$package/$debian-run.log" 2>"$package/$debian-run.err"
        status=$?
        [ $status -eq 7 ] && grep -q cloud-amd64 "$package/$debian-run.log" && grep -q "^$user$" "$package/$debian-run.log"
        verdict "package-$debian-run-$user" $? "status $status: $(tail -n 1 "$package/$debian-run.err")"
    done
    inside root dpkg -V ring3 >"$package/$debian-verify.log" 2>&1 && [ ! -s "$package/$debian-verify.log" ]
    verdict "package-$debian-verify" $? "$(head -n 1 "$package/$debian-verify.log")"

    # Bad input.
    one_line "package-$debian-no-network" 66 '^ring3: cannot download Debian package .*; pass --kernel FILE and --initrd FILE$|^ring3: fetching' \
        unshare --net "$root/tests/package/root.sh" "$tree" user sh -c 'XDG_CACHE_HOME=/tmp/none ring3 boot --exec true 2>&1 | grep -vE "^ring3: (fetching|downloading)" >&2; exit 66'
    one_line "package-$debian-read-only-cache" 66 '^ring3: cannot write to the cache directory /proc/ring3: ' inside user env XDG_CACHE_HOME=/proc ring3 boot --exec true
    # A kernel of the user's own needs no network.
    unshare --net "$root/tests/package/root.sh" "$tree" user sh -c 'ring3 boot --kernel ~/.cache/ring3/linux-cloud-amd64/vmlinuz --exec "uname -r"' >"$package/$debian-offline.log" 2>&1
    status=$?
    [ $status -eq 0 ] && grep -q cloud-amd64 "$package/$debian-offline.log"
    verdict "package-$debian-offline-kernel" $? "status $status: $(tail -n 1 "$package/$debian-offline.log")"
    # Nor does one with an initramfs, of whoever has never been in the network.
    # shellcheck disable=SC2016 # the inner shell's own
    unshare --net "$root/tests/package/root.sh" "$tree" user sh -c 'ring3 initramfs -o /tmp/initrd --exec "echo offline >/dev/console" && export XDG_CACHE_HOME=/tmp/none && ring3 boot --kernel ~/.cache/ring3/linux-cloud-amd64/vmlinuz --initrd /tmp/initrd && [ ! -e /tmp/none ]' >"$package/$debian-offline.log" 2>&1
    status=$?
    [ $status -eq 0 ] && grep -q '^offline$' <(tr -d '\r' <"$package/$debian-offline.log")
    verdict "package-$debian-offline-initrd" $? "status $status: $(tail -n 1 "$package/$debian-offline.log")"

    places "package-$debian"
    sudos "package-$debian"
    inside root apt-get install -y -qq --no-install-recommends qemu-system-x86 >"$package/$debian-qemu.log" 2>&1
    shell "package-$debian-deb" ring3

    # The tarball beside it: each is itself, also inside the other.
    tar -C "$tree/opt" -xzf "$tarball"
    other=/opt/ring3-$package_version-linux-x86_64
    for one in deb:/usr:$other tarball:$other:/usr; do
        outer=${one#*:} inner=${one##*:}
        outer=${outer%:*}
        inside user "$outer/bin/ring3" doctor >"$package/$debian-two.log" 2>&1 && grep -q "^libring3-core.so *ok *$outer/lib/ring3/libring3-core.so\$" "$package/$debian-two.log" &&
            inside user "$outer/bin/ring3" exec "$inner/bin/ring3" exec "$inner/lib/ring3/ring3-selftest" >"$package/$debian-two.log" 2>&1 && grep -q 'signals arrive' "$package/$debian-two.log"
        verdict "package-$debian-two-${one%%:*}" $? "$(tail -n 1 "$package/$debian-two.log")"
    done

    inside root apt-get remove -y -qq ring3 >"$package/$debian-remove.log" 2>&1 && [ ! -e "$tree/usr/lib/ring3" ] && [ ! -e "$tree/usr/bin/ring3" ]
    verdict "package-$debian-remove" $? "$(tail -n 1 "$package/$debian-remove.log")"

    use "package-$debian-tarball" "$other/bin/ring3"
    shell "package-$debian-tarball" "$other/bin/ring3"
    rm -rf "$tree"
done

# The oldest Debian: what its compiler links runs on an installed Ring3 elsewhere; there the C library is too old, as the dynamic linker says.
if ! wants bullseye; then
    :
elif system bullseye gcc,libc6-dev; then
    cp "$root/src/Ring3.DevKvm/native/selftest.c" "$root"/src/Ring3.DevKvm/native/*.h "$tree/opt/"
    tar -C "$tree/opt" -xzf "$tarball"
    ! inside user "/opt/ring3-$package_version-linux-x86_64/bin/ring3" --version >"$package/bullseye.log" 2>&1 && grep -q "version .GLIBC_2\.34' not found" "$package/bullseye.log"
    verdict package-bullseye $? "$(head -n 1 "$package/bullseye.log")"
    chroot "$tree" gcc -O2 -o /opt/client /opt/selftest.c -lpthread >"$package/bullseye.log" 2>&1 && cp "$tree/opt/client" "$package/client" && system bookworm && fresh && cp "$package/client" "$tree/opt/" && tar -C "$tree/opt" -xzf "$tarball" &&
        inside user "/opt/ring3-$package_version-linux-x86_64/bin/ring3" exec /opt/client >"$package/bullseye.log" 2>&1 && grep -q 'signals arrive' "$package/bullseye.log"
    verdict package-bullseye-client $? "$(tail -n 1 "$package/bullseye.log")"
    rm -rf "$root/artifacts/package-systems/bookworm-used"
else
    verdict package-bullseye 4 "$why"
fi

# recipe NAME: a script of docs/ci.md.
recipe() { awk -v mark="<!-- test: $1 -->" '$0 == mark { found = 1 } found && /^```sh/ { inside = 1; next } inside && /^```/ { exit } inside' "$root/docs/ci.md"; }

# A CI job: what action.yml and the GitLab snippet do, then the recipes, in a fresh system with QEMU from Debian.
if ! wants ci; then
    :
elif system bookworm qemu-system-x86; then
    mkdir -p "$tree/opt/job"
    cp "$root/packaging/ci/setup.sh" "$tree/opt/job/"
    cp "$tarball" "$tree/opt/job/ring3.tar.gz"
    rm -rf "$tree/home/user/.local" "$tree/home/user/.cache"
    # shellcheck disable=SC2016 # the job's own
    printf '%s\n' 'set -euo pipefail; cd; environment=$(/opt/job/setup.sh /opt/job/ring3.tar.gz) && eval "$environment"' >"$tree/opt/job/environment"
    printf '%s\n' '. /opt/job/environment; sh -c "[ -r /dev/kvm ] && [ -w /dev/kvm ]"; kvm-ok; grep -c . /proc/cpuinfo >/dev/null' >"$tree/opt/job/probe"
    inside user bash /opt/job/probe >"$package/ci-probe.log" 2>&1 && grep -qx 'KVM acceleration can be used' "$package/ci-probe.log"
    verdict package-ci-probe $? "$(tail -n 1 "$package/ci-probe.log")"
    for name in kernel qemu; do
        { echo '. /opt/job/environment'; recipe $name; } >"$tree/opt/job/$name"
        [ "$(wc -l <"$tree/opt/job/$name")" -gt 1 ] && inside user bash /opt/job/$name >"$package/ci-$name.log" 2>&1
        verdict "package-ci-$name" $? "$(tail -n 1 "$package/ci-$name.log")"
    done
    one_line package-ci-sum 65 '^ring3: .* does not have the SHA-256 0000$' inside user /opt/job/setup.sh /opt/job/ring3.tar.gz 0000
    one_line package-ci-tarball 65 '^ring3: .* is not a tarball of Ring3: ' inside user /opt/job/setup.sh /opt/job/probe
    one_line package-ci-home 73 '^ring3: cannot write to /proc/none; set RING3_HOME$' inside user env RING3_HOME=/proc/none /opt/job/setup.sh /opt/job/ring3.tar.gz

    # The steps of action.yml as a runner runs them.
    github=$tree/tmp-github
    rm -rf "$github"
    mkdir -p "$github"
    if python3 -c 'import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))["runs"]["steps"][0]["run"])' "$root/action.yml" >"$github/step" 2>"$package/action.log"; then
        touch "$github/env" "$github/path"
        env -i PATH="$PATH" HOME="$github" RUNNER_TOOL_CACHE="$github/tools" GITHUB_ENV="$github/env" GITHUB_PATH="$github/path" RING3_ACTION="$root" RING3_PACKAGE="$tarball" RING3_SHA256="" RING3_PRELOAD=true RING3_RELEASE=none \
            bash --noprofile --norc -eo pipefail "$github/step" >"$package/action.log" 2>&1 && grep -q "^LD_PRELOAD=$github/tools/ring3/.*/libring3.so$" "$github/env" && [ -x "$(tail -n 1 "$github/path")/ring3" ]
        verdict package-action $? "$(tail -n 1 "$package/action.log")"
    else
        verdict package-action 4 "python3 without yaml: $(tail -n 1 "$package/action.log")"
    fi
    rm -rf "$github"
else
    verdict package-ci 4 "$why"
fi

# libguestfs: its appliance is made of the system's own kernel.
if ! wants guestfs; then
    :
elif system bookworm guestfish,linux-image-cloud-amd64; then
    chmod a+r "$tree"/boot/vmlinuz-*
    mkdir -p "$tree/opt/job"
    cp "$root/packaging/ci/setup.sh" "$tree/opt/job/"
    cp "$tarball" "$tree/opt/job/ring3.tar.gz"
    { # shellcheck disable=SC2016 # the job's own
      printf '%s\n' 'set -euo pipefail; cd; environment=$(/opt/job/setup.sh --no-preload /opt/job/ring3.tar.gz) && eval "$environment"'
      recipe libguestfs; } >"$tree/opt/job/libguestfs"
    inside user bash /opt/job/libguestfs >"$package/ci-libguestfs.log" 2>&1 && grep -q '^world' "$package/ci-libguestfs.log"
    verdict package-ci-libguestfs $? "$(tail -n 1 "$package/ci-libguestfs.log")"
else
    verdict package-ci-libguestfs 4 "$why"
fi

# A container under the restricted pod security standard: no root, no capabilities, a read-only root, the runtime's default seccomp denials, no network, a memory limit.
group=/sys/fs/cgroup/memory/ring3-package-$$
if [ -z "$whole" ] && [ "$part" != ci ]; then
    :
elif ! system bookworm qemu-system-x86; then
    verdict package-pod 4 "$why"
elif ! gcc -O2 -Wall -Wextra -Werror -static -o "$tree/opt/job/restricted" "$root/tests/package/restricted.c" >"$package/restricted.log" 2>&1; then
    verdict package-pod 4 "gcc makes no static programs here: $(head -n 1 "$package/restricted.log")"
else
    limited=
    mkdir -p "$package/scratch"
    chmod 1777 "$package/scratch"
    if mkdir "$group" 2>/dev/null; then
        echo $((448 << 20)) >"$group/memory.limit_in_bytes"
        limited=1
    fi
    # pod COMMAND...: as one.
    pod() (
        [ -z "$limited" ] || echo "$BASHPID" >"$group/cgroup.procs"
        RING3_READ_ONLY=1 RING3_SCRATCH=$package/scratch exec unshare --net "$root/tests/package/root.sh" "$tree" user /opt/job/restricted "$@"
    )
    ring3=$(cd "$tree" && echo home/user/.local/share/ring3/ring3-*/bin/ring3)
    pod sh -c '! touch /var/x 2>/dev/null && grep -q "^CapEff:.0000000000000000" /proc/self/status && grep -q "^Seccomp:.2" /proc/self/status && ! unshare --mount true 2>/dev/null' >"$package/pod-itself.log" 2>&1
    verdict package-pod-itself $? "the container is not restricted: $(tail -n 1 "$package/pod-itself.log")"
    pod "/$ring3" boot --memory 512M --resident 256M --resident-dir /tmp --exec 'uname -a; dd if=/dev/zero of=/fill bs=1M count=200 2>/dev/null; stat -c %s /fill' >"$package/pod.log" 2>"$package/pod.err"
    status=$?
    [ $status -eq 0 ] && grep -q cloud-amd64 "$package/pod.log" && grep -qx 209715200 <(tr -d '\r' <"$package/pod.log")
    verdict "package-pod${limited:+-limited}" $? "status $status: $(tail -n 1 "$package/pod.err")"
    if [ -n "$limited" ]; then
        peak=$(cat "$group/memory.max_usage_in_bytes") failures=$(cat "$group/memory.failcnt")
        echo "package-pod: at most $((peak >> 20)) MiB of 448, $failures times at the limit" | tee "$package/pod.memory"
        rmdir "$group"
    fi
fi

# shellcheck source=/dev/null
! wants image || . "$root/tests/package/image.sh"

# shellcheck source=/dev/null
! wants samples || . "$root/tests/package/samples.sh"
for name in '' s; do
    unzip -l "$packages/Ring3.$package_version.${name}nupkg" 2>/dev/null | grep -q "lib/net10.0/Ring3.Kvm.$([ -n "$name" ] && echo pdb || echo dll)$"
    verdict "package-nuget-${name:+symbols-}layers" $? "Ring3.Kvm is not in the package"
done

# shellcheck source=/dev/null
! wants recipes || . "$root/tests/package/trixie.sh"
