using System.Buffers.Binary;

namespace Ring3.Virtio;

// The common configuration. SPEC: virtio 1.2, "Common configuration structure layout".
public sealed partial class VirtioTransport
{
    private const int DeviceFeatureSelect = 0, DeviceFeature = 4, DriverFeatureSelect = 8, DriverFeature = 12, ConfigVector = 16, NumQueues = 18, Status = 20,
        Generation = 21, QueueSelect = 22, QueueSize = 24, QueueVector = 26, QueueEnable = 28, QueueNotifyOff = 30, QueueDescriptors = 32, QueueDriver = 40,
        QueueDevice = 48;

    private VirtQueue? Selected => _queueSelect < _device.Queues.Length ? _device.Queues[_queueSelect] : null;

    private void ReadCommon(int at, Span<byte> data)
    {
        Span<byte> all = stackalloc byte[CommonBytes];
        using (_lock.Enter())
            Snapshot(all);
        all[at..Math.Min(CommonBytes, at + data.Length)].CopyTo(data);
    }

    private void Snapshot(Span<byte> all)
    {
        void Put16(Span<byte> to, int at, ushort value) => BinaryPrimitives.WriteUInt16LittleEndian(to[at..], value);
        void Put32(Span<byte> to, int at, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(to[at..], value);
        void Put64(Span<byte> to, int at, ulong value) => BinaryPrimitives.WriteUInt64LittleEndian(to[at..], value);
        Put32(all, DeviceFeatureSelect, _deviceSelect);
        Put32(all, DeviceFeature, _deviceSelect < 2 ? (uint)(OfferedFeatures >> (int)(32 * _deviceSelect)) : 0);
        Put32(all, DriverFeatureSelect, _driverSelect);
        Put32(all, DriverFeature, _driverSelect < 2 ? (uint)(_driverFeatures >> (int)(32 * _driverSelect)) : 0);
        Put16(all, ConfigVector, _configVector);
        Put16(all, NumQueues, (ushort)_device.Queues.Length);
        all[Status] = (byte)Volatile.Read(ref _status);
        // The configuration of these devices never changes.
        all[Generation] = 0;
        Put16(all, QueueSelect, _queueSelect);
        // A queue that is not there has size 0.
        if (Selected is not { } queue)
            return;
        Put16(all, QueueSize, queue.Size);
        Put16(all, QueueVector, queue.Vector);
        Put16(all, QueueEnable, (ushort)(queue.IsEnabled ? 1 : 0));
        Put16(all, QueueNotifyOff, _queueSelect);
        Put64(all, QueueDescriptors, queue.Descriptors);
        Put64(all, QueueDriver, queue.DriverArea);
        Put64(all, QueueDevice, queue.DeviceArea);
    }

    /// <summary>A write of a whole field, or of a half of a 64-bit one; others have no effect.</summary>
    private void WriteCommon(int at, ReadOnlySpan<byte> data)
    {
        ulong value = 0;
        for (int i = Math.Min(data.Length, 8) - 1; i >= 0; i--)
            value = value << 8 | data[i];
        switch (at, data.Length)
        {
            case (DeviceFeatureSelect, 4): _deviceSelect = (uint)value; break;
            case (DriverFeatureSelect, 4): _driverSelect = (uint)value; break;
            case (DriverFeature, 4): SetDriverFeatures((uint)value); break;
            case (ConfigVector, 2): SetConfigVector((ushort)value); break;
            case (Status, 1): SetStatus((byte)value); break;
            case (QueueSelect, 2): _queueSelect = (ushort)value; break;
            case (QueueVector, 2) when Selected is { } queue:
                queue.Vector = value < (ulong)_msix.Count ? (ushort)value : NoVector;
                break;
            case (QueueEnable, 2) when value == 1 && Selected is { IsEnabled: false } queue: Enable(queue); break;
            case (QueueSize, 2) when Selected is { IsEnabled: false } queue: queue.Size = (ushort)value; break;
            case ( >= QueueDescriptors and < CommonBytes, 4 or 8) when Selected is { IsEnabled: false } queue: SetAddress(queue, at, value, data.Length); break;
        }
    }

    private void SetConfigVector(ushort vector)
    {
        using (_interrupts.Enter())
            _configVector = vector < _msix.Count ? vector : NoVector;
    }

    private void SetDriverFeatures(uint half)
    {
        if (_driverSelect > 1 || (Volatile.Read(ref _status) & VirtioStatus.FeaturesOk) != 0)
            return;
        int shift = (int)(32 * _driverSelect);
        _driverFeatures = _driverFeatures & ~(0xffff_ffffUL << shift) | (ulong)half << shift;
    }

    private static void SetAddress(VirtQueue queue, int at, ulong value, int bytes)
    {
        if (at % bytes != 0)
            return;
        ulong Put(ulong before) => bytes == 8 ? value : at % 8 == 0 ? before & ~0xffff_ffffUL | value : before & 0xffff_ffff | value << 32;
        switch (at & ~7)
        {
            case QueueDescriptors: queue.Descriptors = Put(queue.Descriptors); break;
            case QueueDriver: queue.DriverArea = Put(queue.DriverArea); break;
            case QueueDevice: queue.DeviceArea = Put(queue.DeviceArea); break;
        }
    }

    private void Enable(VirtQueue queue)
    {
        int status = Volatile.Read(ref _status);
        if ((status & (VirtioStatus.DriverOk | VirtioStatus.NeedsReset)) != 0)
            return;
        if ((status & VirtioStatus.FeaturesOk) == 0)
            NeedReset("a queue is enabled before the features are agreed on");
        else if (!queue.TryEnable(_driverFeatures))
            NeedReset("a queue has a size or an address that it must not have");
    }

    private void SetStatus(byte value)
    {
        if (value == 0)
        {
            Reset();
            return;
        }
        int before = Volatile.Read(ref _status);
        // Bits are cleared by a reset alone.
        const byte Known = VirtioStatus.Acknowledge | VirtioStatus.Driver | VirtioStatus.FeaturesOk | VirtioStatus.DriverOk | VirtioStatus.Failed;
        int added = value & ~before & Known;
        if ((added & VirtioStatus.FeaturesOk) != 0 && !FeaturesAgree())
            added &= ~VirtioStatus.FeaturesOk;
        if ((added & VirtioStatus.DriverOk) != 0 && ((before | added) & VirtioStatus.FeaturesOk) == 0)
            added &= ~VirtioStatus.DriverOk;
        _ = Interlocked.Or(ref _status, added);
        if ((added & VirtioStatus.DriverOk) != 0 && (before & VirtioStatus.NeedsReset) == 0)
            Start();
    }

    private bool FeaturesAgree() =>
        (_driverFeatures & ~OfferedFeatures) == 0 && (_driverFeatures & VirtioFeature.Version1) != 0
        && _device.Accepts(_driverFeatures & ~VirtioFeature.OfTransport);

    private void Start()
    {
        if (_disposed)
            return;
        StartWorkers();
        _device.Started(_driverFeatures);
        foreach (VirtQueue queue in _device.Queues)
            queue.Start();
    }

    private void StartWorkers()
    {
        if (_disposed || _workers.Count != 0 || !HasThreads)
            return;
        for (int i = 0; i < _device.Queues.Length; i++)
            if (_device.HasWorker(i))
                _workers.Add(new QueueWorker(this, _device, i));
    }

    private void Reset()
    {
        foreach (VirtQueue queue in _device.Queues)
            queue.Reset();
        using (_interrupts.Enter())
        {
            _isr = 0;
            _configVector = NoVector;
            UpdateLine();
        }
        (_deviceSelect, _driverSelect, _driverFeatures, _queueSelect) = (0, 0, 0, 0);
        Volatile.Write(ref _status, 0);
    }
}
