using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>What the default guest's first process does: a script for busybox.</summary>
internal static class InitScript
{
    /// <summary>Inside the guest's new root: what starts its command.</summary>
    private const string RunDirectory = "/run/.ring3";

    public static string Build(string busybox, InitOptions options)
    {
        string head = $"""
            #!{busybox} sh
            b={busybox}
            export PATH=/sbin:/bin:/usr/sbin:/usr/bin HOME=/root TERM={Shell.Quote(options.Terminal)}
            $b mkdir -p /proc /sys /dev /run /tmp /root
            $b mount -t devtmpfs dev /dev
            $b mount -t proc proc /proc
            $b mount -t sysfs sys /sys
            $b mkdir -p /dev/pts
            $b mount -t devpts devpts /dev/pts
            $b mount -t tmpfs -o mode=755 tmpfs /run
            $b hostname ring3
            cd /root

            """ + string.Concat(options.Modules.Select(m => $"$b insmod /.ring3/modules/{m.Name}.ko\n"));
        if (options.Root)
            head += RootScript;
        if (options.Run is null)
        {
            foreach (GuestMount mount in options.Mounts)
                head += $"$b mkdir -p {Shell.Quote(mount.Place)}; {Mount(mount, mount.Place)}\n";
        }
        if (options.Dhcp is { } dhcp)
            head += dhcp ? "$b ip link set lo up; $b ip link set eth0 up; $b udhcpc -i eth0 -n -q -S -t 5 -s /.ring3/dhcp >/dev/null 2>&1\n"
                : "$b ip link set lo up; $b ip link set eth0 up\n";
        string rest = options.Run is null && options.Exec is null ? ShellScript(options) : Ports(options) + CommandScript(options, waited: false);
        return head + (options.WaitsForScript ? Wait : "") + rest;
    }

    /// <summary>
    /// Says that the guest is ready, and whether a clone of it can get random numbers of its own, and does what the host then says. What every command needs
    /// runs already, and waits, so that clones need not start it: the program for random numbers, which is its pipe's writer as well and so is there without
    /// one; those that move output and errors; and the reader of signals.
    /// </summary>
    private const string Wait = ConsolePorts + Fifos + $$"""
        if [ -n "$in" ]; then
            {{ReseedProgram.Path}} </dev/null
            if [ $? -eq 1 ]; then clones=clones; else clones=; fi
            seed=
            if [ -n "$clones" ]; then {{ReseedProgram.Path}} <>{{ReseedProgram.Pipe}} & seed=$!; fi

        """ + Control + Movers + $$"""
            echo "ready $clones" >$status
            . ${port}6
        fi

        """;

    /// <summary>What an init that waits is sent.</summary>
    /// <param name="options">What it is to do.</param>
    /// <param name="clone">It has been copied while it waited.</param>
    public static string Script(InitOptions options, bool clone)
    {
        string head = $"export TERM={Shell.Quote(options.Terminal)}\n";
        if (clone)
        {
            Span<byte> seed = stackalloc byte[ReseedProgram.SeedBytes];
            HostRandom.Fill(seed);
            head += ReseedProgram.Script(seed);
        }
        if (options.Run is null && options.Exec is null)
            return head + ShellScript(options);
        return head + CommandScript(options, waited: true);
    }

    private static string Mount(GuestMount mount, string place) =>
        $"$b mount -t virtiofs {(mount.ReadOnly ? "-o ro " : "")}{Shell.Quote(mount.Tag)} {Shell.Quote(place)}";

    /// <summary>
    /// A shell on the console. Without a terminal dd moves the input to it, by reads and writes: cat would splice, and a splice waits for the console with the
    /// pipe locked, so that the shell could not take what is in it.
    /// </summary>
    private static string ShellScript(InitOptions options)
    {
        string size = options.Rows > 0 && options.Columns > 0 ? $"$b stty -F {options.Console} rows {options.Rows} cols {options.Columns}\n" : "";
        string shell = options.Interactive ? $"$b setsid $b cttyhack $b sh -l <{options.Console} >{options.Console} 2>&1"
            : $"$b stty -F {options.Console} -echo\n$b dd if={options.Console} bs=4096 2>/dev/null | $b sh >{options.Console} 2>&1";
        return $"""
            {size}{shell}
            $b sync
            $b poweroff -f

            """;
    }

