using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

/// <summary>
/// The registers that the ACPI tables' methods use to add and remove PCI devices while the machine runs, a bit for each slot: devices that have come, devices
/// that the guest is asked to let go, and slots that it has let go. SPEC: ACPI 6.4, "Device Insertion, Removal, and Status Objects".
/// </summary>
/// <param name="changed">Told that the guest has to look, with an event.</param>
/// <param name="ejected">Told of a slot that the guest has let go, on its vCPU.</param>
public sealed class PciHotplug(Action changed, Action<int> ejected) : IBusDevice
{
    /// <summary>First port. The first two registers are cleared by writing ones; what the third reads is nothing.</summary>
    public const ushort Base = 0x640;
    public const int Ports = 0x10, AddedOffset = 0, RemovalOffset = 4, EjectOffset = 8, RegisterBytes = 4;

    private readonly RankedLock _lock = new(LockRank.PciHotplug);
    private uint _added, _removal;

    /// <summary>A device has come into a slot.</summary>
    public void NoteAdded(int slot)
    {
        using (_lock.Enter())
            _added |= 1u << slot;
        changed();
    }

    /// <summary>The guest is to let a slot's device go.</summary>
    public void RequestRemoval(int slot)
    {
        using (_lock.Enter())
            _removal |= 1u << slot;
        changed();
    }

    /// <summary>Tells the guest again of what it has not looked at yet.</summary>
    public void Remind()
    {
        bool waits;
        using (_lock.Enter())
            waits = (_added | _removal) != 0;
        if (waits)
            changed();
    }

    /// <summary>A slot's device is gone: there is nothing to be told of it any more.</summary>
    public void Forget(int slot)
    {
        using (_lock.Enter())
        {
            _added &= ~(1u << slot);
            _removal &= ~(1u << slot);
        }
    }

    /// <summary>Registers of a snapshot.</summary>
    public void Transfer(StateTransfer state)
    {
        using (_lock.Enter())
        {
            state.Section("hotplug");
            state.Value(ref _added);
            state.Value(ref _removal);
        }
    }

    public void Read(ulong offset, Span<byte> data)
    {
        using (_lock.Enter())
        {
            for (int i = 0; i < data.Length; i++)
            {
                ulong at = offset + (ulong)i;
                uint register = at switch { < RemovalOffset => _added, < EjectOffset => _removal, _ => 0 };
                data[i] = (byte)(register >> Shift(at));
            }
        }
    }

    public void Write(ulong offset, ReadOnlySpan<byte> data)
    {
        uint gone = 0;
        using (_lock.Enter())
        {
            for (int i = 0; i < data.Length; i++)
            {
                ulong at = offset + (ulong)i;
                uint bits = (uint)data[i] << Shift(at);
                switch (at)
                {
                    case < RemovalOffset: _added &= ~bits; break;
                    case < EjectOffset: _removal &= ~bits; break;
                    case < EjectOffset + RegisterBytes: gone |= bits; break;
                }
            }
        }
        for (int slot = 0; gone != 0; slot++, gone >>= 1)
        {
            if ((gone & 1) != 0)
                ejected(slot);
        }
    }

    private static int Shift(ulong at) => (int)(8 * (at % RegisterBytes));
}
