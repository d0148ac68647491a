# shellcheck shell=bash
# shellcheck disable=SC2154 # set by tests/package/whole.sh
# The image of packaging/Containerfile, built on a bookworm of mmdebstrap instead of a registry's, and run as a pod runs it: sourced by tests/package/whole.sh.
store=$root/artifacts/package-image
stores=(--root "$store/store" --runroot "$store/run" --storage-driver vfs)
# container LIMIT OPTION... IMAGE ARGUMENT...: crun wants one kind of cgroups, and no rights that this container may not have.
container() (
    limit=$1
    shift
    # shellcheck disable=SC2016 # the inner shell's own
    exec timeout 120 unshare --mount --propagation private bash -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec podman "$@"' bash "${stores[@]}" --cgroup-manager cgroupfs --runtime crun run --rm \
        --read-only --cap-drop all --security-opt no-new-privileges --network none --ulimit nofile=1024:1024 --ulimit nproc=4096:4096 --memory "$limit" "$@"
)
if [ "$(id -u)" != 0 ]; then
    verdict package-image 4 "needs root"
elif ! { install podman podman && install buildah buildah && install crun crun; } >"$package/install.log" 2>&1; then
    verdict package-image 4 "$(tail -n 1 "$package/install.log")"
elif ! system bookworm; then
    verdict package-image 4 "$why"
else
    rm -rf "$store"
    mkdir -p "$store/scratch"
    chmod 1777 "$store/scratch"
    tar -C "$tree" --exclude='./opt/*' --exclude=./home/user/.cache --exclude=./made -c . | podman "${stores[@]}" import - docker.io/library/debian:12-slim >"$package/image.log" 2>&1 &&
        buildah "${stores[@]}" bud --isolation chroot --network host --pull=never -t ring3 -f "$root/packaging/Containerfile" "$packages" >>"$package/image.log" 2>&1
    verdict package-image-build $? "$(tail -n 1 "$package/image.log")"
    image=localhost/ring3
    if ! container 448m --entrypoint /bin/true $image >"$package/image.log" 2>&1; then
        verdict package-image 4 "no container runs here: $(tail -n 1 "$package/image.log")"
    else
        # shellcheck disable=SC2016 # the container's own
        container 448m --entrypoint /bin/sh $image -c '! touch /x 2>/dev/null && [ "$(id -u)" = 10001 ] && grep -q "^CapEff:.0*$" /proc/self/status && grep -q "^Seccomp:.2" /proc/self/status && ! unshare --mount true 2>/dev/null' >"$package/image.log" 2>&1
        verdict package-image-itself $? "the container is not restricted: $(tail -n 1 "$package/image.log")"
        container 448m $image doctor >"$package/image.log" 2>&1 && grep -q '^self-test *ok' "$package/image.log" && grep -q '^memory *ok *448 MiB.*limit of this container' "$package/image.log"
        verdict package-image-doctor $? "$(grep -m 1 -E ' no |^memory' "$package/image.log")"
        container 448m -v "$store/scratch:/scratch" $image boot --memory 512M --resident 256M --resident-dir /scratch --exec 'dd if=/dev/zero of=/fill bs=1M count=200 2>/dev/null; stat -c %s /fill' >"$package/image.log" 2>&1
        status=$?
        [ $status -eq 0 ] && grep -qx 209715200 <(tr -d '\r' <"$package/image.log")
        verdict package-image-resident $? "status $status: $(tail -n 1 "$package/image.log")"
        # Without a size the guest is as large as the limit leaves; one that does not fit is refused.
        container 384m $image boot --exec 'dd if=/dev/zero of=/fill bs=1M count=1000 2>/dev/null; grep MemTotal /proc/meminfo' >"$package/image.log" 2>&1
        status=$?
        [ $status -eq 0 ] && grep -qE '^MemTotal: +2[0-9]{5} kB' "$package/image.log"
        verdict package-image-fits $? "status $status: $(tail -n 1 "$package/image.log")"
        one_line package-image-too-large 71 '^ring3: the memory limit of this container, 384 MiB, leaves 256 MiB for a guest: --memory 256M' container 384m $image boot --memory 512M --exec true
        one_line package-image-too-small 71 '^ring3: the memory limit of this container, 160 MiB, leaves 32 MiB for a guest: too little' container 160m $image boot --exec true
    fi
    podman "${stores[@]}" rmi --all --force >/dev/null 2>&1
    rm -rf "$store"
fi
