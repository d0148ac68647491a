using System.Text;
using Ring3.Vmm;

namespace Ring3.Machines;

/// <summary>
/// A PC that runs in this process: it boots a kernel, has a serial console, disks and a network, and can be written to a file, of which any number of clones go
/// on. All members may be called from any thread.
/// </summary>
/// <example>
/// <code>
/// using Pc pc = Pc.Boot(new PcOptions { Disks = [new PcDisk("disk.img")] });
/// pc.Type("echo hello >/dev/vda; poweroff -f\n");
/// PcEnd end = pc.Wait();
/// </code>
/// </example>
public sealed class Pc : IDisposable
{
    private readonly Machine _machine;
    private readonly ConsoleText _console = new();
    private readonly Thread _thread;
    private readonly ManualResetEventSlim _over = new(false);
    private MachineResult _result;
    private Exception? _failure;
    private bool _disposed;

    private Pc(Machine machine, Action<Machine> prepare)
    {
        _machine = machine;
        machine.AttachSerial(0, _console);
        prepare(machine);
        _thread = new Thread(Run) { IsBackground = true, Name = "ring3-pc" };
        _thread.Start();
    }

    /// <summary>Makes a machine and lets it run.</summary>
    /// <exception cref="PcException">A file, a program or memory is missing, or an image is not valid.</exception>
    public static Pc Boot(PcOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        BootOptions boot = options.ToBoot();
        var cache = new GuestCache(boot.Messages.WriteLine);
        return Start(() => Create(new Machine(boot), m => m.Load(GuestPlan.Prepare(boot, cache, default))));
    }

    /// <summary>Makes a clone of the machine that <see cref="Snapshot"/> has written to a file, and lets it go on. Memory is shared until it is
    /// written.</summary>
    /// <param name="path">The file.</param>
    /// <param name="network">The other side of the clone's network card; null: as that of the machine was.</param>
    /// <param name="messages">As <see cref="PcOptions.Messages"/>; null: nowhere.</param>
    /// <exception cref="PcException">The file cannot be read, is damaged, or was written by another version or on another processor; a disk is not what it
    /// was.</exception>
    public static Pc Restore(string path, PcNetwork? network = null, TextWriter? messages = null)
    {
        ArgumentNullException.ThrowIfNull(path);
        var options = new BootOptions { Sandbox = false, Net = network?.ToOption(), Messages = TextWriter.Synchronized(messages ?? TextWriter.Null) };
        return Start(() =>
        {
            using SnapshotFile file = SnapshotFile.Open(path);
            return Create(new Machine(file.Apply(options), file), m => m.Restore(file));
        });
    }

    private static Pc Create(Machine machine, Action<Machine> prepare)
    {
        try { return new Pc(machine, prepare); }
        catch
        {
            machine.Dispose();
            throw;
        }
    }

    private static Pc Start(Func<Pc> make)
    {
        try { return make(); }
        catch (BootException e) { throw new PcException(e.Message, e); }
    }

    private void Run()
    {
        try { _result = _machine.Run(); }
        catch (Exception e) { _failure = e; }
        _console.End();
        _over.Set();
    }

    /// <summary>What the serial console has said: the last 64 KiB at least.</summary>
    public string Output => _console.Text;

    /// <summary>Waits until the console says something, or finds it in <see cref="Output"/>.</summary>
    /// <param name="text">What is waited for.</param>
    /// <param name="timeout">How long; <see cref="Timeout.InfiniteTimeSpan"/>: until the machine ends.</param>
    /// <returns>False: the time is over, or the machine has ended.</returns>
    public bool WaitForOutput(string text, TimeSpan timeout)
    {
        ArgumentException.ThrowIfNullOrEmpty(text);
        return _console.WaitFor(text, timeout);
    }

    /// <summary>Types on the console, waiting for room; what a machine that has ended does not take is lost.</summary>
    public void Type(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        const int FullMs = 10;
        ReadOnlySpan<byte> data = Encoding.UTF8.GetBytes(text);
        while (!_over.IsSet)
        {
            data = data[_machine.SerialInput(0, data)..];
            if (data.IsEmpty || _over.Wait(FullMs))
                return;
        }
    }

    /// <summary>Stops the processors, until as many calls of <see cref="Resume"/>. False: the machine has ended.</summary>
    public bool Pause() => _machine.Pause();

    /// <summary>Ends <see cref="Pause"/>.</summary>
    public void Resume() => _machine.Resume();

    /// <summary>Writes the machine to a file, which has its name when it is whole. It stands still meanwhile and goes on, or stays paused.</summary>
    /// <remarks>Raw disks are named in the file; a clone needs them as they were. A machine with other disks cannot be copied. The other side of a network card
    /// begins anew for a clone: connections have ended, addresses are what the guest had.</remarks>
    /// <exception cref="PcException">It cannot be copied; the file cannot be written; or the machine has ended.</exception>
    public void Snapshot(string path) => Try(() => _machine.Snapshot(new SnapshotFolder(Path.GetFullPath(path))));

    /// <summary>Gives the running machine a disk, a raw image; its guest finds it by ACPI's PCI hot plug.</summary>
    /// <returns>Its serial number.</returns>
    /// <exception cref="PcException">The image cannot be a disk, or is in use.</exception>
    public string AddDisk(PcDisk disk)
    {
        ArgumentNullException.ThrowIfNull(disk);
        string serial = "";
        Try(() => serial = _machine.AddDisk(disk.ToOption()));
        return serial;
    }

    /// <summary>Asks the guest to let a disk go, and waits until it has; the image is closed then.</summary>
    /// <param name="serial">Its serial number, or its file.</param>
    /// <exception cref="PcException">There is no such disk, or the guest does not let it go; it keeps it then.</exception>
    public void RemoveDisk(string serial) => Try(() => _machine.RemoveDisk(serial));

    private void Try(Action action)
    {
        ObjectDisposedException.ThrowIf(_disposed, this);
        try { action(); }
        catch (Exception e) when (e is BootException or ControlException) { throw new PcException(e.Message, e); }
    }

    /// <summary>Ends the machine at once.</summary>
    public void Stop() => _machine.End(MachineEnd.Quit);

    /// <summary>Waits for the machine's end.</summary>
    /// <exception cref="PcException">The hypervisor could not go on; the message says why.</exception>
    public PcEnd Wait()
    {
        _over.Wait();
        if (_failure is { } failure)
            throw new PcException(failure.Message, failure);
        return _result.End switch
        {
            MachineEnd.PowerOff => PcEnd.PowerOff,
            MachineEnd.Reset => PcEnd.Reset,
            MachineEnd.TripleFault => PcEnd.TripleFault,
            MachineEnd.Failure => throw new PcException(_result.Detail ?? "the machine has failed"),
            _ => PcEnd.Stopped,
        };
    }

    /// <summary>Ends the machine, and closes what it has.</summary>
    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, true))
            return;
        Stop();
        _thread.Join();
        _machine.Dispose();
        _over.Dispose();
    }
}
