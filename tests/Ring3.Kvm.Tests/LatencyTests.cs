using System.Buffers.Binary;
using Ring3.Abi;

namespace Ring3.Kvm.Tests;

/// <summary>
/// How many guest instructions (iterations of REP count) pass between a signal or an interrupt and its effect. The guest counts in memory; the count is
/// read just behind the making of the signal, which itself takes longer than 10,000 instructions of the fastest loops when the host is busy. The host may take
/// the signalling thread off its processor between the two, so the middle one of several rounds is judged.
/// </summary>
public unsafe class LatencyTests
{
    private const ulong Counter = 0x200000, Same = 0x400000;
    private const int Bound = 10_000, Rounds = 7;

    /// <summary>Endless loops; the counter is at <see cref="Counter"/>, instructions a count, code.</summary>
    private static readonly Dictionary<string, (int Instructions, byte[] Code)> s_loops = new()
    {
        // inc qword [counter]; jmp
        ["branch"] = (2, [0x48, 0xff, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0xeb, 0xf6]),
        // invlpg [0x300000]; mov rax, [0x300000]; inc qword [counter]; jmp
        ["walks"] = (4, [0x0f, 0x01, 0x3c, 0x25, 0x00, 0x00, 0x30, 0x00, 0x48, 0x8b, 0x04, 0x25, 0x00, 0x00, 0x30, 0x00, 0x48, 0xff, 0x04, 0x25, 0x00, 0x00,
            0x20, 0x00, 0xeb, 0xe6]),
        // pcmpeqd xmm1, xmm1; pxor xmm0, xmm0; psubd xmm0, xmm1; movdqu [counter], xmm0; paddd xmm2, xmm0; jmp to the psubd
        ["vectors"] = (4, [0x66, 0x0f, 0x76, 0xc9, 0x66, 0x0f, 0xef, 0xc0, 0x66, 0x0f, 0xfa, 0xc1, 0xf3, 0x0f, 0x7f, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0x66,
            0x0f, 0xfe, 0xd0, 0xeb, 0xed]),
    };

    /// <summary>REPs over 64 GiB of linear addresses from 512 GiB on, all of which are the same 2 MiB; then an endless loop.</summary>
    private static readonly Dictionary<string, byte[]> s_reps = new()
    {
        ["stosb"] = [0xf3, 0xaa, 0xeb, 0xfe],
        ["stosq"] = [0xf3, 0x48, 0xab, 0xeb, 0xfe],
        ["movsb"] = [0xf3, 0xa4, 0xeb, 0xfe],
        ["lodsb"] = [0xf3, 0xac, 0xeb, 0xfe],
        ["scasb"] = [0xf3, 0xae, 0xeb, 0xfe],
        ["cmpsb"] = [0xf3, 0xa6, 0xeb, 0xfe],
    };

    public static TheoryData<string> Loops => [.. s_loops.Keys];
    public static TheoryData<string> Reps => [.. s_reps.Keys];

    private static void Raise(Vcpu v)
    {
        Volatile.Write(ref v.Signal->Signalled, 1);
        Volatile.Write(ref *v.Signal->ExitRequest, 1);
        Interlocked.Increment(ref *v.Signal->WakeWord);
    }

    private static void Lower(Vcpu v) => Volatile.Write(ref v.Signal->Signalled, 0);

    private static Thread Begin(Vcpu v, Action<int> ended)
    {
        var t = new Thread(() => ended(v.Run()));
        t.Start();
        return t;
    }

    private static ulong Middle(List<ulong> values)
    {
        values.Sort();
        return values[values.Count / 2];
    }

