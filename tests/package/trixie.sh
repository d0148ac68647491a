# shellcheck shell=bash
# shellcheck disable=SC2154 # set by tests/package/whole.sh
# Recipes of docs/ci.md whose programs Debian 13 has: sourced by tests/package/whole.sh.

# job NAME STATUS PACKAGES LINE: the recipe in a system with PACKAGES, as an ordinary user; it ends with STATUS, and LINE is part of a line that it prints.
job() {
    local name=$1 expected=$2 line=$4 status
    if ! system trixie "$3"; then
        verdict "package-ci-$name" 4 "$why"
        return
    fi
    chmod -f a+r "$tree"/boot/*
    mkdir -p "$tree/opt/job" "$package/scratch"
    chmod 1777 "$package/scratch"
    cp "$root/packaging/ci/setup.sh" "$tree/opt/job/"
    cp "$tarball" "$tree/opt/job/ring3.tar.gz"
    # shellcheck disable=SC2016 # the job's own
    { echo 'set -euo pipefail; cd; environment=$(/opt/job/setup.sh /opt/job/ring3.tar.gz) && eval "$environment"'
      recipe "$name"; } >"$tree/opt/job/$name"
    RING3_SCRATCH=$package/scratch inside user env MIRROR=http://deb.debian.org/debian timeout 900 bash "/opt/job/$name" >"$package/ci-$name.log" 2>&1
    status=$?
    [ "$(wc -l <"$tree/opt/job/$name")" -gt 1 ] && [ $status -eq "$expected" ] && grep -q "$line" <(tr -d '\r' <"$package/ci-$name.log")
    verdict "package-ci-$name" $? "status $status: $(tail -n 1 "$package/ci-$name.log")"
}

# A guest that has this system's root. Its init wants iproute2 and systemd-sysv.
job virtme-ng 3 virtme-ng,qemu-system-x86,virtiofsd,busybox-static,iproute2,systemd-sysv,linux-image-cloud-amd64 '^kvm-clock$'
job mkosi 0 mkosi,qemu-system-x86,ovmf,uidmap,ca-certificates 'cat\[[0-9]*\]: kvm-clock$'
