# shellcheck shell=bash
# shellcheck disable=SC2154 # set by tests/package/whole.sh
# What an unpacked tarball says when it cannot work, or not all of it: sourced by tests/package/whole.sh; the tree is $package/tree.

# A tree that lacks a file, and one of two versions.
mv "$package/tree/lib/ring3/libring3.so" "$package/tree/lib/ring3/moved"
one_line package-missing-library 66 '^ring3: cannot read .*/lib/ring3/libring3\.so: No such file' "$package/tree/bin/ring3" exec true
mv "$package/tree/lib/ring3/moved" "$package/tree/lib/ring3/libring3.so"
mv "$package/tree/lib/ring3/ring3-exec" "$package/tree/lib/ring3/moved"
one_line package-missing-launcher 66 '^ring3: .*/lib/ring3/ring3-exec is missing: install Ring3 again$' "$package/tree/bin/ring3" exec true
printf '#!/bin/sh\necho ring3-exec 0.0.1\n' >"$package/tree/lib/ring3/ring3-exec"
chmod +x "$package/tree/lib/ring3/ring3-exec"
"$package/tree/bin/ring3" doctor >"$package/mixture.log" 2>&1
status=$?
[ $status -ne 0 ] && grep -qE "^ring3-exec +no +.* says 'ring3-exec 0\.0\.1', not 'ring3-exec $package_version': install both from one package" "$package/mixture.log"
verdict package-mixture $? "status $status: $(grep '^ring3-exec' "$package/mixture.log")"
mv "$package/tree/lib/ring3/moved" "$package/tree/lib/ring3/ring3-exec"

# The link to the launcher leads somewhere, and both that way and another to the program are those of this installation.
ln -sf "$package/tree/bin/ring3" "$package/ring3-link"
[ "$("$package/tree/bin/ring3-exec" --version)" = "ring3-exec $package_version" ] &&
    (cd / && "$package/ring3-link" doctor) >"$package/links.log" 2>&1 && grep -q "^libring3.so *ok *$package/tree/lib/ring3/libring3.so" "$package/links.log"
verdict package-links $? "ring3-exec says '$("$package/tree/bin/ring3-exec" --version 2>&1)'"

# A core of another version, and one that is too old to say: a line, and the client's open fails.
core=$package/tree/lib/ring3/libring3-core.so
for version in '"0.0.1"' ''; do
    mv "$core" "$package/core"
    { echo 'int r3_init(void) { return 0; }'
      printf 'void %s(void) {}\n' r3_open r3_ioctl r3_run r3_release r3_read r3_irqfd_write r3_vcpu_signal r3_invalidate_start r3_invalidate_end r3_at_exit
      [ -z "$version" ] || printf '#include <string.h>\nint r3_version(char *text, int size) { strncpy(text, %s, size); return 0; }\n' "$version"
    } | gcc -x c -shared -fPIC -o "$core" - 2>"$package/core.log"
    # shellcheck disable=SC2016 # the inner shell's own
    one_line "package-old-core${version:+-version}" 1 "^ring3: cannot use $core: .*: install both from one package\$" \
        sh -c '"$1" exec "$2" 2>&1 >/dev/null | grep "^ring3" >&2; exit 1' sh "$package/tree/bin/ring3" "$package/tree/lib/ring3/ring3-selftest"
    "$package/tree/bin/ring3" doctor >"$package/core.log" 2>&1
    grep -q '^self-test *no .*install both from one package$' "$package/core.log"
    verdict "package-old-core${version:+-version}-doctor" $? "doctor does not say so"
    mv "$package/core" "$core"
done

# Policies that refuse what code needs, a home that cannot be written to, and sudo: one line each, and doctor says why.
if gcc -O2 -Wall -Wextra -Werror -static -o "$package/restricted" "$root/tests/package/restricted.c" >"$package/restricted.log" 2>&1; then
    for policy in no-memfd:memfd_create no-execmem:executable; do
        refused=("$package/restricted" "--${policy%:*}" "$package/tree/bin/ring3")
        one_line "package-${policy%:*}" 71 "^ring3: cannot have memory for code \(.*${policy#*:}.*\), which seccomp, SELinux" "${refused[@]}" boot --cold --exec true
        # shellcheck disable=SC2016 # the inner shell's own
        one_line "package-${policy%:*}-exec" 1 "^ring3: cannot have memory for code \(.*${policy#*:}.*: .*\), which seccomp, SELinux" \
            sh -c '"$@" 2>&1 >/dev/null | grep "^ring3" >&2; exit 1' sh "${refused[@]}" exec "$package/tree/lib/ring3/ring3-selftest"
        "${refused[@]}" doctor >"$package/refused.log" 2>&1
        grep -q "^memory for code *no .*${policy#*:}" "$package/refused.log"
        verdict "package-${policy%:*}-doctor" $? "doctor does not say so"
    done
else
    verdict package-policies 4 "gcc makes no static programs here: $(head -n 1 "$package/restricted.log")"
fi
"$package/tree/bin/ring3" doctor >"$package/sudo.log" 2>&1 && grep -q "^sudo .*drops LD_PRELOAD.*'sudo ring3 exec PROGRAM'" "$package/sudo.log"
verdict package-sudo-doctor $? "doctor does not explain sudo"

# Beside a checkout: each uses its own files, wherever one stands.
# owner DIRECTORY RING3 FILES: in DIRECTORY, RING3 uses FILES.
owner() { (cd "$1" && PATH="$package/tree/bin:$PATH" "$2" doctor) >"$package/owner.log" 2>&1; grep -q "^libring3-core.so *ok *$3/libring3-core.so\$" "$package/owner.log"; }
owner "$root" ring3 "$package/tree/lib/ring3" && owner "$root" "$package/tree/bin/ring3" "$package/tree/lib/ring3" && owner "$package/tree" "$root/ring3" "$root/artifacts/devkvm"
verdict package-beside-checkout $? "one of them uses files of the other"
# Inside each other: the outer library stands in front of the inner one, which is not used.
for pair in "checkout:$root/ring3:$package/tree/bin/ring3" "installed:$package/tree/bin/ring3:$root/ring3"; do
    inner=${pair#*:}
    "${inner%:*}" exec "${inner#*:}" exec "$package/tree/lib/ring3/ring3-selftest" >"$package/nested.log" 2>&1 && grep -q 'signals arrive' "$package/nested.log"
    verdict "package-nested-${pair%%:*}" $? "$(tail -n 1 "$package/nested.log")"
done

# A processor that is no x86-64-v3: one line from the program, from the library in front of a client, and none from what has the units.
if install qemu-user qemu-x86_64 >"$package/install.log" 2>&1; then
    one_line package-lesser-processor 71 '^ring3: this processor does not have AVX2, BMI2 and FMA' qemu-x86_64 -cpu Nehalem "$package/tree/bin/ring3" boot --exec true
    # shellcheck disable=SC2016 # the inner shell's own
    one_line package-lesser-processor-exec 1 '^ring3: this processor does not have AVX2, BMI2 and FMA' \
        sh -c 'qemu-x86_64 -cpu Nehalem -E LD_PRELOAD="$1/libring3.so" "$1/ring3-selftest" 2>&1 >/dev/null | grep "^ring3" >&2; exit 1' sh "$package/tree/lib/ring3"
    [ "$(qemu-x86_64 -cpu Haswell "$package/tree/bin/ring3" --version 2>/dev/null)" = "$package_version" ]
    verdict package-least-processor $? "ring3 does not start on a Haswell"
else
    verdict package-lesser-processor 4 "$(tail -n 1 "$package/install.log")"
fi
