#!/usr/bin/env bash
# A Linux guest of QEMU, accelerated by an installed ring3, up to its shell: types a command there, prints what the guest says. As whoever runs it, with Debian's kernel in the cache.
# usage: shell.sh RING3
set -euo pipefail
ring3=$1
"$ring3" initramfs -o /tmp/initrd
coproc guest { exec timeout 300 "$ring3" exec -- qemu-system-x86_64 -accel kvm -smp 2 -m 512 -display none -serial stdio -monitor none -nic none -no-reboot \
    -kernel ~/.cache/ring3/linux-cloud-amd64/vmlinuz -initrd /tmp/initrd -append 'console=ttyS0 quiet panic=-1' 2>&1; }
pid=$!
exec {output}<&"${guest[0]}" {input}>&"${guest[1]}"
# Until the prompt, ~ # in the guest's home.
while IFS= read -r -d '#' -u "$output" text; do
    printf '%s#' "$text"
    case $text in *'~ ') break ;; esac
done
# shellcheck disable=SC2016 # the guest's own
echo 'echo "shell of $(uname -r) on $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource), $(grep -c ^processor /proc/cpuinfo) processors"; poweroff -f' >&"$input"
cat <&"$output"
wait "$pid"
