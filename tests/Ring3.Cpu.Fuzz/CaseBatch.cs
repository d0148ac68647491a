using System.Runtime.CompilerServices;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Differential;

/// <summary>What a case is for.</summary>
internal enum CaseKind : byte
{
    /// <summary>A valid instruction: everything is compared.</summary>
    Compare,
    /// <summary>Bytes that the decoder refuses: both sides must refuse them with the same exception.</summary>
    Invalid,
    /// <summary>A valid instruction that runs over the end of the mapped code: both sides must fault on the fetch.</summary>
    Truncated,
}

/// <summary>The part of a case that is not machine state.</summary>
internal struct CaseMeta
{
    internal CaseKind Kind;
    internal Instruction Instruction;
    /// <summary>Bytes of the instruction, or of the whole sequence.</summary>
    internal int Length;
    /// <summary>Instructions: more than one is a sequence that runs freely, so that flags across instructions and fused forms are compared too.</summary>
    internal int Count;
    /// <summary>Sequences: flags undefined at the end, and at any point before it.</summary>
    internal ulong UndefinedAtEnd, UndefinedAnywhere;
}

/// <summary>One batch of cases in memory: code slots, the data pages' contents and the inputs. A batch is a function of (seed, number).</summary>
/// <remarks>SAFETY: all pointers are of the given memory, indices below <see cref="Sandbox.MaxCases"/>.</remarks>
internal sealed unsafe class CaseBatch
{
    private readonly CaseMemory _cases;
    private readonly InstructionSource _source;
    private readonly Placement _placement;
    private readonly UndefinedFlags _undefined;
    private readonly InstructionInfoFactory _infoFactory = new();
    private readonly bool[] _runnable;
    private readonly int _bits, _rawPercent;
    /// <summary>Numbers of the codes that hand flags on, or leave them as they are between those that do.</summary>
    private readonly int[] _chain;

    internal CaseBatch(CaseMemory memory, Code[] codes, int bits, int rawPercent, UndefinedFlags undefined)
    {
        _undefined = undefined;
        _cases = memory;
        _source = new InstructionSource(codes, bits);
        _bits = bits;
        _placement = new Placement(_source, bits);
        _runnable = new bool[IcedConstants.CodeEnumCount];
        foreach (Code c in codes)
            _runnable[(int)c] = true;
        _chain = [.. Enumerable.Range(0, codes.Length).Where(n => IsOfChain(codes[n].Mnemonic()))];
        _rawPercent = rawPercent;
    }

    internal CaseMeta[] Meta { get; } = new CaseMeta[Sandbox.MaxCases];

    internal void Fill(ulong seed, ulong number)
    {
        var r = new FuzzRandom(seed * 0x9e37_79b9_7f4a_7c15 ^ number * 0xd134_2543_de82_ef95);
        Values.Lanes(ref r, _cases.Data, 512);
        for (int at = 512; at < Sandbox.DataSize; at += 64)
            Values.Lanes(ref r, _cases.Data + at, 64);
        new Span<byte>(_cases.Code, Sandbox.CodeSize).Fill(0xcc);
        for (int i = 0; i < Sandbox.MaxCases; i++)
        {
            while (!TryFillCase(ref r, i))
            {
            }
            // Both sides write the patch without a look.
            CaseInput* s = _cases.Input(i);
            if (s->PatchLength > Sandbox.MaxPatch || s->PatchLength != 0 && !Placement.IsWritable(Sandbox.DataAddress + s->PatchOffset, s->PatchLength))
                throw new InvalidOperationException($"seed {seed}, {_bits} bits, batch {number}, case {i}: "
                    + $"{s->PatchLength} bytes at {s->PatchOffset:x} are not on the data pages");
        }
    }

    /// <summary>RIP of a code slot's first byte.</summary>
    internal static ulong SlotAddress(int bits, int index) => bits == 16 ? (ulong)(index * Sandbox.SlotSize & 0xffff) : Sandbox.CodeAddress
        + (ulong)(index * Sandbox.SlotSize);

