using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Virtio;

/// <summary>
/// A device's registers as a modern PCI device has them in memory: common configuration, ISR, device configuration, doorbells, and MSI-X table and pending
/// bits, in one BAR. SPEC: virtio 1.2, "Virtio Over PCI Bus".
/// </summary>
/// <remarks>
/// Locks: <see cref="_lock"/> (registers; a reset takes the gate of each queue under it), then a queue's gate, then <see cref="_interrupts"/>, a leaf but
/// for the interrupt controllers behind it. The device status is a word that
/// threads of queues set a bit of.
/// </remarks>
public sealed partial class VirtioTransport : IBusDevice, IDisposable
{
    /// <summary>Offsets in the BAR, and its size. Each doorbell has <see cref="DoorbellBytes"/>.</summary>
    public const int CommonAt = 0, IsrAt = 0x1000, DeviceAt = 0x2000, DoorbellsAt = 0x3000, TableAt = 0x4000, PendingAt = 0x6000, BarBytes = 0x8000;
    public const int CommonBytes = 56, DoorbellBytes = 4, MaxQueues = 128;
    private const int AreaBytes = 0x1000;
    private const ushort NoVector = 0xffff;
    private const byte IsrQueue = 1, IsrConfig = 2;

    private readonly VirtioDevice _device;
    private readonly IPciInterrupts _output;
    private readonly Action<string> _message;
    private readonly Action<Exception> _failed;
    private readonly RankedLock _lock = new(LockRank.VirtioTransport);
    private readonly RankedLock _interrupts = new(LockRank.VirtioInterrupts);
    private readonly MsixTable _msix;
    private readonly List<QueueWorker> _workers = [];

    private int _status, _isr;
    private uint _deviceSelect, _driverSelect;
    private ulong _driverFeatures;
    private ushort _configVector = NoVector, _queueSelect;
    private bool _lineDisabled, _disposed;

    /// <param name="device">Belongs to the transport from now on.</param>
    /// <param name="output">Its interrupts.</param>
    /// <param name="offered">Features of the queues that are offered: <see cref="VirtioFeature.OfTransport"/> or less.</param>
    /// <param name="message">Told why a driver was stopped, a line; any thread.</param>
    /// <param name="failed">Told of a defect here, on a thread of a queue.</param>
    public VirtioTransport(VirtioDevice device, IPciInterrupts output, ulong offered, Action<string> message, Action<Exception> failed)
    {
        if (device.Queues.Length > MaxQueues)
            throw new ArgumentException($"a device has at most {MaxQueues} queues", nameof(device));
        (_device, _output, _message, _failed) = (device, output, message, failed);
        OfferedFeatures = device.Features | offered | VirtioFeature.Version1;
        _msix = new MsixTable(device.Queues.Length + 1, output);
        device.Transport = this;
    }

    public ulong OfferedFeatures { get; }
    public VirtioDevice Device => _device;
    public int Vectors => _msix.Count;
    public int TableBytes => _msix.TableBytes;
    public int PendingBytes => _msix.PendingBytes;

    /// <summary>The pin is asserted, or would be if it were not disabled.</summary>
    public bool HasLineInterrupt
    {
        get
        {
            using (_interrupts.Enter())
                return _isr != 0 && !_msix.IsEnabled;
        }
    }

    /// <summary>The driver has written the MSI-X capability's message control.</summary>
    public void SetMsixControl(ushort control)
    {
        using (_interrupts.Enter())
        {
            _msix.SetControl(control);
            UpdateLine();
        }
    }

    /// <summary>The command register's INTx disable.</summary>
    public void DisableLine(bool disabled)
    {
        using (_interrupts.Enter())
        {
            _lineDisabled = disabled;
            UpdateLine();
        }
    }

    private void UpdateLine() => _output.SetLine(_isr != 0 && !_msix.IsEnabled && !_lineDisabled);

    /// <summary>A queue has used buffers that the driver wants to hear of.</summary>
    internal void Interrupt(VirtQueue queue) => Raise(queue.Vector, IsrQueue);

    private void Raise(ushort vector, byte cause)
    {
        using (_interrupts.Enter())
        {
            if (_msix.IsEnabled)
            {
                _msix.Raise(vector);
                return;
            }
            _isr |= cause;
            UpdateLine();
        }
    }

    /// <summary>The driver has to reset the device before anything is served again.</summary>
    internal bool IsStopped => (Volatile.Read(ref _status) & VirtioStatus.NeedsReset) != 0;

