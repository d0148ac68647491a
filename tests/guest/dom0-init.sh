#!/bin/sh
# /init of Xen's dom0: says what the kernel and the hypervisor say of each other, and powers off.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /proc/xen
mount -t xenfs xenfs /proc/xen 2>/dev/null
dmesg | grep -m 1 -oE 'Booting (paravirtualized )?kernel on Xen.*'
echo "hypervisor: $(cat /sys/hypervisor/type) $(cat /sys/hypervisor/version/major).$(cat /sys/hypervisor/version/minor), features $(cat /sys/hypervisor/properties/features)"
echo "dom0: $(grep -c ^processor /proc/cpuinfo) processors, $(cat /sys/class/net/lo/address), clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
poweroff -f
