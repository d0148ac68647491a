#!/bin/sh
# /init of the systemd guest: hands over to systemd as PID 1, with one service of its own that reports and powers off.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox mkdir -p /etc/systemd/system/multi-user.target.wants /run /var/log /sys /proc /dev
echo ring3 >/etc/hostname
: >/etc/machine-id
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' >/etc/passwd
printf 'root:x:0:\nutmp:x:43:\ntty:x:5:\nsystemd-journal:x:101:\nnogroup:x:65534:\n' >/etc/group
ln -sf /lib/systemd/system/multi-user.target /etc/systemd/system/default.target
cat >/etc/systemd/system/report.service <<'UNIT'
[Unit]
Description=report to the host
[Service]
Type=oneshot
StandardOutput=file:/dev/console
ExecStart=/bin/sh /report.sh
UNIT
ln -sf ../report.service /etc/systemd/system/multi-user.target.wants/report.service
cat >/report.sh <<'REPORT'
echo "pid 1 is $(cat /proc/1/comm)"
echo "basic.target is $(systemctl is-active basic.target), journal $(systemctl is-active systemd-journald), failed units: $(systemctl list-units --state=failed --plain --no-legend | wc -l)"
echo "virtualisation: $(systemd-detect-virt)"
systemctl poweroff
REPORT
exec /lib/systemd/systemd
