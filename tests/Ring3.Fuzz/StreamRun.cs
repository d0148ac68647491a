using System.Runtime.InteropServices;
using Ring3.Abi;
using Ring3.Kvm;
using static Ring3.Abi.KvmApi;

namespace Ring3.Fuzz;

/// <summary>Processor mode that a stream starts in.</summary>
internal enum StreamMode { Real, Protected16, Protected32, Paged32, Pae, Compatibility, Long, LongUser }

/// <summary>A random instruction stream on one vCPU with random registers, tables and descriptors.</summary>
/// <remarks>SAFETY: guest memory is one allocation with a guard area on each side, written through spans of its length.</remarks>
internal sealed unsafe class StreamRun : IHostileRun
{
    private const int MemoryBytes = 1 << 20, GuardBytes = 1 << 16;
    private const byte Guard = 0xa5;
    private const ulong Pml4 = 0x1000, Pdpt = 0x2000, Directory = 0x3000, Table = 0x4000, Gdt = 0x5000, Idt = 0x6000, Tss = 0x7000, Stack = 0x9000,
        Code = 0x10000;

    private readonly byte* _all = (byte*)NativeMemory.AlignedAlloc(MemoryBytes + 2 * GuardBytes, 1 << 16);
    private readonly byte* _memory;
    /// <summary>Held while the vCPU is created, destroyed or kicked: the API asks that nobody be inside a member when the VM goes.</summary>
    private readonly Lock _alive = new();
    private Vm? _vm;
    private Vcpu? _vcpu;

    public StreamRun()
    {
        _memory = _all + GuardBytes;
        new Span<byte>(_all, GuardBytes).Fill(Guard);
        new Span<byte>(_memory + MemoryBytes, GuardBytes).Fill(Guard);
    }

    public void Kick()
    {
        lock (_alive)
            _vcpu?.Kick();
    }

    public void Recycle()
    {
        lock (_alive)
        {
            _vm?.Dispose();
            _vm = null;
            _vcpu = null;
        }
    }

    public void Dispose()
    {
        Recycle();
        NativeMemory.AlignedFree(_all);
    }

    public string Once(Random random)
    {
        if (_vm is null || random.Next(50) == 0)
            Create(random);
        StreamMode mode = (StreamMode)random.Next(8);
        FillMemory(random, mode);
        if (!SetState(random, mode))
        {
            Recycle();
            return "refused";
        }
        string ending = Client.Run(_vcpu!, random);
        if (_vm!.IsDead)
            throw new InvalidOperationException($"the guest broke a host invariant: {_vm.BugMessage}");
        if (new Span<byte>(_all, GuardBytes).IndexOfAnyExcept(Guard) >= 0 || new Span<byte>(_memory + MemoryBytes, GuardBytes).IndexOfAnyExcept(Guard) >= 0)
            throw new InvalidOperationException("the guest wrote outside its memory");
        return ending;
    }

    private void Create(Random random)
    {
        Recycle();
        _vm = Vm.Create();
        if (random.Next(2) == 0)
        {
            Expect(_vm.CreateIrqchip(), "CreateIrqchip");
            Expect(_vm.CreatePit2(), "CreatePit2");
        }
        Expect(_vm.SetUserMemoryRegion(0, random.Next(4) == 0 ? KVM_MEM_LOG_DIRTY_PAGES : 0, 0, MemoryBytes, (ulong)_memory), "SetUserMemoryRegion");
        lock (_alive)
            _vcpu = _vm.CreateVcpu(0);
    }

    private static void Expect(int result, string what)
    {
        if (result < 0)
            throw new InvalidOperationException($"{what}: {result}");
    }

