# Runs in a Xen guest: prints what it says of Xen, then keeps the processors busy with each other and prints whether the event channels carried it.
dmesg | grep -i -E 'xen|grant'
# rows REGEX: sum of the interrupts in the rows that match.
rows() { awk -v row="$1" '$0 ~ row { for (i = 2; i <= NF && $i ~ /^[0-9]+$/; i++) n += $i } END { print n + 0 }' /proc/interrupts; }
grows() { [ "$3" -gt "$2" ] && echo "$1 grow" || echo "$1 stand at $2, then $3"; }
# Of processor 0: the rows of one that comes back begin again.
timer=$(rows 'xen-percpu.*timer0$') ipi=$(rows 'xen-percpu.*-ipi.*0$') store=$(rows 'xen-dyn.*xenbus')

# Pipes between two processors, one message at a time: each wake-up is an event.
pingpong() { mkfifo /tmp/there$1 /tmp/back$1
    taskset 2 sh -c 'while read -r n; do echo $((n + 1)); done' </tmp/there$1 >/tmp/back$1 &
    taskset 1 sh -c 'exec 3>/tmp/there'$1' 4</tmp/back'$1'; n=0; while [ $n -lt 400 ]; do echo $n >&3; read -r n <&4; done; echo $n'; }
echo "ping-pong $(pingpong 1) $(pingpong 2)"
for p in 1 2 3 4; do (yes xen | head -c 3000000 | sha256sum >/tmp/sum$p) & done
# A processor that leaves and comes back registers its events, its timer and its run state again.
for i in 1 2 3; do echo 0 >/sys/devices/system/cpu/cpu1/online && echo 1 >/sys/devices/system/cpu/cpu1/online && came=$i; done
wait
echo "processor 1 came back $came times"
echo "sums $(sort -u /tmp/sum? | grep -c .)"
taskset 2 sh -c 'sleep 0.2; echo "slept on processor 1"'
cat /proc/interrupts
grows 'xen timer rows' "$timer" "$(rows 'xen-percpu.*timer0$')"
grows 'xen ipi rows' "$ipi" "$(rows 'xen-percpu.*-ipi.*0$')"
grows 'xen event rows' 0 "$store"
# The command's output travels over serial ports.
grows 'xen pirq rows' 0 "$(rows 'xen-pirq.*ttyS')"
echo "clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
dmesg | grep -E 'BUG:|Oops|soft lockup|rcu_.*stall|Call Trace' | sed 's/^/kernel reports: /'
echo end of the exercise
