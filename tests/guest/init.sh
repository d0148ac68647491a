#!/bin/sh
# /init of the test guests: runs the exercise and powers off.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox mkdir -p /proc /sys /dev /tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
stty -onlcr 2>/dev/null
echo "== begin"
uname -m
sh /exercise.sh
echo "== end"
poweroff -f