    private void FillMemory(Random random, StreamMode mode)
    {
        Span<byte> memory = new(_memory, MemoryBytes);
        memory[..0x10000].Clear();
        InstructionStream.Fill(random, memory.Slice((int)Code, 0x2000));
        Span<ulong> words = MemoryMarshal.Cast<byte, ulong>(memory);
        int word(ulong at) => (int)(at / 8);
        ulong flags = random.Next(8) == 0 ? (ulong)random.NextInt64() & 0x8000_0000_0000_0fff | 1 : 7UL;
        if (mode >= StreamMode.Compatibility)
        {
            words[word(Pml4)] = Pdpt | 7;
            words[word(Pdpt)] = Directory | 7;
            words[word(Directory)] = random.Next(2) == 0 ? Table | 7 : 0x87;
            for (int i = 0; i < 256; i++)
                words[word(Table) + i] = ((ulong)i << 12) | flags;
        }
        else if (mode == StreamMode.Pae)
        {
            words[word(Pdpt)] = Directory | 1;
            words[word(Directory)] = 0x83UL | flags;
        }
        else if (mode == StreamMode.Paged32)
            MemoryMarshal.Cast<byte, uint>(memory)[(int)(Directory / 4)] = 0x83 | (uint)flags & 0xfff;
        // Descriptors: null, code, data, user code, user data, TSS, and random ones.
        for (int i = 6; i < 32; i++)
            words[word(Gdt) + i] = (ulong)random.NextInt64();
        words[word(Gdt) + 1] = mode >= StreamMode.Long ? 0x00af9b000000ffffUL : 0x00cf9b000000ffffUL;
        words[word(Gdt) + 2] = 0x00cf93000000ffff;
        words[word(Gdt) + 3] = mode >= StreamMode.Long ? 0x00affb000000ffffUL : 0x00cffb000000ffffUL;
        words[word(Gdt) + 4] = 0x00cff3000000ffff;
        words[word(Gdt) + 5] = 0x00008b0000000067 | Tss << 16;
        // Interrupt gates into the code, or garbage.
        bool gates = random.Next(3) != 0, wide = mode >= StreamMode.Compatibility;
        for (int i = 0; i < 256; i++)
        {
            ulong target = Code + (ulong)random.Next(0x2000);
            ulong gate = gates ? target & 0xffff | 8 << 16 | (ulong)random.Next(8) << 32 | 0xee00UL << 32 | target >> 16 << 48 : (ulong)random.NextInt64();
            words[word(Idt) + (wide ? 2 * i : i)] = gate;
        }
        for (ulong at = Tss; at < Tss + 0x68; at += 4)
            *(uint*)(_memory + at) = (uint)Stack;
        *(uint*)(_memory + Tss + 8) = 0x10;
    }

    private bool SetState(Random random, StreamMode mode)
    {
        Vcpu vcpu = _vcpu!;
        vcpu.GetSregs(out kvm_sregs s);
        bool user = mode == StreamMode.LongUser;
        bool longMode = mode >= StreamMode.Compatibility, pe = mode != StreamMode.Real;
        byte dpl = user ? (byte)3 : (byte)0;
        kvm_segment code = new() { limit = 0xffffffff, selector = user ? (ushort)0x1b : (ushort)8, type = 11, present = 1, dpl = dpl, s = 1, g = 1,
            db = mode is StreamMode.Protected32 or StreamMode.Paged32 or StreamMode.Pae or StreamMode.Compatibility ? (byte)1 : (byte)0,
            l = mode >= StreamMode.Long ? (byte)1 : (byte)0 };
        kvm_segment data = new() { limit = 0xffffffff, selector = user ? (ushort)0x23 : (ushort)0x10, type = 3, present = 1, dpl = dpl, s = 1, g = 1, db = 1 };
        if (mode is StreamMode.Real or StreamMode.Protected16)
        {
            code.limit = data.limit = 0xffff;
            code.g = data.g = data.db = 0;
        }
        if (mode == StreamMode.Real)
        {
            code.selector = (ushort)(Code >> 4);
            code.@base = Code;
            code.type = 3;
            data.selector = 0;
        }
        s.cs = code;
        s.ds = s.es = s.fs = s.gs = s.ss = data;
        s.tr = new() { @base = Tss, limit = 0x67, selector = 0x28, type = 11, present = 1 };
        s.ldt = new() { unusable = 1 };
        s.gdt = new() { @base = Gdt, limit = 0xff };
        s.idt = mode == StreamMode.Real ? new() { limit = 0x3ff } : new() { @base = Idt, limit = 0xfff };
        s.cr0 = (pe ? 1UL : 0) | 0x10 | (mode >= StreamMode.Paged32 ? 0x8000_0000UL : 0) | (random.Next(2) == 0 ? 0x10000UL : 0);
        s.cr3 = longMode ? Pml4 : mode == StreamMode.Pae ? Pdpt : Directory;
        s.cr4 = (mode >= StreamMode.Pae ? 0x20UL : 0x10) | 0x600 | (random.Next(2) == 0 ? 0x40000UL : 0) | (random.Next(4) == 0 ? 0x300000UL : 0);
        s.efer = longMode ? 0xd01UL : 0;
        s.cr8 = 0;
        if (vcpu.SetSregs(s) != 0)
            return false;
        kvm_regs r = default;
        Span<ulong> registers = new(&r, 16);
        for (int i = 0; i < 16; i++)
            registers[i] = random.Next(3) switch { 0 => (ulong)random.Next(MemoryBytes), 1 => (ulong)random.NextInt64(long.MinValue, long.MaxValue), _ =>
                (ulong)random.Next(256) };
        r.rsp = Stack + (ulong)random.Next(0x400);
        r.rip = mode == StreamMode.Real ? (ulong)random.Next(0x1000) : Code + (ulong)random.Next(0x1000);
        r.rflags = 2 | (ulong)random.Next(1 << 12) & 0xed5 | (random.Next(8) == 0 ? 0x100UL : 0);
        vcpu.SetRegs(r);
        kvm_vcpu_events events = default;
        Expect(vcpu.SetVcpuEvents(events), "SetVcpuEvents");
        Expect(vcpu.SetMpState(new kvm_mp_state { mp_state = KVM_MP_STATE_RUNNABLE }), "SetMpState");
        return true;
    }
}