    /// <summary>The driver has broken the rules: nothing is served until it resets the device.</summary>
    internal void NeedReset(string why)
    {
        int before = Interlocked.Or(ref _status, VirtioStatus.NeedsReset);
        if ((before & VirtioStatus.NeedsReset) != 0)
            return;
        _message($"{_device.Name} stopped: {why}");
        if ((before & VirtioStatus.DriverOk) != 0)
            Raise(_configVector, IsrConfig);
    }

    /// <summary>A thread of a queue has met a defect.</summary>
    internal void Fail(Exception e) => _failed(e);

    /// <summary>Whether queues have threads. Without, <see cref="TryServe"/> is somebody's to call.</summary>
    internal bool HasThreads { get; init; } = true;

    /// <summary>Serves what a queue has, in the order in which it came. False: nothing is left, and the driver will ring.</summary>
    internal bool TryServe(int index, ref bool stop)
    {
        VirtQueue queue = _device.Queues[index];
        using (queue.Gate.Enter())
        {
            queue.SuppressDoorbells();
            while (!Volatile.Read(ref stop) && !IsStopped && queue.TryPop(out DescriptorChain chain))
            {
                uint written = _device.Serve(index, chain);
                if (queue.Fault is null && queue.Push(chain, written))
                    Interrupt(queue);
            }
            bool rest = queue.TryRest();
            if (queue.Fault is { } why)
                NeedReset(why);
            return !rest && !IsStopped;
        }
    }

    public void Read(ulong offset, Span<byte> data)
    {
        data.Clear();
        (int area, int at) = Split(offset, data.Length);
        switch (area)
        {
            case CommonAt when at < CommonBytes:
                ReadCommon(at, data);
                break;
            case IsrAt when at == 0:
                data[0] = TakeIsr();
                break;
            case DeviceAt:
                ReadOnlySpan<byte> config = _device.Config;
                if (at < config.Length)
                    config[at..Math.Min(config.Length, at + data.Length)].CopyTo(data);
                break;
            case TableAt or TableAt + AreaBytes:
                at += area - TableAt;
                using (_interrupts.Enter())
                    if (at + data.Length <= _msix.TableBytes)
                        _msix.Read(at, data);
                break;
            case PendingAt:
                using (_interrupts.Enter())
                    if (at + data.Length <= _msix.PendingBytes)
                        _msix.ReadPending(at, data);
                break;
        }
    }

    public void Write(ulong offset, ReadOnlySpan<byte> data)
    {
        (int area, int at) = Split(offset, data.Length);
        switch (area)
        {
            case CommonAt when at < CommonBytes:
                using (_lock.Enter())
                    WriteCommon(at, data);
                break;
            case DeviceAt when at + data.Length <= _device.Config.Length:
                using (_lock.Enter())
                    _device.WriteConfig(at, data);
                break;
            case DoorbellsAt when at / DoorbellBytes < _device.Queues.Length:
                _device.Queues[at / DoorbellBytes].Ring();
                break;
            case TableAt or TableAt + AreaBytes:
                at += area - TableAt;
                using (_interrupts.Enter())
                    if (at + data.Length <= _msix.TableBytes)
                        _msix.Write(at, data);
                break;
        }
    }

    /// <summary>The area of an access, and the offset in it; no area when it leaves the area.</summary>
    private static (int Area, int At) Split(ulong offset, int length)
    {
        if (offset >= BarBytes)
            return (-1, 0);
        int at = (int)(offset % AreaBytes);
        return at + length <= AreaBytes ? ((int)offset - at, at) : (-1, 0);
    }

    /// <summary>Reading clears it, and takes the line back.</summary>
    private byte TakeIsr()
    {
        using (_interrupts.Enter())
        {
            int isr = _isr;
            _isr = 0;
            UpdateLine();
            return (byte)isr;
        }
    }

    /// <summary>Stops the threads; the guest does not run any more, or finds the device no more. A late access does nothing.</summary>
    public void Dispose()
    {
        using (_lock.Enter())
        {
            if (_disposed)
                return;
            _disposed = true;
            _device.Stopping();
            foreach (QueueWorker worker in _workers)
                worker.Stop();
        }
        _device.Dispose();
        using (_interrupts.Enter())
        {
            _isr = 0;
            UpdateLine();
        }
    }
}
