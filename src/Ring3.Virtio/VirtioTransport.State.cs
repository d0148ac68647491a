using Ring3.Host;

namespace Ring3.Virtio;

// Snapshots: the device stands still, its state is taken or given, and it goes on.
public sealed partial class VirtioTransport
{
    /// <summary>Nothing is served until <see cref="Release"/>. On return no request is being served. The vCPUs do not run.</summary>
    public void Hold()
    {
        foreach (VirtQueue queue in _device.Queues)
            queue.Hold();
        _device.Held();
    }

    /// <summary>The device goes on, or begins with the state that it was given.</summary>
    public void Release()
    {
        using (_lock.Enter())
        {
            if ((Volatile.Read(ref _status) & VirtioStatus.DriverOk) != 0)
                StartWorkers();
            foreach (VirtQueue queue in _device.Queues)
                queue.Release();
        }
    }

    /// <summary>The registers, queues and messages of a snapshot. The device is held.</summary>
    /// <exception cref="NotSupportedException">There is no snapshot of the device.</exception>
    /// <exception cref="InvalidDataException">The state is another device's.</exception>
    public void Transfer(StateTransfer state)
    {
        using (_lock.Enter())
        {
            state.Section($"virtio {_device.Name}");
            state.Value(ref _status);
            state.Value(ref _deviceSelect);
            state.Value(ref _driverSelect);
            state.Value(ref _driverFeatures);
            state.Value(ref _queueSelect);
            if (state.IsLoading && (_driverFeatures & ~OfferedFeatures) != 0)
                throw new InvalidDataException($"{_device.Name} does not have these features");
            using (_interrupts.Enter())
            {
                state.Value(ref _isr);
                state.Value(ref _configVector);
                state.Value(ref _lineDisabled);
                _msix.Transfer(state);
                UpdateLine();
            }
            // Before the queues: what begins with a driver begins here.
            if (state.IsLoading && (_status & VirtioStatus.DriverOk) != 0)
                _device.Started(_driverFeatures);
            foreach (VirtQueue queue in _device.Queues)
                queue.Transfer(state, _driverFeatures);
            _device.Transfer(state);
        }
    }
}
