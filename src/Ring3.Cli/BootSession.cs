using System.Runtime.CompilerServices;
using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;
using Ring3.Host;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary>One run of <c>ring3 boot</c> or <c>ring3 run</c>: the guest's files, the machine, the terminal and the exit status.</summary>
internal static class BootSession
{
    private const int Stdin = 0, Stdout = 1, Stderr = 2;
    private const int TailLines = 12;

    /// <summary>Boots, or restores what the cache has of such a guest and keeps one there.</summary>
    public static int Run(BootOptions options)
    {
        if (WarmStart.For(options, new GuestCache(Errors.Line)) is not { } warm)
            return Run(options, null, null);
        options = WarmStart.Waiting(options);
        using SnapshotFile? kept = warm.Find();
        return kept is null ? Run(options, null, warm) : Run(options, kept, null);
    }

    /// <param name="options">What machine, and what it does.</param>
    /// <param name="snapshot">What the machine is restored from; null: it boots.</param>
    /// <param name="warm">Where a snapshot of it is kept; null: nowhere.</param>
    public static int Run(BootOptions options, SnapshotFile? snapshot, WarmStart? warm)
    {
        bool stdio = options.Serial == "stdio";
        bool command = options.HasCommand, terminal = options.Streams is { IsTerminal: true };
        bool interactive = stdio && !command && Terminal.IsTerminal(Stdin);
        using FileStream? serialFile = stdio ? null : OpenSerialFile(options.Serial);
        using var machine = new Machine(options, snapshot);
        int com1 = stdio ? (command ? Stderr : Stdout) : (int)serialFile!.SafeFileHandle.DangerousGetHandle();
        using var console = new OutputPump(com1, "ring3-com1", machine.Ended);
        using var output = new OutputPump(Stdout, "ring3-out", machine.Ended);
        using var error = new OutputPump(Stderr, "ring3-err", machine.Ended);
        bool showConsole = !command || options.Verbose || !stdio;
        var tail = new TailSink(showConsole ? console : null);

        // Nobody can see what a guest without output does. Messages on standard error are not its output.
        (OutputPump pump, string name) = command ? (output, "standard output") : (console, stdio ? "standard output" : $"--serial {options.Serial}");
        pump.Failed = () => machine.End(MachineEnd.Quit, ExitStatus.NoOutput);
        using SnapshotKeeper? keeper = options is { SnapshotFile: { } kept, Sandbox: true } ? SnapshotKeeper.Start(ConnectorCommand.KeeperWords, kept) : null;
        if (keeper is not null)
            SnapshotFile.Prepare();
        SnapshotPlace? place = keeper ?? (options.SnapshotFile is { } file ? new SnapshotFolder(file) : (SnapshotPlace?)null);
        var request = new SnapshotRequest(machine, options, place, warm, Size(interactive || terminal), () => Confine(machine, options));
        machine.AttachSerial(0, request.Watch(tail));
        if (command || options.WaitsForScript || snapshot is { HasCommandPorts: true })
            AttachCommand(machine, output, error, options, request);
        if (snapshot is not null)
            request.Restore(snapshot);
        else
            Load(machine, options, interactive || terminal);
        using ControlServer? control = Control(machine, options);

        MachineResult result;
        using (var raw = interactive || terminal ? RawTerminal.Enter(Stdin) : null)
        {
            using var signals = new MachineSignals(machine, forward: options.Run is not null, terminal);
            bool ownGuest = snapshot?.OwnGuest ?? options.Initrd.Count == 0 && options.Kernel is null;
            using var input = stdio && !command ? new InputPump(Stdin, new SerialInput(machine, ownGuest), quitKey: interactive, machine, request.Key)
                : terminal ? new InputPump(Stdin, new PortInput(machine, CommandStreams.Terminal), quitKey: true, machine)
                : options.Streams is { HasInput: true } ? new InputPump(Stdin, new PortInput(machine, CommandStreams.Input), quitKey: false, machine)
                : null;
            result = machine.Run(request.ConfinesLater ? null : () => Confine(machine, options));
            machine.StopPortInput();
            console.Dispose();
        }
        output.Dispose();
        error.Dispose();
        machine.WriteHeatmap();
        Tell(() =>
        {
            if (options.Stats)
                machine.WriteStats(Console.Error);
        });
        // Also when the command has ended meanwhile: its status would say that all is well.
        if (pump.Failure is string why)
            throw new BootException(ExitStatus.NoOutput, $"cannot write {name}: {why}");
        Tell(() => Explain(result, options, tail));
        return Status(result, options);
    }

    /// <summary>Listens for ring3 ctl. Only who gives a machine a name must be able to call it by it.</summary>
    private static ControlServer? Control(Machine machine, BootOptions options)
    {
        try
        {
            var server = new ControlServer(ControlDirectory.Listen(options.Name), machine.ControlCommands);
            SnapshotFile.Prepare();
            return server;
        }
        catch (BootException e) when (options.Name is null)
        {
            if (options.Verbose)
                Errors.Line($"ring3 ctl cannot reach this machine: {e.Message}");
            return null;
        }
    }

