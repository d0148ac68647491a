using System.Runtime.CompilerServices;
using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

using Ring3.Host;

namespace Ring3.Cpu.Tests;

/// <summary>Decoded code that several processors share, that is overwritten, and that outgrows its arena.</summary>
public sealed unsafe class CoreSharedCodeTests
{
    private static byte[] Assemble(Action<Assembler> body, ulong at = CpuHarness.CodeAddress) => CoreSmokeTests.Assemble(64, body, at);

    /// <summary>
    /// Many times: the write must also be harmless between any two steps of the processor that is in the code (it once cleared a link between its test
    /// and its use).
    /// </summary>
    [Fact]
    public void OtherProcessorsCodeWriteIsSeen()
    {
        for (int round = 0; round < 100; round++)
            WriteCodeUnderAnotherProcessor();
    }

    private static void WriteCodeUnderAnotherProcessor()
    {
        // B spins on a flag that A never writes: A patches B's immediate instead, and B leaves when it sees the new one.
        const ulong other = 0x3_0000;
        using CpuHarness a = CpuHarness.Long(Assemble(x =>
        {
            Label wait = x.CreateLabel();
            x.mov(rdi, other + 1);
            x.mov(rsi, CpuHarness.DataAddress);
            x.Label(ref wait);
            x.cmp(__dword_ptr[rsi], 0);
            x.je(wait);
            x.mov(__byte_ptr[rdi], 7);
            x.hlt();
        }));
        CpuHarness b = CpuHarness.Long([], machine: a.Machine, memory: a.Memory);
        b.Write(CpuHarness.CodeAddress, Assemble(x =>
        {
            Label wait = x.CreateLabel();
            x.mov(rdi, other + 1);
            x.mov(rsi, CpuHarness.DataAddress);
            x.Label(ref wait);
            x.cmp(__dword_ptr[rsi], 0);
            x.je(wait);
            x.mov(__byte_ptr[rdi], 7);
            x.hlt();
        }));
        b.Write(other, Assemble(x =>
        {
            Label loop = x.CreateLabel();
            x.Label(ref loop);
            x.mov(eax, 0x100);
            x.mov(rsi, CpuHarness.DataAddress);
            x.mov(__dword_ptr[rsi], 1);
            x.test(al, al);
            x.jz(loop);
            x.hlt();
        }, other));
        b.State->Rip = other;
        Thread thread = new(a.RunToHlt);
        thread.Start();
        b.RunToHlt();
        thread.Join();
        Assert.Equal(0x107UL, b.Rax);
    }

    [Fact]
    public void LockedAddsOfTwoProcessorsDoNotLoseAny()
    {
        const int rounds = 200_000;
        byte[] code = Assemble(x =>
        {
            Label loop = x.CreateLabel();
            x.mov(ecx, rounds);
            x.mov(rsi, CpuHarness.DataAddress + 3);
            x.Label(ref loop);
            x.@lock.add(__dword_ptr[rsi], 1);
            x.@lock.inc(__qword_ptr[rsi + 64]);
            x.mov(eax, 1);
            x.@lock.xadd(__word_ptr[rsi + 128], ax);
            x.dec(ecx);
            x.jnz(loop);
            x.hlt();
        });
        using CpuHarness a = CpuHarness.Long(code);
        CpuHarness b = CpuHarness.Long(code, machine: a.Machine, memory: a.Memory);
        Thread thread = new(a.RunToHlt);
        thread.Start();
        b.RunToHlt();
        thread.Join();
        Assert.Equal(2 * rounds, *(int*)(a.Memory + CpuHarness.DataAddress + 3));
        Assert.Equal(2L * rounds, *(long*)(a.Memory + CpuHarness.DataAddress + 67));
        Assert.Equal(unchecked((ushort)(2 * rounds)), *(ushort*)(a.Memory + CpuHarness.DataAddress + 131));
    }

    [Fact]
    public void ExternalWritersAreNoticedAtTheNextEntry()
    {
        using CpuHarness h = CpuHarness.Long(Assemble(x =>
        {
            x.mov(eax, 1);
            x.hlt();
        }));
        h.Machine.ExternalWriters = true;
        h.RunToHlt();
        h.Memory[CpuHarness.CodeAddress + 1] = 2;
        h.State->Rip = CpuHarness.CodeAddress;
        h.RunToHlt();
        Assert.Equal(2UL, h.Rax);
    }

    /// <summary>
    /// A lone processor counts its stays for itself; with the second one the count is shared, and what was compared under the old count is compared
    /// again.
    /// </summary>
    [Fact]
    public void ExternalWritersAreNoticedAcrossTheCreationOfASecondProcessor()
    {
        using CpuHarness h = CpuHarness.Long(Assemble(x =>
        {
            x.mov(eax, 1);
            x.hlt();
        }));
        h.Machine.ExternalWriters = true;
        for (byte value = 2; value < 10; value++)
        {
            h.State->Rip = CpuHarness.CodeAddress;
            h.RunToHlt();
            if (value == 5)
                h.Machine.CreateProcessor();
            h.Memory[CpuHarness.CodeAddress + 1] = value;
            h.State->Rip = CpuHarness.CodeAddress;
            h.RunToHlt();
            Assert.Equal(value, h.Rax);
        }
    }

