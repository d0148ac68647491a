using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary>When a machine's snapshot is made, and what a guest is told that waits: on threads of their own, as a snapshot stops the processors.</summary>
/// <param name="machine">Whose.</param>
/// <param name="options">What was asked for.</param>
/// <param name="place">Where it goes; null: no snapshot was asked for.</param>
/// <param name="warm">Where one is kept for the next time; null: nowhere.</param>
/// <param name="terminal">The host's.</param>
/// <param name="confine">Confines the process.</param>
internal sealed class SnapshotRequest(Machine machine, BootOptions options, SnapshotPlace? place, WarmStart? warm, HostTerminal terminal, Action confine)
{
    /// <summary>--snapshot-at: when the default guest waits for a command.</summary>
    public const string AtReady = "ready";

    /// <summary>The process is confined when the guest's snapshot is in the cache: until then the guest is the default one, and has no command.</summary>
    public bool ConfinesLater => warm is not null;

    /// <summary>What the snapshot key does; null: nothing.</summary>
    public Action? Key => options is { SnapshotFile: not null, SnapshotAt: null } ? OnKey : null;

    /// <summary>The console, looked at where it says when.</summary>
    public ISerialSink Watch(ISerialSink console) =>
        options.SnapshotAt is { } text and not AtReady ? new TextWatch(console, text, () => Start(MakeAndEnd)) : console;

    /// <summary>The guest waits for what it is to do.</summary>
    public void Ready(bool knowsClones)
    {
        machine.NoteReady(knowsClones);
        Start(() =>
        {
            if (options.SnapshotAt == AtReady)
            {
                if (!knowsClones)
                    Errors.Line("the guest's kernel runs no 64-bit programs: clones will have the same random numbers");
                MakeAndEnd();
                return;
            }
            // Else there are no clones that nobody has asked for.
            if (knowsClones)
                warm?.Keep(machine);
            if (!ConfinesLater || machine.Confine(confine))
                Send(clone: false);
        });
    }

    /// <summary>Makes the machine a clone, which is told what to do if it waits for that.</summary>
    public void Restore(SnapshotFile snapshot)
    {
        machine.Restore(snapshot);
        if (snapshot.TakesCommand)
            Start(() => Send(clone: true));
    }

    private void Send(bool clone)
    {
        machine.NoteBusy();
        _ = machine.SendPort(CommandStreams.Script, GuestPlan.Script(options, terminal, clone));
    }

    private void OnKey()
    {
        try
        {
            machine.Snapshot(place!);
            Errors.Line($"wrote {place!.Path}\r");
        }
        catch (BootException e) { Errors.Line(e.Message + "\r"); }
    }

    private void MakeAndEnd()
    {
        int status = ExitStatus.Ok;
        // The guest does not go on behind its snapshot.
        _ = machine.Pause();
        try { machine.Snapshot(place!); }
        catch (BootException e)
        {
            Errors.Line(e.Message);
            status = e.Status;
        }
        machine.End(MachineEnd.Quit, status);
    }

    private void Start(Action action) => new Thread(() =>
    {
        try { action(); }
        catch (Exception e) { machine.End(MachineEnd.Failure, detail: $"{e.GetType().Name}: {e.Message}"); }
    }) { IsBackground = true, Name = "ring3-snapshot" }.Start();
}
