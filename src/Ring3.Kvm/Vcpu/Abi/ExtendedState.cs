using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;

// SAFETY: the client's structures are pinned where a pointer is taken; indices into them and into the processor's state are constants, or registers' numbers.
namespace Ring3.Kvm;

/// <summary>x87, SSE, AVX and PKRU state as the client has it: KVM_GET/SET_FPU, KVM_GET/SET_XSAVE, KVM_GET/SET_XCRS. It lives in the processor.</summary>
internal sealed class ExtendedState(VcpuCore core) : VcpuPart(core)
{
    private const uint InitialMxcsr = 0x1f80;
    private const ushort InitialFcw = 0x37f;
    private const int X87Bytes = 128;

    /// <summary>Bits of MXCSR that the processor has, whatever the guest's CPUID says: AMD's have MM.</summary>
    private uint MxcsrMask => IsAmd ? 0x2_ffffu : 0xffff;

    /// <summary>KVM_GET_FPU. KVM: mxcsr is 0; it belongs to KVM_GET_XSAVE.</summary>
    public unsafe void GetFpu(out kvm_fpu fpu)
    {
        CpuState* c = _s;
        kvm_fpu f = new() { fcw = c->Fcw, fsw = c->Fsw, ftwx = c->Ftw, last_opcode = c->Fop, last_ip = c->Fip, last_dp = c->Fdp };
        StoreStack(c, f.fpr);
        for (int i = 0; i < 16; i++)
            Buffer.MemoryCopy(c->Ymm + 32 * i, f.xmm + 16 * i, 16, 16);
        fpu = f;
    }

    /// <summary>KVM_SET_FPU. KVM: mxcsr is ignored.</summary>
    public unsafe void SetFpu(in kvm_fpu fpu)
    {
        CpuState* c = _s;
        ForgetSelectors(c);
        (c->Fcw, c->Fsw, c->Ftw, c->Fop, c->Fip, c->Fdp) = (fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_opcode, fpu.last_ip, fpu.last_dp);
        fixed (kvm_fpu* f = &fpu)
        {
            LoadStack(c, f->fpr);
            for (int i = 0; i < 16; i++)
                Buffer.MemoryCopy(f->xmm + 16 * i, c->Ymm + 32 * i, 16, 16);
        }
    }

    private int PkruOffset => Vm.Processor.PkruOffset;

    // KVM keeps PKRU beside the image: a SET that does not have it leaves it alone, and a GET has it once the guest has run, whatever its value.
    private bool _pkruWasSet;
    private ulong _retiredAtSet;

    private unsafe bool ShowsPkru =>
        _s->Pkru != 0 || (Cpu.CpuidFeatures.Xcr0Mask & Xcr0.Pkru) != 0 && (_pkruWasSet || _s->InstructionsRetired != _retiredAtSet);

    /// <summary>KVM_GET_XSAVE: the standard format, with the components in use as XSAVEC finds them.</summary>
    public unsafe void GetXsave(out kvm_xsave xsave)
    {
        kvm_xsave x = default;
        CpuState* c = _s;
        byte* p = (byte*)x.region;
        *(ushort*)p = c->Fcw;
        *(ushort*)(p + 2) = c->Fsw;
        p[4] = c->Ftw;
        *(ushort*)(p + 6) = c->Fop;
        *(ulong*)(p + 8) = c->Fip;
        *(ulong*)(p + 16) = c->Fdp;
        *(uint*)(p + 24) = c->Mxcsr;
        *(uint*)(p + 28) = MxcsrMask;
        StoreStack(c, p + 32);
        for (int i = 0; i < 16; i++)
        {
            Buffer.MemoryCopy(c->Ymm + 32 * i, p + 160 + 16 * i, 16, 16);
            Buffer.MemoryCopy(c->Ymm + 32 * i + 16, p + XsaveArea.AvxOffset + 16 * i, 16, 16);
        }
        *(uint*)(p + PkruOffset) = c->Pkru;
        *(ulong*)(p + XsaveArea.LegacySize) = ComponentsInUse() | (ShowsPkru ? Xcr0.Pkru : 0);
        xsave = x;
    }

    private unsafe ulong ComponentsInUse()
    {
        CpuState* c = _s;
        bool x87 = c->Fcw != InitialFcw || (c->Fsw | c->Ftw | c->Fop) != 0 || (c->Fip | c->Fdp) != 0
            || new ReadOnlySpan<byte>(c->X87, X87Bytes).ContainsAnyExcept((byte)0);
        bool sse = c->Mxcsr != InitialMxcsr, avx = false;
        for (int i = 0; i < 16; i++)
        {
            ulong* ymm = (ulong*)(c->Ymm + 32 * i);
            sse |= (ymm[0] | ymm[1]) != 0;
            avx |= (ymm[2] | ymm[3]) != 0;
        }
        return (x87 ? Xcr0.X87 : 0) | (sse ? Xcr0.Sse : 0) | (avx ? Xcr0.Avx : 0);
    }

