# shellcheck shell=bash
# One rule a program (tests/facts/fact.h), under Ring3 and under this machine's /dev/kvm where one can be believed. Sourced by ./test, which provides verdict, results and root.
"$root/src/Ring3.DevKvm/native/build.sh" || verdict facts-build 1 "artifacts/devkvm-build.log"
facts=$results/facts
mkdir -p "$facts"

# Compiles what is older than its source, on all processors.
printf '%s\n' "$root"/tests/facts/*.c | xargs -P "$(nproc)" -I{} sh -c '
    name=$(basename "$1" .c)
    [ "$2/$name" -nt "$1" ] && [ "$2/$name" -nt "$(dirname "$1")/fact.h" ] && [ "$2/$name" -nt "$(dirname "$1")/v86.h" ] && exit 0
    rm -f "$2/$name"
    gcc -std=gnu11 -O1 -g -Wall -Wextra -Werror -o "$2/$name" "$1" >"$2/$name.log" 2>&1' sh {} "$facts"

# What the kernel's /dev/kvm is: hardware (kvm_intel, kvm_amd), other (a KVM without either), or nothing that runs a guest.
kernel_kvm=
if [ -w /dev/kvm ] && FACT_ON=other FACT_ROUNDS=0 timeout 20 "$facts/a-guest-runs" >/dev/null 2>&1; then
    kernel_kvm=other
    if [ -e /sys/module/kvm_intel ] || [ -e /sys/module/kvm_amd ]; then kernel_kvm=hardware; fi
fi
[ -n "$kernel_kvm" ] || verdict facts-on-kernel 4 "no /dev/kvm that runs a guest"

for source in "$root"/tests/facts/*.c; do
    name=$(basename "$source" .c)
    if [ ! -x "$facts/$name" ]; then
        verdict "fact-$name" 1 "does not compile: artifacts/test/facts/$name.log"
        continue
    fi
    FACT_ON=ring3 timeout -k 5 60 "$root/artifacts/devkvm/ring3-exec" "$facts/$name" >"$facts/$name.log" 2>&1
    verdict "fact-$name" $? "status $?: $(tail -n 1 "$facts/$name.log")"
    [ -n "$kernel_kvm" ] || continue
    FACT_ON=$kernel_kvm FACT_MS=100 timeout -k 5 60 "$facts/$name" >"$facts/$name.kernel.log" 2>&1
    status=$?
    # An older kernel may not know the rule yet.
    if [ $status -ne 0 ] && [ $status -ne 4 ] && [ "$(printf '%s\n' 6.12 "$(uname -r)" | sort -V | head -n 1)" != 6.12 ]; then
        verdict "fact-$name-on-kernel" 4 "Linux $(uname -r) is older than 6.12: $(tail -n 1 "$facts/$name.kernel.log")"
    else
        verdict "fact-$name-on-kernel" $status "$(tail -n 1 "$facts/$name.kernel.log")"
    fi
done

# The same random calls on both. The seed rotates with the day unless SEED is set.
compare=$root/tests/facts/compare
if [ -z "$kernel_kvm" ]; then
    verdict facts-compare 4 "no /dev/kvm to compare with"
elif ! gcc -std=gnu11 -O1 -g -Wall -Wextra -Werror -o "$facts/ioctls" "$compare/ioctls.c" >"$facts/ioctls.log" 2>&1; then
    verdict facts-compare 1 "does not compile: artifacts/test/facts/ioctls.log"
else
    smm=$("$facts/ioctls" smm) seed=${SEED:-$(date +%Y%m%d)} blocks=400
    # A kernel may need a tenth of a second a machine, and more beside other work: its limit is only there for one that hangs.
    timeout 300 "$facts/ioctls" "$seed" $blocks "$smm" >"$facts/compare.kernel" 2>&1 &&
        timeout 60 "$root/artifacts/devkvm/ring3-exec" "$facts/ioctls" "$seed" $blocks "$smm" >"$facts/compare.ring3" 2>&1
    status=$?
    # Each difference, with the reason where there is one.
    paste -d'|' "$facts/compare.kernel" "$facts/compare.ring3" | awk -v explained="$compare/explained.txt" -f "$compare/compare.awk" >"$facts/compare.differences"
    unexplained=$(grep -c 'NOT EXPLAINED$' "$facts/compare.differences")
    # Kernels differ among themselves: what one of them does otherwise in a corner is to be looked at, and is no failure.
    [ $status -eq 0 ] && [ -s "$facts/compare.ring3" ] && [ "$unexplained" -le $((blocks / 50)) ]
    verdict "facts-compare ($blocks machines, seed $seed)" $? "status $status, $unexplained differences that nothing explains: artifacts/test/facts/compare.differences"
fi
