using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests;

/// <summary>What system instructions do differently on AMD's and Intel's processors, each on the models of both.</summary>
public unsafe class ProcessorModelTests
{
    private const ulong NotCanonical = 0x0000_8000_0000_0000, Target = 0x5_0000;

    public static TheoryData<string> Vendors => ["intel", "amd"];

    private static ProcessorModel Model(string name) => ProcessorModel.TryParse(name, out ProcessorModel model) ? model : throw new ArgumentException(name);

    /// <summary>Intel: #GP(0) of the SYSRET itself, at CPL 0 on the kernel's stack pointer. AMD: of the target's fetch, at CPL 3.</summary>
    [Theory]
    [MemberData(nameof(Vendors))]
    public void Sysret_ToANonCanonicalTarget(string vendor)
    {
        using SysLongHarness m = new(0, a => { a.mov(rcx, NotCanonical); a.mov(r11, (ulong)Rflags.Fixed1); a.sysretq(); }, Model(vendor));
        const ulong at = CpuHarness.CodeAddress + 20;
        m.C->Star = (ulong)SysLongHarness.UserCode32 << 48;
        Assert.Equal(Vector.GP, m.RunToHandler());
        // Error code, RIP, CS.
        Assert.Equal(0UL, m.Frame(0));
        Assert.Equal(vendor == "intel" ? (at, (ulong)SysLongHarness.KernelCode) : (NotCanonical, (ulong)SysLongHarness.UserCode), (m.Frame(1), m.Frame(2)));
    }

    /// <summary>Both manuals: IRET itself faults.</summary>
    [Theory]
    [MemberData(nameof(Vendors))]
    public void Iret_ToANonCanonicalTarget(string vendor)
    {
        using SysLongHarness m = new(0, a => { a.push(SysLongHarness.UserData); a.push(0x7_0000); a.push(2); a.push(SysLongHarness.UserCode); a.mov(rax,
            NotCanonical); a.push(rax); a.iretq(); }, Model(vendor));
        Assert.Equal(Vector.GP, m.RunToHandler());
        Assert.Equal((0UL, (ulong)SysLongHarness.KernelCode), (m.Frame(0), m.Frame(2)));
    }

    /// <summary>AMD has none in long mode, but a guest that is told of an Intel processor gets it, as KVM emulates it.</summary>
    [Theory]
    [InlineData("intel", ProcessorVendor.Other, true)]
    [InlineData("intel", ProcessorVendor.Amd, true)]
    [InlineData("amd", ProcessorVendor.Other, false)]
    [InlineData("amd", ProcessorVendor.Amd, false)]
    [InlineData("amd", ProcessorVendor.Intel, true)]
    public void Sysenter_InLongMode(string vendor, ProcessorVendor seen, bool exists)
    {
        foreach (bool exit in (bool[])[false, true])
        {
            using SysLongHarness m = new(0, a => { a.mov(rdx, Target); a.mov(rcx, 0x7_0000); if (exit) a.sysexitq(); else a.sysenter(); }, Model(vendor));
            m.P.CpuidFeatures.Vendor = seen;
            m.C->SysenterCs = SysLongHarness.KernelCode;
            m.C->SysenterEip = Target;
            m.C->SysenterEsp = 0x7_0000;
            // ICEBP: a gate that any privilege reaches.
            m.H.Write(Target, [0xf1]);
            Assert.Equal(exists ? Vector.DB : Vector.UD, m.RunToHandler());
            Assert.True(m.P.TryWriteGuestMsr(Msr.SYSENTER_ESP, 0x7fff_8000_0000));
            Assert.Equal(exists ? 0x7fff_8000_0000UL : 0x8000_0000, m.C->SysenterEsp);
            Assert.Equal(!exists, m.P.TryWriteGuestMsr(Msr.SYSENTER_EIP, 1UL << 60));
        }
    }

    /// <summary>SYSCALL outside 64-bit mode is AMD's, or that of a guest that is told of an AMD processor.</summary>
    [Theory]
    [InlineData("intel", ProcessorVendor.Intel, false)]
    [InlineData("intel", ProcessorVendor.Amd, true)]
    [InlineData("amd", ProcessorVendor.Amd, true)]
    [InlineData("amd", ProcessorVendor.Intel, true)]
    public void Syscall_InCompatibilityMode(string vendor, ProcessorVendor seen, bool exists)
    {
        using SysLongHarness m = new(0, a =>
            { a.push(SysLongHarness.UserData); a.push(0x7_0000); a.push(2); a.push(SysLongHarness.UserCode32); a.push((int)Target); a.iretq(); },
            Model(vendor));
        m.P.CpuidFeatures.Vendor = seen;
        m.C->Star = (ulong)SysLongHarness.KernelCode << 32;
        m.C->Cstar = Target + 0x100;
        m.H.Write(Target, [0x0f, 0x05]);
        m.H.Write(Target + 0x100, [0xcc]);
        Assert.Equal(exists ? Vector.BP : Vector.UD, m.RunToHandler());
    }