    [Fact]
    public void ExternalWritersAreNoticedBehindLinksAndCachedJumps()
    {
        using CpuHarness h = CpuHarness.Long(Assemble(x =>
        {
            Label loop = x.CreateLabel(), function = x.CreateLabel();
            x.mov(ecx, 10);
            x.Label(ref loop);
            x.call(function);
            x.dec(ecx);
            x.jnz(loop);
            x.hlt();
            x.Label(ref function);
            x.mov(eax, 0x11111111);
            x.ret();
        }));
        h.Machine.ExternalWriters = true;
        h.RunToHlt();
        Assert.Equal(0x11111111UL, h.Rax);
        var code = new Span<byte>(h.Memory + CpuHarness.CodeAddress, 64);
        int at = code.IndexOf("\x11\x11\x11\x11"u8);
        for (int round = 0; round < 3; round++)
        {
            code.Slice(at, 4).Fill((byte)(0x20 + round));
            h.State->Rip = CpuHarness.CodeAddress;
            h.RunToHlt();
            Assert.Equal(0x01010101UL * (uint)(0x20 + round), h.Rax);
            ulong decoded = h.Machine.Blocks.BlocksDecoded;
            h.State->Rip = CpuHarness.CodeAddress;
            h.RunToHlt();
            Assert.Equal(decoded, h.Machine.Blocks.BlocksDecoded);
        }
    }

    [Fact]
    public void AFullArenaDropsEverythingAndGoesOn()
    {
        // A function that is rewritten and called again and again: every round decodes new blocks.
        const ulong function = 0x4_0000;
        using CpuHarness h = CpuHarness.Long(Assemble(x =>
        {
            Label loop = x.CreateLabel();
            x.mov(ecx, 300_000);
            x.mov(rsi, function);
            x.mov(rdi, function);
            x.Label(ref loop);
            x.mov(__dword_ptr[rsi + 2], ecx);
            x.call(rdi);
            x.add(rbx, rax);
            x.dec(ecx);
            x.jnz(loop);
            x.hlt();
        }));
        h.Write(function, [0x90, 0xb8, 0, 0, 0, 0, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0xc3]);
        h.RunToHlt();
        Assert.Equal(300_000UL * 300_001 / 2, h.Rbx);
        Assert.True(h.Machine.Blocks.CodeFlushes > 2);
    }

    /// <summary>
    /// A lookup and others that drop everything all the time: a block that is found before the drops and used after them would lie in an arena that the
    /// next drop reuses, because the processor has told by then that it is in a later epoch.
    /// </summary>
    [Fact]
    public void ABlockThatIsFound_LiesInAnArenaOfTheEpochThatTheProcessorIsIn()
    {
        const int codeBytes = 0x6_0000, rounds = 1_000;
        byte[] code = new byte[codeBytes];
        code.AsSpan().Fill(0x90);
        using CpuHarness h = CpuHarness.Long(code);
        // The last bucket of the table is cleared last: such a block can be found until right before the epoch ends.
        ulong rip = CpuHarness.CodeAddress;
        nuint last = 0;
        for (ulong at = rip; at < CpuHarness.CodeAddress + codeBytes - 0x1000; at++)
            if (Bucket(null, h.Memory + at, BlockMode.Code64) is var bucket && bucket > last)
                (last, rip) = (bucket, at);
        h.State->Rip = rip;
        int found = 0, drops = 0;
        bool ends = false;
        Thread dropper = new(() =>
        {
            for (; drops < rounds && !Volatile.Read(ref ends); drops++)
            {
                // At least one lookup between two drops: arenas wait for who looks up, and would be more and more.
                int before = Volatile.Read(ref found);
                using (DecodeLock(h.Machine).Enter())
                    DropAll(h.Machine.Blocks);
                while (Volatile.Read(ref found) == before && !Volatile.Read(ref ends))
                    Thread.SpinWait(drops & 63);
            }
            Volatile.Write(ref ends, true);
        });
        dropper.Start();
        try
        {
            for (; !Volatile.Read(ref ends); Volatile.Write(ref found, found + 1))
            {
                Block* b = h.Cpu.Fetch.FindBlock(h.State, h.State->BlockMode);
                if (Volatile.Read(ref b->Stale) == 0)
                    continue;
                // Dropped. If since it was found, then its arena waits for this processor: behind the lock the drop has ended, and with it the epoch.
                using (DecodeLock(h.Machine).Enter())
                    Assert.NotEqual(h.Machine.Blocks.Epoch, h.Cpu.Fetch.JumpEpoch);
            }
        }
        finally
        {
            Volatile.Write(ref ends, true);
            dropper.Join();
        }
        Assert.Equal(rounds, drops);
    }

    [UnsafeAccessor(UnsafeAccessorKind.StaticMethod)]
    private static extern nuint Bucket(BlockCache? type, byte* host, uint mode);

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_decodeLock")]
    private static extern ref RankedLock DecodeLockField(BlockCache blocks);

    private static RankedLock DecodeLock(Machine machine) => DecodeLockField(machine.Blocks);

    [UnsafeAccessor(UnsafeAccessorKind.Method)]
    private static extern void DropAll(BlockCache blocks);

    [Fact]
    public void AKickIsSeenInATightLoop()
    {
        using CpuHarness h = CpuHarness.Long([0xeb, 0xfe]);
        using Timer timer = new(_ => h.Cpu.RequestExit(), null, 50, Timeout.Infinite);
        Assert.Equal(ExitReason.Request, h.Cpu.Enter());
        Assert.Equal(CpuHarness.CodeAddress, h.State->Rip);
    }
}