    private static void Confine(Machine machine, BootOptions options)
    {
        if (options.Sandbox)
            Sandbox.Enter(machine.Helpers);
        else
            Errors.Line("--no-sandbox: a guest that breaks out of the machine can do what this user can");
    }

    /// <summary>The command's streams: serial ports, and ports of a virtio console where the guest has one.</summary>
    private static void AttachCommand(Machine machine, OutputPump output, OutputPump error, BootOptions options, SnapshotRequest request)
    {
        // What was written before the status is written before the end.
        void Ended(int status)
        {
            machine.CommandEnded();
            new Thread(() =>
            {
                machine.DrainPorts();
                output.WaitWritten();
                error.WaitWritten();
                machine.End(MachineEnd.ExecDone, status);
            }) { IsBackground = true, Name = "ring3-status" }.Start();
        }
        var status = new ExecStatusSink(Ended, request.Ready);
        machine.AttachSerial(1, output);
        machine.AttachSerial(2, error);
        machine.AttachSerial(3, status);
        if (options.Streams is null)
            return;
        machine.AttachPort(CommandStreams.Terminal, output.Transmit);
        machine.AttachPort(CommandStreams.Output, output.Transmit);
        machine.AttachPort(CommandStreams.Error, error.Transmit);
        machine.AttachPort(CommandStreams.Status, data =>
        {
            foreach (byte b in data)
                status.Transmit(b);
        });
    }

    /// <summary>
    /// Runs <paramref name="write"/>, which writes to standard error, but waits at most two seconds: whoever reads it may never read again, and the machine
    /// has ended.
    /// </summary>
    private static void Tell(Action write)
    {
        ExceptionDispatchInfo? failure = null;
        var thread = new Thread(() =>
        {
            try { write(); }
            catch (Exception e) { failure = ExceptionDispatchInfo.Capture(e); }
        }) { IsBackground = true, Name = "ring3-tell" };
        thread.Start();
        if (thread.Join(2000))
            failure?.Throw();
    }

    /// <summary>
    /// Reads or fetches the guest's files and loads them. The images, and what the loader unpacked, are garbage afterwards: a hundred megabytes that are given
    /// back before the guest runs. Not inlined, so that no reference outlives the call.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void LoadFiles(Machine machine, BootOptions options, bool interactive)
    {
        GuestPlan plan = GuestPlan.Prepare(options, new GuestCache(Errors.Line), Size(interactive));
        machine.Load(plan);
        if (options.Verbose)
            Errors.Line($"{plan.KernelName}: {machine.EntryProtocol}; {options.Cpus} processors, {options.MemoryBytes >> 20} MiB;"
                + $" command line: {plan.Request.CommandLine}");
    }

    private static HostTerminal Size(bool interactive)
    {
        (int rows, int columns) = interactive ? Terminal.Size(Stdin) : default;
        return new HostTerminal(interactive, rows, columns);
    }

    private static void Load(Machine machine, BootOptions options, bool interactive)
    {
        LoadFiles(machine, options, interactive);
        GC.Collect(GC.MaxGeneration, GCCollectionMode.Aggressive, blocking: true, compacting: true);
    }

    private static int Status(MachineResult result, BootOptions options) => (result.End, options.HasCommand) switch
    {
        (MachineEnd.ExecDone, _) => result.Value,
        (MachineEnd.DebugExit, _) => result.Value * 2 + 1 & 0xff,
        (MachineEnd.Quit, _) => result.Value != 0 ? result.Value : ExitStatus.Quit,
        (MachineEnd.PowerOff, false) => ExitStatus.Ok,
        (MachineEnd.TripleFault, _) => ExitStatus.GuestTripleFault,
        (MachineEnd.Failure, _) => ExitStatus.MachineFailure,
        (_, true) => ExitStatus.ExecLost,
        (MachineEnd.Reset, _) => ExitStatus.GuestReset,
        _ => ExitStatus.Ok,
    };

    /// <summary>Says how a machine has ended that was not meant to end so.</summary>
    private static void Explain(MachineResult result, BootOptions options, TailSink tail)
    {
        if (result.End is MachineEnd.ExecDone or MachineEnd.DebugExit or MachineEnd.Quit || result.End == MachineEnd.PowerOff && !options.HasCommand)
            return;
        string what = result.End switch
        {
            MachineEnd.PowerOff => "the guest powered off",
            MachineEnd.Reset => $"the guest reset the machine ({result.Detail})",
            MachineEnd.TripleFault => $"the guest triple-faulted ({result.Detail})",
            _ => $"the machine failed: {result.Detail}",
        };
        if (options.HasCommand)
        {
            foreach (string line in tail.LastLines(TailLines))
                Console.Error.WriteLine($"console: {line}");
            what += " before the command ended";
        }
        Errors.Line(what);
    }

    private static FileStream OpenSerialFile(string path)
    {
        try { return new FileStream(path, FileMode.Create, FileAccess.Write, FileShare.ReadWrite, 1); }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException or NotSupportedException)
        {
            throw new BootException(ExitStatus.NoInput, $"cannot open --serial {path}: {e.Message}");
        }
    }
}
