#!/bin/sh
# /init of the guests that run under QEMU: a shell on the first serial port. `load NAME...` inserts modules of /modules.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
stty -echo -onlcr
cat >/bin/load <<'L'
#!/bin/sh
for m; do insmod /modules/$m.ko || echo "load: $m failed"; done
L
chmod +x /bin/load
cat >/bin/leave <<'L'
#!/bin/sh
sync; poweroff -f
L
chmod +x /bin/leave
echo "== shell on $(uname -r), $(grep -c ^processor /proc/cpuinfo) processors"
exec sh -s