    /// <summary>
    /// Hands over to the root that the kernel's command line names, with the words that Linux has for it: root, rootfstype, rootflags, rootdelay, ro, init. It
    /// can be written to unless ro is said. Where that cannot be done, a line says so, and the default guest goes on.
    /// </summary>
    private const string RootScript = """
        root= type= flags= mode=rw delay=10 init=/sbin/init
        for w in $($b cat /proc/cmdline); do
            case $w in
                --) break ;;
                root=*) root=${w#root=} ;;
                rootfstype=*) type=${w#*=} ;;
                rootflags=*) flags=,${w#*=} ;;
                rootdelay=*) delay=${w#*=} ;;
                init=*) init=${w#*=} ;;
                ro | rw) mode=$w ;;
            esac
        done
        $b mkdir -p /new
        n=0 place=
        while :; do
            case $root in
                UUID=* | LABEL=*) place=$($b findfs "$root" 2>/dev/null) ;;
                *) place=$root ;;
            esac
            case $place in
                /dev/*) [ ! -b $place ] || break ;;
                ?*) break ;;
            esac
            [ $n -lt $((delay*10)) ] || break
            n=$((n+1))
            $b usleep 100000
        done
        if ! $b mount ${type:+-t $type} -o $mode$flags "$place" /new; then
            echo "ring3: cannot mount root=$root"
        elif [ ! -x /new$init ] && [ ! -L /new$init ]; then
            echo "ring3: root=$root has no $init"
            $b umount /new
        else
            $b mkdir -p /new/proc /new/sys /new/dev /new/run 2>/dev/null
            for d in proc sys dev run; do $b mount -o move /$d /new/$d; done
            cd /
            exec $b switch_root /new $init
        fi

        """;

    /// <summary>Raw serial ports. Closing one waits until it has been sent, so the status line is last.</summary>
    private const string SerialPorts = $"""
        in= control= out={Initramfs.OutputDevice} err={Initramfs.ErrorDevice} status={Initramfs.StatusDevice}
        for t in $out $err $status; do $b stty -F $t raw -echo -echoe -echok -onlcr -opost; done

        """;

    /// <summary>
    /// Ports of a virtio console, which come a while after the driver, and have names when they can be used; serial ports where there is none. What is looked
    /// for is quoted: else the pattern of a moment ago, which the names are taken from, would match a port that has come since.
    /// </summary>
    private const string ConsolePorts = """
        if [ -d /sys/bus/virtio/drivers/virtio_console ]; then
            n=0
            while set -- /sys/class/virtio-ports/vport*p6/name; [ ! -e "$1" ] && [ $n -lt 5000 ]; do $b usleep 2000; n=$((n+1)); done
            port=${1%6/name}
            port=/dev/${port##*/}
            in=${port}1 out=${port}2 err=${port}3 control=${port}4 status=${port}5
        else

        """ + SerialPorts + "fi\n";

    private static string Ports(InitOptions options) => (options.Streams is null ? SerialPorts : ConsolePorts) + Fifos;

    private const string Fifos = $"[ -p /run/.in ] || $b mkfifo -m 666 /run/.in /run/.out /run/.err {ReseedProgram.Pipe}\n";

    /// <summary>What moves a command's output and its errors. Init holds their pipes open, so that they end when all others have left and init does; a port can
    /// be opened once, and what init has to say goes the same way.</summary>
    private const string Movers = """
        $b cat </run/.out >$out &
        o=$!
        $b cat </run/.err >$err &
        e=$!
        exec 8>/run/.out 9>/run/.err

        """;

    /// <summary>Who runs in the place of a part of init holds no pipe open.</summary>
    private const string Leave = "exec 8>&- 9>&-";

    /// <summary>Becomes the leader of the command's processes; who it is, is in a file.</summary>
    private const string Enter = $"read -r p x </proc/self/stat; echo $p >/run/.pid; {Leave}";

