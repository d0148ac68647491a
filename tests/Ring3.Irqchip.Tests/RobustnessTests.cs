using Ring3.Abi;

namespace Ring3.Irqchip.Tests;

/// <summary>Guest and client input never throws, and the paths of a running guest never allocate.</summary>
public class RobustnessTests
{
    [Theory]
    [InlineData(1, false)]
    [InlineData(2, true)]
    public void RandomInput_NeverThrows(int seed, bool split)
    {
        var random = new Random(seed);
        var rig = new Rig(4, split);
        Pit? pit = split ? null : rig.Chip.CreatePit(true);
        var buffer = new byte[8];
        var page = new byte[Lapic.StateSize];
        int[] sizes = [1, 2, 4, 8];
        for (int i = 0; i < 200_000; i++)
        {
            Lapic apic = rig.Apics[random.Next(4)];
            Span<byte> data = buffer.AsSpan(0, sizes[random.Next(4)]);
            random.NextBytes(data);
            uint word = (uint)random.NextInt64(1L << 32) >> random.Next(32);
            switch (random.Next(16))
            {
                case 0: apic.MmioRead(random.Next(0x1000), data); break;
                case 1: apic.MmioWrite(random.Next(0x1000), data); break;
                case 2: apic.MmioWrite(random.Next(0x40) << 4, data); break;
                case 3: _ = apic.WriteMsr(0x800 + (uint)random.Next(0x100), random.Next(2) == 0 ? word : (ulong)random.NextInt64()); break;
                case 4: _ = apic.ReadMsr(0x800 + (uint)random.Next(0x100), out _); break;
                case 5 when random.Next(50) == 0: _ = apic.SetBase((ulong)random.NextInt64() & 0xfffff00, random.Next(2) == 0); break;
                case 6: _ = rig.Chip.AckInterrupt(apic); break;
                case 7: apic.SetEoi(); break;
                case 8: _ = rig.Chip.SetIrq(random.Next(3), (uint)random.Next(40), random.Next(2) == 0, random.Next(2) == 0); break;
                case 9: _ = rig.Chip.SetMsi(new kvm_msi { address_lo = word, address_hi = (uint)random.Next(), data = word ^ (uint)random.Next(0x10000) });
                    break;
                case 10: rig.Chip.Ioapic?.MmioWrite(random.Next(0x100), data); break;
                case 11: rig.Chip.Ioapic?.MmioWrite(random.Next(2) * 0x10, data[..1]); break;
                case 12: rig.Chip.Pic?.Write(new ushort[] { 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1 }[random.Next(6)], buffer[0]); break;
                case 13: pit?.Write((ushort)(0x40 + random.Next(4)), buffer[0]); break;
                case 14: rig.Timers.Advance(random.Next(1_000_000)); break;
                case 15 when random.Next(200) == 0:
                    random.NextBytes(page);
                    _ = apic.SetState(page);
                    break;
                default:
                    apic.TscDeadline = (ulong)random.NextInt64();
                    _ = pit?.Read((ushort)(0x40 + random.Next(4)));
                    break;
            }
        }
        Assert.All(rig.Apics, a => Assert.InRange(a.HighestIsr, -1, 255));
    }

    [Fact]
    public void RandomState_OfPitAndChips_NeverThrows()
    {
        var random = new Random(3);
        var rig = new Rig(2);
        Pit pit = rig.Chip.CreatePit(true)!;
        for (int i = 0; i < 2000; i++)
        {
            pit.SetState(Random<kvm_pit_state2>(random));
            rig.Chip.Pic!.SetState(i % 2 == 0, Random<kvm_pic_state>(random));
            rig.Chip.Ioapic!.SetState(Random<kvm_ioapic_state>(random));
            for (ushort port = 0x40; port < 0x44; port++)
                _ = pit.Read(port);
            _ = rig.Chip.AckInterrupt(rig.Apics[i % 2]);
            rig.Timers.Advance(50_000);
        }
    }

    private static T Random<T>(Random random) where T : unmanaged
    {
        var value = new T[1];
        random.NextBytes(System.Runtime.InteropServices.MemoryMarshal.AsBytes(value.AsSpan()));
        return value[0];
    }

    [Fact]
    public void RunningGuest_AllocatesNothing()
    {
        var rig = new Rig(4);
        for (int i = 0; i < 4; i++)
            rig.Write(i, ApicRegister.LDR, 1u << (24 + i));
        rig.Redirect(11, 0x5b | 1 << 15 | 1 << 11, 3);
        rig.Write(0, ApicRegister.LVT_TIMER, 2 << 17 | 0xec);
        void Round()
        {
            rig.Ipi(0, 0xc4000 | 0x41);
            rig.Ipi(1, 0x4000 | 1 << 11 | 1 << 8 | 0x42, 0xf);
            _ = rig.Chip.SetIrq(0, 11, true);
            _ = rig.Chip.SetIrq(0, 11, false);
            _ = rig.Chip.SetMsi(new kvm_msi { address_lo = 0xfee0_1000, data = 0x61 });
            rig.Apics[0].TscDeadline = rig.Vcpus[0].GuestTsc() + 100;
            rig.Timers.Advance(100);
            foreach (Lapic apic in rig.Apics)
                while (rig.Chip.AckInterrupt(apic) >= 0)
                    apic.SetEoi();
        }
        for (int i = 0; i < 100; i++)
            Round();
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 100; i++)
            Round();
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
    }

    [Fact]
    public void LongTimer_DoesNotOverflow()
    {
        var rig = new Rig();
        rig.Write(0, ApicRegister.TDCR, 0xa);
        rig.Write(0, ApicRegister.TMICT, uint.MaxValue);
        Assert.Equal(rig.Timers.NowNs + 128L * uint.MaxValue, rig.Apics[0].TimerDeadlineNs);
        rig.Timers.Advance(128L * 1000);
        Assert.Equal(uint.MaxValue - 1000, rig.Read(0, ApicRegister.TMCCT));
    }
}