    internal static uint CodeSelector(int bits, int index) => bits switch { 64 => 0x33, 32 => 0x23, _ => index < Sandbox.MaxCases / 2
        ? Sandbox.WordCodeSelector0 : Sandbox.WordCodeSelector1 };

    private bool TryFillCase(ref FuzzRandom r, int index)
    {
        CaseInput* s = _cases.Input(index);
        int start = 192 + r.Below(64);
        // The last slot ends at an unmapped page: now and then an instruction runs over the edge.
        if (index == Sandbox.MaxCases - 1 && r.Chance(50))
            start = Sandbox.SlotSize - 1 - r.Below(10);
        ulong rip = SlotAddress(_bits, index) + (ulong)start;
        bool raw = r.Chance(_rawPercent);
        Instruction instruction = raw ? _source.NextRaw(ref r, rip) : _source.Next(ref r, r.Below(_source.Count), rip);
        StateBuilder.Fill(ref r, s);
        s->Rip = rip;
        s->Bits = (uint)_bits;
        s->CodeSelector = CodeSelector(_bits, index);
        if (instruction.IsInvalid)
        {
            // Only a sample: these say little once the decoder is right.
            if (!raw && !r.Chance(5) || start >= 256 || MayBeOpmask(_source.Bytes) || MayBeLockedControl(_source.Bytes))
                return false;
            SafeForUnknown(ref r, s);
            s->Rflags |= Rflags.TF;
            return Publish(index, start, instruction, CaseKind.Invalid, 16);
        }
        if (!_runnable[(int)instruction.Code] || _source.IsVendorSpecific(instruction) || !_placement.TryPlace(ref r, ref instruction, s))
            return false;
        if (instruction.Mnemonic is Mnemonic.Dpps or Mnemonic.Dppd or Mnemonic.Vdpps or Mnemonic.Vdppd)
            MaskExceptions(s); // which intermediate result is reported first is the processor's own business
        if (IsStateImage(instruction))
            s->Rflags &= ~Rflags.AC;
        bool truncated = start + instruction.Length > Sandbox.SlotSize;
        if (!truncated && start + instruction.Length + 8 > Sandbox.SlotSize)
            return false;
        if (!truncated && start < 256 && instruction.FlowControl == FlowControl.Next && r.Chance(30))
            return PublishSequence(ref r, index, start, instruction);
        return Publish(index, start, instruction, truncated ? CaseKind.Truncated : CaseKind.Compare, instruction.Length);
    }

    private static void MaskExceptions(CaseInput* s) => *(uint*)(s->Xsave + XsaveArea.Mxcsr) |= 0x1f80;

    /// <summary>Which pieces of a state image are checked for alignment is the processor's own business.</summary>
    private static bool IsStateImage(in Instruction i) =>
        i.Mnemonic is Mnemonic.Fnstenv or Mnemonic.Fldenv or Mnemonic.Fnsave or Mnemonic.Frstor
        or Mnemonic.Fxsave or Mnemonic.Fxsave64 or Mnemonic.Fxrstor or Mnemonic.Fxrstor64;