    [Theory]
    [MemberData(nameof(Loops))]
    public void Signal_EndsRunSoon(string kind)
    {
        (int perCount, byte[] code) = s_loops[kind];
        using TestGuest g = new();
        g.Load(code);
        uint* counter = (uint*)(g.Ram.Hva + Counter);
        List<ulong> delays = [];
        for (int i = 0; i < Rounds; i++)
        {
            int result = 0;
            uint start = Volatile.Read(ref *counter);
            Thread t = Begin(g.Cpu, r => result = r);
            while (Volatile.Read(ref *counter) - start < 5_000)
                Thread.Yield();
            Raise(g.Cpu);
            uint before = Volatile.Read(ref *counter);
            t.Join();
            Lower(g.Cpu);
            Assert.Equal(-Errno.EINTR, result);
            Assert.Equal(KvmApi.KVM_EXIT_INTR, g.Cpu.KvmRun->exit_reason);
            delays.Add((*counter - before) * (ulong)perCount);
        }
        Assert.InRange(Middle(delays), 0ul, (ulong)Bound);
    }

    [Theory]
    [MemberData(nameof(Loops))]
    public void Nmi_IsDeliveredSoon(string kind)
    {
        (int perCount, byte[] code) = s_loops[kind];
        using TestGuest g = new();
        g.Load(code);
        // mov eax, [counter]; mov [counter + 64], eax; hlt
        g.LoadAt(0x20000, [0x8b, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00, 0x89, 0x04, 0x25, 0x40, 0x00, 0x20, 0x00, 0xf4]);
        byte[] gate = new byte[16];
        BinaryPrimitives.WriteUInt64LittleEndian(gate, 0x0002_8e00_0008_0000);
        g.Vm.Memory.Write(TestGuest.Tables + 0x3000 + 2 * 16, gate);
        uint* counter = (uint*)(g.Ram.Hva + Counter);
        List<ulong> delays = [];
        for (int i = 0; i < Rounds; i++)
        {
            TestGuest.StartLong(g.Cpu, TestGuest.Code, TestGuest.Stack);
            g.Cpu.SetVcpuEvents(default);
            *counter = 0;
            Thread t = Begin(g.Cpu, _ => { });
            while (Volatile.Read(ref *counter) < 5_000)
                Thread.Yield();
            g.Cpu.InjectNmi();
            uint before = Volatile.Read(ref *counter);
            t.Join();
            Assert.Equal(KvmApi.KVM_EXIT_HLT, g.Cpu.KvmRun->exit_reason);
            delays.Add((counter[16] - before) * (ulong)perCount);
        }
        Assert.InRange(Middle(delays), 0ul, (ulong)Bound);
    }

    [Theory]
    [MemberData(nameof(Reps))]
    public void Signal_InterruptsRep(string kind)
    {
        const ulong Start = 1UL << 39, Bytes = 1UL << 36, Pdpt = 0x110000, Pd = 0x111000;
        using TestGuest g = new();
        g.Load(s_reps[kind]);
        g.Vm.Memory.TryWrite(TestGuest.Tables + 8, Pdpt | 7);
        for (ulong i = 0; i < 512; i++)
        {
            g.Vm.Memory.TryWrite(Pdpt + 8 * i, Pd | 7);
            g.Vm.Memory.TryWrite(Pd + 8 * i, Same | 0x87);
        }
        kvm_regs regs = g.Regs() with { rdi = Start, rsi = Start, rcx = Bytes };
        g.Cpu.SetRegs(regs);
        for (int i = 0; i < 3; i++)
        {
            int result = 0;
            Thread t = Begin(g.Cpu, r => result = r);
            Thread.Sleep(5);
            Raise(g.Cpu);
            Assert.True(t.Join(10_000));
            Lower(g.Cpu);
            Assert.Equal(-Errno.EINTR, result);
        }
        // The instruction is where it was, part of its work is done and consistently counted.
        kvm_regs after = g.Regs();
        Assert.Equal(TestGuest.Code, after.rip);
        Assert.InRange(after.rcx, 1ul, Bytes - 1);
        ulong size = kind == "stosq" ? 8ul : 1;
        if (kind != "lodsb")
            Assert.Equal(Start + (Bytes - after.rcx) * size, after.rdi);
        if (kind is "movsb" or "cmpsb" or "lodsb")
            Assert.Equal(Start + (Bytes - after.rcx), after.rsi);
    }
}
