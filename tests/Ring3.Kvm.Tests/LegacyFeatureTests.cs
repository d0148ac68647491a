using Ring3.Abi;
using Ring3.Arch;
using Ring3.Memory;

namespace Ring3.Kvm.Tests;

/// <summary>VME, PVI and PSE-36: what the guest's CPUID has works, what it does not have is reserved.</summary>
public sealed unsafe class LegacyFeatureTests
{
    private const ulong High = 0x9_0040_0000; // Needs 36 bits.
    private const uint LeafEdxVme = 1 << 1, LeafEdxPse36 = 1 << 17;

    private static TestGuest Guest(uint withoutEdx, int addressBits = 48)
    {
        TestGuest g = new(cpuid: false);
        kvm_cpuid_entry2[] entries = SupportedCpuid.Entries.ToArray();
        entries[Array.FindIndex(entries, e => e.function == 1)].edx &= ~withoutEdx;
        ref kvm_cpuid_entry2 sizes = ref entries[Array.FindIndex(entries, e => e.function == 0x8000_0008)];
        sizes.eax = sizes.eax & ~0xffu | (uint)addressBits;
        Assert.Equal(0, g.Cpu.SetCpuid2(entries));
        return g;
    }

    /// <summary>
    /// The vCPU at <see cref="TestGuest.Code"/> in flat 32-bit code with 32-bit paging: the first 4 MiB are themselves, linear 0x800000 is
    /// <paramref name="entry"/>.
    /// </summary>
    private static void Start32(TestGuest g, uint entry)
    {
        const ulong directory = 0x20_0000;
        g.Vm.Memory.TryWrite(directory, 0x87u);
        g.Vm.Memory.TryWrite(directory + 8, entry);
        g.Vm.Memory.TryWrite(TestGuest.Tables + 0x2008, 0x00cf_9b00_0000_ffffUL);
        g.Cpu.GetSregs(out kvm_sregs s);
        (s.cs.l, s.cs.db) = (0, 1);
        (s.cr3, s.cr4, s.cr0, s.efer) = (directory, Cr4.PSE, 0x8001_0033, 0);
        Assert.Equal(0, g.Cpu.SetSregs(s));
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 });
    }

    private static uint LargePage(ulong gpa, uint bits = 0x87) => (uint)(gpa & 0xffc0_0000) | (uint)(gpa >> 32 & 0xff) << 13 | bits;

    [Fact]
    public void LargePagesOf32BitPaging_ReachBeyond4GiB()
    {
        using TestGuest g = Guest(0);
        using GuestRam ram = new(0x40_0000);
        Assert.Equal(0, g.Vm.SetUserMemoryRegion(1, 0, High, 0x40_0000, ram.Hva));
        *(uint*)(ram.Hva + 0x1234) = 0x5a;
        Start32(g, LargePage(High));
        // mov eax, [0x801234]; inc dword [0x802000]; out 0xf4, al
        g.Load(0xa1, 0x34, 0x12, 0x80, 0, 0xff, 0x05, 0, 0x20, 0x80, 0, 0xe6, 0xf4);
        Assert.Equal(0x5a, g.RunToEnd());
        Assert.Equal(1u, *(uint*)(ram.Hva + 0x2000));
        kvm_translation t = new() { linear_address = 0x80_1234 };
        g.Cpu.Translate(ref t);
        Assert.Equal((1, High + 0x1234), (t.valid, t.physical_address));
    }

    [Theory]
    [InlineData(LeafEdxPse36, 48, 0x9_0040_0000UL, true)]
    [InlineData(LeafEdxPse36, 48, 0x0040_0000UL, false)]
    [InlineData(0u, 36, 0x10_0000_0000UL, true)]
    [InlineData(0u, 37, 0x10_0000_0000UL, false)]
    [InlineData(0u, 52, 0x80_0000_0000UL, false)]
    public void AddressBitsThatTheGuestDoesNotHave_AreReserved(uint withoutEdx, int addressBits, ulong gpa, bool reserved)
    {
        using TestGuest g = Guest(withoutEdx, addressBits);
        using GuestRam ram = new(0x40_0000);
        if (gpa >> 32 != 0)
            Assert.Equal(0, g.Vm.SetUserMemoryRegion(1, 0, gpa, 0x40_0000, ram.Hva));
        Start32(g, LargePage(gpa));
        // #PF: pop eax; out 0xf4, al
        g.LoadAt(0x11000, 0x58, 0xe6, 0xf4);
        g.Vm.Memory.TryWrite(TestGuest.Tables + 0x3000 + 14 * 8, 0x0000_8e00_0008_1000UL | 1UL << 48);
        // mov eax, [0x800000]; mov al, 0x77; out 0xf4, al
        g.Load(0xa1, 0, 0, 0x80, 0, 0xb0, 0x77, 0xe6, 0xf4);
        Assert.Equal(reserved ? 9 : 0x77, g.RunToEnd());
        kvm_translation t = new() { linear_address = 0x80_0000 };
        g.Cpu.Translate(ref t);
        Assert.Equal(reserved ? 0 : 1, t.valid);
    }

    [Theory]
    [InlineData(0u, Cr4.VME, false)]
    [InlineData(0u, Cr4.PVI, false)]
    [InlineData(LeafEdxVme, Cr4.VME, true)]
    [InlineData(LeafEdxVme, Cr4.PVI, true)]
    public void VmeAndPvi_NeedTheirCpuidBit(uint withoutEdx, ulong bit, bool faults)
    {
        using TestGuest g = Guest(withoutEdx);
        g.SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 13, 0xe6, 0xf4);
        // mov rax, cr4; or al, bit; mov cr4, rax; mov al, 1; out 0xf4, al
        g.Load(0x0f, 0x20, 0xe0, 0x0c, (byte)bit, 0x0f, 0x22, 0xe0, 0xb0, 1, 0xe6, 0xf4);
        Assert.Equal(faults ? 13 : 1, g.RunToEnd());
        g.Cpu.GetSregs(out kvm_sregs s);
        s.cr4 |= bit;
        Assert.Equal(faults ? -Errno.EINVAL : 0, g.Cpu.SetSregs(s));
    }

    /// <summary>CR4.PVI works in 64-bit code as well: CLI and STI at CPL 3 change VIF, and fault where it is off or VIP is set.</summary>
    [Theory]
    [InlineData(0x2ul, true, true)]
    [InlineData(0x2ul, false, false)]
    [InlineData(0x10_0002ul, true, false)]
    public void Pvi_GivesAUserProgramItsInterruptFlag(ulong rflags, bool pvi, bool works)
    {
        using TestGuest g = new();
        g.StartUser();
        g.Cpu.GetSregs(out kvm_sregs s);
        s.cr4 |= pvi ? Cr4.PVI : 0;
        Assert.Equal(0, g.Cpu.SetSregs(s));
        // sti; pushfq; pop rbx; cli; pushfq; pop rcx; hlt
        g.Load(0xfb, 0x9c, 0x5b, 0xfa, 0x9c, 0x59, 0xf4);
        g.SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 13, 0xe6, 0xf4);
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack - 0x1000, rflags = rflags });
        Assert.Equal(13, g.RunToEnd());
        kvm_regs r = g.Regs();
        Assert.Equal(works ? Rflags.VIF : 0, r.rbx & Rflags.VIF);
        Assert.Equal(0UL, (r.rbx | r.rcx) & Rflags.IF);
        Assert.Equal(0UL, r.rcx & Rflags.VIF);
        Assert.True(g.Vm.Memory.TryRead(TestGuest.Stack - 0x28, out ulong rip));
        Assert.Equal(TestGuest.Code + (works ? 6UL : 0), rip);
    }

    /// <summary>VIF and VIP that the client sets are met by the next instruction, and no sooner than the client's interrupt.</summary>
    [Fact]
    public void PendingVirtualInterrupt_SetByTheClient_IsMetAtTheNextInstruction()
    {
        using TestGuest g = new();
        g.StartUser();
        g.Cpu.GetSregs(out kvm_sregs s);
        s.cr4 |= Cr4.PVI;
        Assert.Equal(0, g.Cpu.SetSregs(s));
        g.Load(0x90, 0xf4);
        g.SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 13, 0xe6, 0xf4);
        g.SetVector(32, 0x12000).LoadAt(0x12000, 0xb0, 32, 0xe6, 0xf4, 0x48, 0xcf);
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack - 0x1000, rflags = Rflags.VIF | Rflags.VIP | Rflags.IF | 2 });
        Assert.Equal(0, g.Cpu.Interrupt(32));
        Assert.Equal(32, g.RunToEnd());
        Assert.Equal(13, g.RunToEnd());
        Assert.True(g.Vm.Memory.TryRead(TestGuest.Stack - 0x28, out ulong rip));
        Assert.Equal(TestGuest.Code, rip);
    }
}