    /// <summary>
    /// Up to six instructions behind the first one, with RIP-relative memory operands or none; the last may be a branch. Flags that are undefined are
    /// never read.
    /// </summary>
    private bool PublishSequence(ref FuzzRandom r, int index, int start, in Instruction first)
    {
        CaseInput* s = _cases.Input(index);
        byte* slot = _cases.Code + index * Sandbox.SlotSize;
        _source.Bytes[..first.Length].CopyTo(new Span<byte>(slot + start, first.Length));
        int length = first.Length, count = 1, wanted = 2 + r.Below(5);
        ulong undefined = _undefined.Mask(first, s), anywhere = undefined;
        bool chain = _chain.Length != 0 && r.Chance(25);
        for (int tries = 0; count < wanted && tries < 60; tries++)
        {
            Instruction next = _source.Next(ref r, chain ? _chain[r.Below(_chain.Length)] : r.Below(_source.Count), s->Rip + (ulong)length);
            if (next.IsInvalid || !_runnable[(int)next.Code] || _source.IsVendorSpecific(next) || next.IsPrivileged || (FlagsRead(next) & undefined) != 0
                || ChangesControl(next))
                continue;
            if (!IsRegisterOnly(next) && (_bits != 64 || ChangesControl(first) || !TryMakeRipRelative(ref r, ref next, s)))
                continue;
            bool branch = next.FlowControl == FlowControl.ConditionalBranch;
            if (branch ? !_placement.TryPlaceBranch(ref r, ref next, s) : next.FlowControl != FlowControl.Next)
                continue;
            if (next.Mnemonic is Mnemonic.Dpps or Mnemonic.Dppd or Mnemonic.Vdpps or Mnemonic.Vdppd)
                MaskExceptions(s);
            _source.Bytes[..next.Length].CopyTo(new Span<byte>(slot + start + length, next.Length));
            length += next.Length;
            count++;
            if (!IsShiftByRegister(next))
                undefined &= ~Status(next.RflagsWritten | next.RflagsCleared | next.RflagsSet);
            undefined |= _undefined.MaskOfFollower(next);
            anywhere |= undefined;
            if (branch)
                break;
        }
        s->NextRip = s->Rip + (ulong)length;
        EmitExit(slot + start + length, s, _cases.ExitAddress);
        Meta[index] = new CaseMeta { Kind = CaseKind.Compare, Instruction = first, Length = length, Count = count, UndefinedAtEnd = undefined,
            UndefinedAnywhere = anywhere };
        return true;
    }

    private static bool IsOfChain(Mnemonic m) => m is Mnemonic.Adc or Mnemonic.Sbb or Mnemonic.Adcx or Mnemonic.Adox or Mnemonic.Inc or Mnemonic.Dec
        or Mnemonic.Rcl or Mnemonic.Rcr or Mnemonic.Mov or Mnemonic.Movups or Mnemonic.Setb or Mnemonic.Cmovo or Mnemonic.Stc or Mnemonic.Cmc;

    /// <summary>Control words and segment bases: values that later instructions of a sequence must find as they were placed.</summary>
    private static bool ChangesControl(in Instruction i) =>
        i.Mnemonic is Mnemonic.Wrfsbase or Mnemonic.Wrgsbase or Mnemonic.Ldmxcsr or Mnemonic.Vldmxcsr or Mnemonic.Ud2 || IsStateImage(i);

    /// <summary>Turns the one memory operand into a RIP-relative one. False when that is not possible.</summary>
    private bool TryMakeRipRelative(ref FuzzRandom r, ref Instruction i, CaseInput* s)
    {
        if (i.IsVsib || i.IsStringInstruction || i.Op0Kind != OpKind.Memory && i.Op1Kind != OpKind.Memory && i.Op2Kind != OpKind.Memory
            && i.Op3Kind != OpKind.Memory)
            return false;
        if (i.Mnemonic is Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc && i.Op1Kind == OpKind.Register || i.FlowControl != FlowControl.Next
            || i.Mnemonic is Mnemonic.Push or Mnemonic.Pop or Mnemonic.Xlatb)
            return false;
        Code code = i.Code;
        if (!_source.MakeRipRelative(ref i) || i.Code != code || i.MemoryBase != Register.RIP)
            return false;
        _placement.PlaceFollower(ref r, ref i, s);
        return true;
    }

    /// <summary>No memory operand, explicit or implicit.</summary>
    private bool IsRegisterOnly(in Instruction i)
    {
        if (i.Mnemonic == Mnemonic.Clzero)
            return false;
        foreach (UsedMemory _ in _infoFactory.GetInfo(i, InstructionInfoOptions.NoRegisterUsage).GetUsedMemory())
            return false;
        return true;
    }

    /// <summary>Rotates through carry read it whatever the count: the decoder's tables reduce some counts to none.</summary>
    private static ulong FlagsRead(in Instruction i) => Status(i.RflagsRead) | (i.Mnemonic is Mnemonic.Rcl or Mnemonic.Rcr ? Rflags.CF : 0);