    /// <summary>
    /// KVM_SET_XSAVE: 0, or -EINVAL for unsupported components, a compacted area, other non-zero bytes of the header, or reserved bits of MXCSR when a
    /// component of the legacy area is there. What is not there gets its initial value.
    /// </summary>
    public unsafe int SetXsave(in kvm_xsave xsave)
    {
        fixed (kvm_xsave* x = &xsave)
        {
            byte* p = (byte*)x->region;
            ulong bv = *(ulong*)(p + XsaveArea.LegacySize);
            if ((bv & ~SupportedCpuid.SupportedXcr0) != 0
                || new ReadOnlySpan<byte>(p + XsaveArea.LegacySize + 8, (int)XsaveArea.HeaderSize - 8).ContainsAnyExcept((byte)0)
                || (bv & (Xcr0.X87 | Xcr0.Sse | Xcr0.Avx)) != 0 && (*(uint*)(p + 24) & ~MxcsrMask) != 0)
                return -Errno.EINVAL;
            LoadX87(p, (bv & Xcr0.X87) != 0);
            _s->Mxcsr = (bv & (Xcr0.Sse | Xcr0.Avx)) != 0 ? *(uint*)(p + 24) : InitialMxcsr;
            for (int i = 0; i < 16; i++)
            {
                LoadVector(_s->Ymm + 32 * i, p + 160 + 16 * i, (bv & Xcr0.Sse) != 0);
                LoadVector(_s->Ymm + 32 * i + 16, p + XsaveArea.AvxOffset + 16 * i, (bv & Xcr0.Avx) != 0);
            }
            (_pkruWasSet, _retiredAtSet) = ((bv & Xcr0.Pkru) != 0, _s->InstructionsRetired);
            if (_pkruWasSet)
                Cpu.Pkru = *(uint*)(p + PkruOffset);
        }
        return 0;
    }

    private static unsafe void LoadVector(byte* to, byte* from, bool present)
    {
        if (present)
            Buffer.MemoryCopy(from, to, 16, 16);
        else
            new Span<byte>(to, 16).Clear();
    }

    /// <summary>FCS and FDS are zero after the XRSTOR64 with which KVM loads what a client gives.</summary>
    private static unsafe void ForgetSelectors(CpuState* c) => (c->FipSelector, c->FdpSelector) = (0, 0);

    private unsafe void LoadX87(byte* p, bool present)
    {
        CpuState* c = _s;
        ForgetSelectors(c);
        if (present)
        {
            (c->Fcw, c->Fsw, c->Ftw, c->Fop, c->Fip, c->Fdp) = (*(ushort*)p, *(ushort*)(p + 2), p[4], *(ushort*)(p + 6), *(ulong*)(p + 8), *(ulong*)(p + 16));
            LoadStack(c, p + 32);
            return;
        }
        (c->Fcw, c->Fsw, c->Ftw, c->Fop, c->Fip, c->Fdp) = (InitialFcw, 0, 0, 0, 0, 0);
        new Span<byte>(c->X87, X87Bytes).Clear();
    }

    /// <summary>FXSAVE order is by stack position, the state's by physical register.</summary>
    private static unsafe void StoreStack(CpuState* c, byte* to)
    {
        int top = c->Fsw >> 11 & 7;
        for (int i = 0; i < 8; i++)
            Buffer.MemoryCopy(c->X87 + 16 * ((top + i) & 7), to + 16 * i, 10, 10);
    }

    private static unsafe void LoadStack(CpuState* c, byte* from)
    {
        int top = c->Fsw >> 11 & 7;
        for (int i = 0; i < 8; i++)
            Buffer.MemoryCopy(from + 16 * i, c->X87 + 16 * ((top + i) & 7), 16, 10);
    }

    /// <summary>KVM_GET_XCRS.</summary>
    public unsafe void GetXcrs(out kvm_xcrs xcrs)
    {
        xcrs = new() { nr_xcrs = 1 };
        xcrs.xcrs[0] = new() { xcr = 0, value = _s->Xcr0 };
    }

    /// <summary>KVM_SET_XCRS: 0 or -EINVAL.</summary>
    public int SetXcrs(in kvm_xcrs xcrs)
    {
        if (xcrs.nr_xcrs > 16 || xcrs.flags != 0)
            return -Errno.EINVAL;
        for (int i = 0; i < xcrs.nr_xcrs; i++)
        {
            if (xcrs.xcrs[i].xcr == 0)
                return TrySetXcr0(xcrs.xcrs[i].value) ? 0 : -Errno.EINVAL;
        }
        return 0;
    }

    /// <summary>XSETBV with the guest's ECX and EDX:EAX. False: #GP(0).</summary>
    public unsafe bool TryExecuteXsetbv()
    {
        if ((uint)_s->Gpr[1] != 0 || !TrySetXcr0(_s->Gpr[2] << 32 | (uint)_s->Gpr[0]))
            return false;
        Cpu.SkipInstruction();
        return true;
    }

    private unsafe bool TrySetXcr0(ulong value)
    {
        if ((value & Xcr0.X87) == 0 || (value & ~Cpu.CpuidFeatures.Xcr0Mask) != 0 || (value & Xcr0.Avx) != 0 && (value & Xcr0.Sse) == 0)
            return false;
        _s->Xcr0 = value;
        Cpu.RecomputeMode();
        return true;
    }
}
