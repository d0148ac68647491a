# shellcheck shell=bash
# Keeps the real /dev/kvm, if any, from the selftests: sourced.

# away COMMAND...: runs it where /dev/kvm is /dev/null.
away() {
    if [ ! -e /dev/kvm ]; then
        "$@"
    elif [ "$(id -u)" = 0 ]; then
        unshare -m sh -c 'mount --bind /dev/null /dev/kvm && exec "$@"' sh "$@"
    elif [ ! -r /dev/kvm ] && [ ! -w /dev/kvm ]; then
        "$@"
    else
        unshare -rm sh -c 'mount --bind /dev/null /dev/kvm && exec "$@"' sh "$@"
    fi
}
