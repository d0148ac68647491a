using System.Buffers.Binary;
using Ring3.Abi;

namespace Ring3.Irqchip;

// The memory-mapped registers and the state format of KVM_GET_IRQCHIP.
public sealed partial class Ioapic
{
    private const int Select = 0x00, Window = 0x10, EoiRegister = 0x40;
    private const byte VersionWithEoiRegister = 0x20;

    /// <summary>Guest read at byte <paramref name="offset"/>. 8 and 16-bit reads return the low part of the register, 64-bit reads zero-extend.</summary>
    public void MmioRead(int offset, Span<byte> data)
    {
        data.Clear();
        if ((offset & 0xf) != 0)
            return;
        uint value;
        using (_lock.Enter())
            value = offset switch { Select => _select, Window => ReadIndirect(), _ => 0 };
        Span<byte> bytes = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32LittleEndian(bytes, value);
        bytes[..Math.Min(4, data.Length)].CopyTo(data);
    }

    /// <summary>Guest write. Any size is accepted and zero-extended, as KVM does.</summary>
    public void MmioWrite(int offset, ReadOnlySpan<byte> data)
    {
        if ((offset & 0xf) != 0)
            return;
        Span<byte> bytes = stackalloc byte[4];
        bytes.Clear();
        data[..Math.Min(4, data.Length)].CopyTo(bytes);
        uint value = BinaryPrimitives.ReadUInt32LittleEndian(bytes);
        switch (offset)
        {
            case Select:
                using (_lock.Enter())
                    _select = value & 0xff;
                break;
            case Window:
                WriteIndirect(value);
                break;
            case EoiRegister when _version >= VersionWithEoiRegister:
                DirectedEoi((byte)value);
                break;
        }
    }

    private uint ReadIndirect()
    {
        switch (_select)
        {
            case 0 or 2:
                return (_id & 0xf) << 24;
            case 1:
                return _version | (uint)(PinCount - 1) << 16;
            default:
                uint index = (_select - 0x10) >> 1;
                if (_select < 0x10 || index >= PinCount)
                    return 0;
                ulong entry = _table[index].Value;
                return (_select & 1) != 0 ? (uint)(entry >> 32) : (uint)entry;
        }
    }

    private void WriteIndirect(uint value)
    {
        int pin;
        bool before, after;
        using (_lock.Enter())
        {
            if (_select == 0)
                _id = value >> 24 & 0xf;
            pin = (int)(_select - 0x10) >> 1;
            if (_select < 0x10 || pin >= PinCount)
                return;
            before = _table[pin].Masked;
            _table[pin].Write((_select & 1) != 0, value);
            after = _table[pin].Masked;
            UpdateEoiVectors();
        }
        if (before != after)
            _observer.PinMaskChanged(KvmApi.KVM_IRQCHIP_IOAPIC, (uint)pin, after);
        using (_lock.Enter())
        {
            RedirectionEntry entry = _table[pin];
            if (entry.Level && !entry.Masked && !entry.RemoteIrr && (_irr >> pin & 1) != 0)
                _ = Service(pin, false);
        }
    }

    /// <summary>Write to the EOI register: ends the level interrupts that use the vector.</summary>
    private void DirectedEoi(byte vector)
    {
        for (int pin = 0; pin < PinCount; pin++)
        {
            bool match;
            using (_lock.Enter())
                match = _table[pin].Vector == vector && _table[pin].Level && _table[pin].RemoteIrr;
            if (!match)
                continue;
            _observer.PinAcked(KvmApi.KVM_IRQCHIP_IOAPIC, (uint)pin);
            using (_lock.Enter())
                EndLevel(pin);
        }
    }

    /// <summary>Redirection entry of a pin; for tests and dumps.</summary>
    internal ulong Entry(int pin)
    {
        using (_lock.Enter())
            return _table[pin].Value;
    }

    /// <summary>KVM_GET_IRQCHIP. An edge that was delivered is not reported as pending.</summary>
    // SAFETY: redirtbl is a fixed buffer of PinCount elements inside the struct.
    public unsafe kvm_ioapic_state GetState()
    {
        using (_lock.Enter())
        {
            var state = new kvm_ioapic_state { base_address = BaseAddress, ioregsel = _select, id = _id, irr = _irr & ~_irrDelivered };
            for (int i = 0; i < PinCount; i++)
                state.redirtbl[i] = _table[i].Value;
            return state;
        }
    }

    /// <summary>KVM_SET_IRQCHIP: loads the table and delivers what was pending.</summary>
    // SAFETY: redirtbl is a fixed buffer of PinCount elements inside the struct.
    public unsafe void SetState(in kvm_ioapic_state state)
    {
        using (_lock.Enter())
        {
            BaseAddress = state.base_address;
            _select = state.ioregsel & 0xff;
            _id = state.id & 0xf;
            for (int i = 0; i < PinCount; i++)
                _table[i].Value = state.redirtbl[i];
            _irr = 0;
            _irrDelivered = 0;
            UpdateEoiVectors();
            ForgetRtc();
            foreach (Lapic apic in _bus.Members)
                Restored(apic);
            for (int pin = 0; pin < PinCount; pin++)
                if ((state.irr >> pin & 1) != 0)
                    _ = SetLevel(pin, true, false);
        }
    }
}