    /// <summary>
    /// A near branch with an operand-size prefix in 64-bit mode: AMD truncates RIP (and a CALL pushes, a RET pops) 16 bits and takes a displacement of
    /// as many; Intel ignores the prefix. REX.W outweighs it on both. As Zen 4 runs them natively.
    /// </summary>
    [Theory]
    [InlineData("66e91000", 0x14, 0, "66e910000000", 0x10016, 0)]
    [InlineData("66eb10", 0x13, 0, "66eb10", 0x10013, 0)]
    [InlineData("667410", 0x13, 0, "667410", 0x10013, 0)]
    [InlineData("667510", 0x10003, 0, "667510", 0x10003, 0)]
    [InlineData("660f841000", 0x15, 0, "660f8410000000", 0x10017, 0)]
    [InlineData("66e81000", 0x14, -2, "66e810000000", 0x10016, -8)]
    [InlineData("66ffd1", 0x5678, -2, "66ffd1", 0x25678, -8)]
    [InlineData("66ffe1", 0x5678, 0, "66ffe1", 0x25678, 0)]
    [InlineData("6648ffe1", 0x25678, 0, "6648ffe1", 0x25678, 0)]
    [InlineData("6648e810000000", 0x10017, -8, "6648e810000000", 0x10017, -8)]
    [InlineData("66c3", 0x4321, 2, "66c3", 0x24321, 8)]
    [InlineData("66c20400", 0x4321, 6, "66c20400", 0x24321, 12)]
    [InlineData("66e210", 0x13, 0, "66e210", 0x10013, 0)]
    public void OperandSizePrefix_OnNearBranches(string amd, int amdTarget, int amdStack, string intel, int intelTarget, int intelStack)
    {
        foreach ((ProcessorModel model, string bytes, int target, int stack) in ((ProcessorModel, string, int, int)[])[(ProcessorModel.Zen4, amd, amdTarget,
            amdStack), (ProcessorModel.EmeraldRapids, intel, intelTarget, intelStack)])
        {
            using CpuHarness h = CpuHarness.Long(Convert.FromHexString(bytes + "f4f4f4"), model: model);
            h.Rcx = 0x2_5678;
            h.RflagsValue |= Rflags.ZF;
            h.Word(CpuHarness.StackTop) = 0x2_4321;
            h.Write((ulong)target, [0xf4]);
            Assert.Equal(ExitReason.Hlt, h.Run());
            Assert.Equal(((ulong)target + 1, CpuHarness.StackTop + (ulong)stack), (h.State->Rip, h.Rsp));
        }
    }

    /// <summary>Far pointers with REX.W: 16:32 on AMD, 16:64 on Intel. As Zen 4 runs LGS natively.</summary>
    [Theory]
    [MemberData(nameof(Vendors))]
    public void FarPointers_WithRexW(string vendor)
    {
        using SysLongHarness m = new(0, a => { a.mov(ecx, 0x5_0000); a.mov(rax, -1L); a.db(0x48, 0x0f, 0xb5, 0x01); a.hlt(); }, Model(vendor));
        m.H.Write(Target, [0x78, 0x56, 0x34, 0x12, (byte)SysLongHarness.KernelData, 0, 0x11, 0x11, 0, 0]);
        Assert.Equal(-1, m.RunToHandler());
        bool amd = vendor == "amd";
        Assert.Equal((amd ? 0x1234_5678UL : 0x1111_0010_1234_5678, amd ? SysLongHarness.KernelData : 0), (m.C->Gpr[0], m.C->Gs.Selector));
    }

    /// <summary>LOCK MOV CR0 is AMD's CR8 for 32-bit code (CPUID AltMovCr8); to Intel it is undefined.</summary>
    [Theory]
    [MemberData(nameof(Vendors))]
    public void LockMovCr0_IsCr8(string vendor)
    {
        using SysLongHarness m = new(0, a => { a.db(0xf0, 0x0f, 0x20, 0xc0); a.hlt(); }, Model(vendor));
        m.C->Cr8 = 9;
        Assert.Equal(vendor == "amd" ? -1 : Vector.UD, m.RunToHandler());
        if (vendor == "amd")
            Assert.Equal(9UL, m.C->Gpr[0]);
    }

    /// <summary>An instruction breakpoint behind MOV SS: Intel suppresses it, AMD delivers it. Behind STI both do.</summary>
    [Theory]
    [InlineData("intel", true, false)]
    [InlineData("amd", true, true)]
    [InlineData("intel", false, true)]
    [InlineData("amd", false, true)]
    public void InstructionBreakpoint_BehindAShadow(string vendor, bool movSs, bool hits)
    {
        using SysLongHarness m = new(0, a =>
            { a.mov(eax, SysLongHarness.KernelData); if (movSs) a.mov(ss, eax); else { a.sti(); a.nop(); } a.inc(ecx); a.int3(); }, Model(vendor));
        m.C->Gpr[1] = 0;
        m.C->Dr0 = CpuHarness.CodeAddress + (movSs ? 7u : 6u);
        m.C->Dr7 = Dr.Dr7Fixed1 | 1;
        m.P.Paging.DebugRegistersChanged(m.C);
        Assert.Equal(hits ? Vector.DB : Vector.BP, m.RunToHandler());
        Assert.Equal(hits ? 0UL : 1, m.C->Gpr[1]);
    }
}
