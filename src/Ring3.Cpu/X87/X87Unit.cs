using System.Runtime.CompilerServices;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>
/// The guest's x87 registers on the host's unit. The first x87 instruction loads the whole register stack ("live"); those that follow are executed directly on
/// it, so stack faults, condition codes, tags and rounding
/// are the silicon's own. Anything that needs the registers in the state parks them first. With unmasked exceptions each instruction is loaded, executed and
/// saved by itself:
/// the host's unit then has the guest's masks too, but a pending exception is raised only by the next waiting instruction, and FXSAVE does not wait.
/// INVARIANT: between thunks, managed and native code of this thread execute no x87 or MMX instruction; every exit from the guest parks.
/// </summary>
/// <remarks>SAFETY: the image is part of the state, 64-byte aligned and 576 bytes long; the thunks touch only its first 514.</remarks>
internal static unsafe class X87Unit
{
    /// <summary>Values of <see cref="CpuState.X87Live"/>.</summary>
    public const byte Parked = 0, Live = 1, LiveUnmasked = 2;

    private const int StatusOffset = 2, TagOffset = 4, MxcsrOffset = 24, RegistersOffset = 32, HostControlOffset = 512;

    private static readonly delegate* unmanaged[SuppressGCTransition]<byte*, void> s_load = Emit(0);
    private static readonly delegate* unmanaged[SuppressGCTransition]<byte*, void> s_save = Emit(1);
    private static readonly delegate* unmanaged[SuppressGCTransition]<byte*, void> s_saveUnmasked = Emit(2);

    private static delegate* unmanaged[SuppressGCTransition]<byte*, void> Emit(int kind)
    {
        ThunkAssembler a = new();
        if (kind == 0)
        {
            // FXRSTOR loads MXCSR too: give it what is there.
            a.Unary(Code.Stmxcsr_m32, Register.RDI, MxcsrOffset);
            a.Unary(Code.Fxrstor64_m512byte, Register.RDI);
        }
        else
        {
            a.Unary(Code.Fxsave64_m512byte, Register.RDI);
            if (kind == 1)
            {
                a.Plain(Code.Emms);
                a.Unary(Code.Fldcw_m2byte, Register.RDI, HostControlOffset);
            }
            else
            {
                a.Plain(Code.Fninit);
            }
        }
        a.Plain(Code.Retnq);
        return (delegate* unmanaged[SuppressGCTransition]<byte*, void>)a.Finish();
    }

    /// <summary>Loads the guest's registers into the host's unit. The caller has checked for a pending exception; with CR0.NE clear it is set aside.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static void Enter(CpuState* c)
    {
        byte* image = c->X87Image;
        ushort status = c->Fsw;
        if ((status & X87Status.ES) != 0)
            status &= (ushort)(~(X87Status.ES | X87Status.B | X87Status.Exceptions) | c->Fcw & X87Status.Exceptions);
        new Span<byte>(image, RegistersOffset).Clear();
        *(ushort*)image = c->Fcw;
        *(ushort*)(image + StatusOffset) = status;
        image[TagOffset] = c->Ftw;
        *(ushort*)(image + HostControlOffset) = X87Status.InitialControl;
        int top = X87Status.TopOf(status);
        for (int i = 0; i < 8; i++)
            Unsafe.CopyBlock(image + RegistersOffset + 16 * i, c->X87 + 16 * (top + i & 7), 16);
        s_load(image);
        c->X87Live = (c->Fcw & X87Status.Exceptions) == X87Status.Exceptions ? Live : LiveUnmasked;
    }

    /// <summary>Brings the x87 registers, Fsw and Ftw of the state up to date and empties the host's unit.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Park(CpuState* c)
    {
        if (c->X87Live != Parked)
            ParkLive(c);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void ParkLive(CpuState* c)
    {
        if (c->X87Live == LiveUnmasked)
            s_saveUnmasked(c->X87Image);
        else
            s_save(c->X87Image);
        Unload(c);
    }

    /// <summary>
    /// As <see cref="Park"/>, when a fault has taken the guest's registers off the host's unit. <paramref name="host"/>: FXSAVE image of the unit at the fault.
    /// </summary>
    public static void ParkFrom(CpuState* c, byte* host)
    {
        if (c->X87Live == Parked)
            return;
        Unsafe.CopyBlock(c->X87Image, host, HostControlOffset);
        Unload(c);
    }

    private static void Unload(CpuState* c)
    {
        byte* image = c->X87Image;
        ushort aside = c->X87Live == LiveUnmasked
            && (c->Fsw & X87Status.ES) != 0 ? (ushort)(c->Fsw & (X87Status.ES | X87Status.B | X87Status.Exceptions)) : (ushort)0;
        c->X87Live = Parked;
        ushort status = *(ushort*)(image + StatusOffset);
        c->Fsw = (ushort)(status | aside);
        c->Ftw = image[TagOffset];
        int top = X87Status.TopOf(status);
        for (int i = 0; i < 8; i++)
            Unsafe.CopyBlock(c->X87 + 16 * (top + i & 7), image + RegistersOffset + 16 * i, 16);
    }

    /// <summary>
    /// After a non-control instruction: parks under unmasked exceptions, and notes what FSTENV shows of the instruction. The registers of a memory operand's
    /// address are what they were before it.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Finish(LogicalProcessor p, CpuState* c, Op* op)
    {
        c->Fip = c->BlockRip + op->Offset;
        if (c->X87Live != Live || p.NotesEveryX87)
            FinishNoted(p, c, op);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void FinishNoted(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (c->X87Live == LiveUnmasked)
            ParkLive(c);
        // A pending exception is this instruction's: with an older one it would not have been executed, but for CR0.NE clear.
        if ((c->Fsw & X87Status.ES) == 0 && !p.NotesEveryX87)
            return;
        bool memory = (op->Flags & OpFlags.HasMemory) != 0;
        c->Fop = op->Imm2;
        if (memory)
            c->Fdp = Addressing.EffectiveAddress(c, op) & Addressing.AddressMask(op->AddressSize);
        if (!p.Model.HasX87Selectors)
            return;
        bool flat = CpuMode.Is64(c);
        c->FipSelector = flat ? (ushort)0 : c->Cs.Selector;
        if (memory)
            c->FdpSelector = flat ? (ushort)0 : CpuState.SegmentAt(c, op->Seg)->Selector;
    }

    /// <summary>What the model keeps of pointers that have been loaded from memory.</summary>
    public static void TrimPointers(LogicalProcessor p, CpuState* c)
    {
        if (p.Model.HasX87Selectors)
            return;
        c->FipSelector = c->FdpSelector = 0;
        c->Fip = (ulong)((long)(c->Fip << 7) >> 7);
    }

    /// <summary>FNINIT.</summary>
    public static void Initialize(CpuState* c)
    {
        Park(c);
        c->Fcw = X87Status.InitialControl;
        c->Fsw = 0;
        c->Ftw = 0;
        c->Fop = 0;
        c->Fip = c->Fdp = 0;
        c->FipSelector = c->FdpSelector = 0;
    }
}
