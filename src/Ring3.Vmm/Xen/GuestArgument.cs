using System.Runtime.CompilerServices;
using Ring3.Abi;
using Ring3.Kvm;

// SAFETY: spans over a local of an unmanaged type.
namespace Ring3.Vmm;

/// <summary>A structure that a hypercall names by linear address, read and written through the vCPU's page tables. Widths are those of 64-bit guests.</summary>
internal readonly struct GuestArgument(Vm vm, Vcpu vcpu, ulong address)
{
    /// <summary>Guest-physical address of the argument's first byte. False: not mapped.</summary>
    public bool TryTranslate(out ulong gpa)
    {
        kvm_translation t = new() { linear_address = address };
        vcpu.Translate(ref t);
        gpa = t.physical_address;
        return t.valid != 0;
    }

    public unsafe bool TryRead<T>(out T value, int offset = 0) where T : unmanaged
    {
        value = default;
        return Copy(new Span<byte>(Unsafe.AsPointer(ref value), sizeof(T)), offset, write: false);
    }

    public unsafe bool TryWrite<T>(T value, int offset = 0) where T : unmanaged => Copy(new Span<byte>(&value, sizeof(T)), offset, write: true);

    /// <summary>Writes bytes.</summary>
    public unsafe bool TryWrite(ReadOnlySpan<byte> data)
    {
        fixed (byte* p = data)
            return Copy(new Span<byte>(p, data.Length), 0, write: true);
    }

    /// <summary>Reads bytes.</summary>
    public bool TryRead(Span<byte> data) => Copy(data, 0, write: false);

    private bool Copy(Span<byte> data, int offset, bool write)
    {
        ulong at = address + (ulong)offset;
        while (data.Length != 0)
        {
            int n = (int)Math.Min((ulong)data.Length, 4096 - (at & 4095));
            if (!new GuestArgument(vm, vcpu, at).TryTranslate(out ulong gpa) || !(write ? vm.Memory.Write(gpa, data[..n]) : vm.Memory.Read(gpa, data[..n])))
                return false;
            data = data[n..];
            at += (ulong)n;
        }
        return true;
    }
}