    private static bool IsShiftByRegister(in Instruction i) => i.OpCount > 1 && i.GetOpKind(i.OpCount - 1) == OpKind.Register
        && i.GetOpRegister(i.OpCount - 1) == Register.CL;

    private static ulong Status(RflagsBits bits)
    {
        ulong flags = 0;
        if ((bits & RflagsBits.OF) != 0)
            flags |= Rflags.OF;
        if ((bits & RflagsBits.SF) != 0)
            flags |= Rflags.SF;
        if ((bits & RflagsBits.ZF) != 0)
            flags |= Rflags.ZF;
        if ((bits & RflagsBits.AF) != 0)
            flags |= Rflags.AF;
        if ((bits & RflagsBits.CF) != 0)
            flags |= Rflags.CF;
        if ((bits & RflagsBits.PF) != 0)
            flags |= Rflags.PF;
        return flags;
    }

    /// <summary>VEX encodings of the AVX-512 mask instructions, which a host may know and which take operands that the decoder refuses.</summary>
    private static bool MayBeOpmask(ReadOnlySpan<byte> bytes)
    {
        int vex = bytes.IndexOfAny((byte)0xc4, (byte)0xc5);
        if (vex is < 0 or > 8)
            return false;
        byte op = bytes[vex + (bytes[vex] == 0xc5 ? 2 : 3)];
        return op is (>= 0x41 and <= 0x4b) or (>= 0x90 and <= 0x99) or (>= 0x30 and <= 0x33);
    }

    /// <summary>
    /// LOCK MOV to or from a control register: AMD's other name of CR8, which checks the privilege first. LOCK VERR and VERW, which AMD does not
    /// refuse.
    /// </summary>
    private static bool MayBeLockedControl(ReadOnlySpan<byte> bytes)
    {
        int at = bytes.IndexOf((byte)0x0f);
        return at is > 0 and < 12 && bytes[at + 1] is 0x20 or 0x22 or 0x00 && bytes[..at].Contains((byte)0xf0);
    }

    /// <summary>Bytes that should be refused run with every register inside the sandbox, in case the host does not refuse them.</summary>
    private void SafeForUnknown(ref FuzzRandom r, CaseInput* s)
    {
        for (int n = 0; n < 16; n++)
            s->Gpr[n] = _bits != 64 && n >= 8 ? 0 : Sandbox.DataAddress + 0x800 + (ulong)r.Below(0x1000);
        s->FsBase = s->GsBase = 0;
        s->Rflags &= ~Rflags.AC;
    }

    private bool Publish(int index, int start, in Instruction instruction, CaseKind kind, int length)
    {
        CaseInput* s = _cases.Input(index);
        byte* slot = _cases.Code + index * Sandbox.SlotSize;
        int room = Math.Min(length, Sandbox.SlotSize - start);
        _source.Bytes[..room].CopyTo(new Span<byte>(slot + start, room));
        s->NextRip = s->Rip + (ulong)length;
        if (kind == CaseKind.Compare)
            EmitExit(slot + start + length, s, _cases.ExitAddress);
        Meta[index] = new CaseMeta { Kind = kind, Instruction = instruction, Length = length, Count = 1 };
        return true;
    }

    /// <summary>What follows the instruction: a jump to the native side's exit.</summary>
    internal static void EmitExit(byte* at, CaseInput* s, ulong exitAddress)
    {
        if (s->Bits == 64)
        {
            *at = 0xe9;
            Unsafe.WriteUnaligned(at + 1, (int)(exitAddress - (s->NextRip + 5)));
            return;
        }
        // JMP ptr16:32 back to 64-bit mode.
        if (s->Bits == 16)
            *at++ = 0x66;
        *at++ = 0xea;
        Unsafe.WriteUnaligned(at, (uint)exitAddress);
        Unsafe.WriteUnaligned(at + 4, (ushort)0x33);
    }
}
