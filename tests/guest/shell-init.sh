#!/bin/sh
# /init of the boot benchmark: says that the shell is there, stays for a moment so that the host can look at the process, and powers off.
echo "== shell"
/bin/busybox sleep 2
/bin/busybox poweroff -f