    /// <summary>
    /// The command's streams are pipes, as under ssh without a terminal: nothing rewrites its bytes, and programs see no tty. cat moves them to the ports. Or
    /// they are the terminal. A shell whose children stay opens the pipes: opening one waits for its other end, and the end of a child (of the cat whose input
    /// is at its end) would interrupt that.
    /// </summary>
    /// <param name="options">What it is.</param>
    /// <param name="waited">Behind <see cref="Wait"/>.</param>
    private static string CommandScript(InitOptions options, bool waited)
    {
        CommandStreams streams = options.Streams ?? new CommandStreams();
        string script = (waited ? "" : (options.Streams is not null ? Control : "") + Movers) + """
            input=/dev/null s=
            stop() { s=126; echo "ring3: $*" >&9; }

            """;
        if (options.Run is not null)
            script += (waited ? $"printf '%s' {Shell.Quote(Command(options))} >/.ring3/command\n" : "") + RunRoot(options);
        string start = options.Run is not null ? $"$b chroot /new {RunDirectory}/busybox sh {RunDirectory}/command"
            : $"$b sh -c {(waited ? Shell.Quote(Command(options)) : "\"$($b cat /.ring3/command)\"")}";
        if (streams.IsTerminal)
        {
            // Its size is the terminal's as long as somebody has it open.
            string size = options.Rows > 0 && options.Columns > 0 ? $"$b stty rows {options.Rows} cols {options.Columns}; " : "";
            script += $$"""
                [ -n "$in" ] || stop the guest\'s kernel has no virtio console, which a terminal needs
                if [ -z "$s" ]; then
                    { {{size}}( {{Enter}}; exec $b setsid -c {{start}} 2>{{(streams.ErrorIsTerminal ? "&1" : "/run/.err")}} ); } </dev/hvc0 >/dev/hvc0
                    s=$?
                fi
                """;
        }
        else
        {
            string input = !streams.HasInput ? "" : $$"""
                    if [ -n "$in" ]; then input=/run/.in; { {{Leave}}; exec $b cat <$in >/run/.in; } & fi

                """;
            script += $$"""
                if [ -z "$s" ]; then
                {{input}}    ( {{Enter}}; exec $b setsid {{start}} <$input >/run/.out 2>/run/.err )
                    s=$?
                fi
                """;
        }
        return script + $"""

            {Leave}
            wait $o $e
            echo "exit $s" >$status
            # The host reads a console's port when it comes to it, and ends the machine then.
            [ -z "$in" ] || $b sleep 1000000
            $b poweroff -f

            """;
    }

    /// <summary>Signals for the command's processes, and sizes for its terminal. Before they are a group, the first of them gets a signal alone.</summary>
    private const string Control = """
        [ -z "$control" ] || while read -r k a c; do
            case $k in
                signal) read -r p </run/.pid; $b kill -$a -$p || $b kill -$a $p ;;
                size) $b stty -F /dev/hvc0 rows $a cols $c ;;
            esac
        done <$control >/dev/null 2>&1 &

        """;

    /// <summary>The host's root, which nobody changes, under a private layer in memory; folders that may be changed; and what every system has of its
    /// own.</summary>
    private static string RunRoot(InitOptions options)
    {
        string script = $"""
            $b mkdir -p /host /over /new
            {Mount(options.Mounts[0], "/host")} || stop the guest\'s kernel has no virtiofs
            $b mount -t tmpfs -o mode=755 tmpfs /over
            $b mkdir -p /over/up /over/work
            [ -n "$s" ] || $b mount -t overlay -o lowerdir=/host,upperdir=/over/up,workdir=/over/work overlay /new ||
                stop the guest\'s kernel has no overlay file system

            """;
        foreach (GuestMount mount in options.Mounts.Skip(1))
            script += $"[ -n \"$s\" ] || {Mount(mount, "/new" + mount.Place)} || stop cannot mount {Shell.Quote(mount.Place)}\n";
        return script + $$"""
            if [ -z "$s" ]; then
                $b mkdir -p /new/proc /new/sys /new/dev /new/run
                $b mount -t proc proc /new/proc
                $b mount -t sysfs sys /new/sys
                $b mount -t devtmpfs dev /new/dev
                $b mkdir -p /new/dev/pts /new/dev/shm
                $b mount -t devpts -o mode=620,ptmxmode=666 devpts /new/dev/pts
                $b mount -t tmpfs -o mode=1777 tmpfs /new/dev/shm
                $b mount -t tmpfs -o mode=755 tmpfs /new/run
                $b mkdir -p {{"/new" + RunDirectory}}
                $b cp $b {{"/new" + RunDirectory}}/busybox
                $b cp /.ring3/command {{"/new" + RunDirectory}}/command
                [ ! -e /dev/hvc0 ] || $b chown {{options.Run!.User}} /dev/hvc0
                $b ip link set lo up
            fi

            """;
    }

    /// <summary>What a command of ring3 run is started by.</summary>
    public static string Command(InitOptions options) => options.Run is { } run ? run.Script() : options.Exec + "\n";

    /// <summary>What udhcpc runs when it has an address.</summary>
    public static string Dhcp(string busybox) => $"""
        #!{busybox} sh
        b={busybox}
        [ "$1" = bound ] || [ "$1" = renew ] || exit 0
        [ -z "$mtu" ] || $b ip link set $interface mtu $mtu
        $b ip addr add $ip/$mask dev $interface
        for r in $router; do
            $b ip route add $r dev $interface 2>/dev/null
            $b ip route add default via $r dev $interface 2>/dev/null
        done
        for d in $dns; do echo nameserver $d; done >/etc/resolv.conf

        """;
}
