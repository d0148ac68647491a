using Ring3.Mmu;

namespace Ring3.Kvm.Tests;

/// <summary>Aging of what the real processor's walks have marked, or of what it may no longer touch.</summary>
public sealed class AgingTests
{
    private const ulong FirstGfn = 0x400, Pages = 512;

    /// <summary>A guest that writes to each page of a table, tells, and does it again.</summary>
    private static TestGuest Guest(bool accessedBits)
    {
        var guest = new TestGuest(options: new VmOptions { AccessedBits = accessedBits, CheckTlb = true });
        guest.Vm.Mmu.MaxLevel = PgLevel.Level4K;
        // mov ebx, 0x400000; mov ecx, 512; again: inc dword [rbx]; add rbx, 4096; loop again; out 0xf4, al; jmp start
        return guest.Load(0xbb, 0, 0, 0x40, 0, 0xb9, 0, 2, 0, 0, 0xff, 0x03, 0x48, 0x81, 0xc3, 0, 0x10, 0, 0, 0xe2, 0xf5, 0xe6, 0xf4, 0xeb, 0xe7);
    }

    private static ulong[] Young(TestGuest guest)
    {
        ulong[] bitmap = new ulong[Pages / 64];
        guest.Vm.Mmu.HarvestYoung(FirstGfn, FirstGfn + Pages, bitmap);
        return bitmap;
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void PagesAreYoungOnceForEachWalk(bool accessedBits)
    {
        using TestGuest guest = Guest(accessedBits);
        for (uint round = 1; round <= 3; round++)
        {
            guest.RunToEnd();
            Assert.All(Young(guest), w => Assert.Equal(ulong.MaxValue, w));
            Assert.All(Young(guest), w => Assert.Equal(0UL, w));
            Assert.True(guest.Vm.Memory.TryRead(FirstGfn << 12, out uint written));
            Assert.Equal(round, written);
            // The processor marks a page again, and the table above it, when it walks again.
            guest.Vm.MakeAllRequest(VcpuRequest.TlbFlush);
        }
    }

    [Fact]
    public void OnlyAgingByPermissionsFlushes()
    {
        using TestGuest bits = Guest(true), permissions = Guest(false);
        bits.RunToEnd();
        permissions.RunToEnd();
        ulong before = bits.Vm.Mmu.GetStats().RemoteTlbFlushRequests, beforePermissions = permissions.Vm.Mmu.GetStats().RemoteTlbFlushRequests;
        Young(bits);
        Young(permissions);
        Assert.Equal(before, bits.Vm.Mmu.GetStats().RemoteTlbFlushRequests);
        Assert.True(permissions.Vm.Mmu.GetStats().RemoteTlbFlushRequests > beforePermissions);
        Assert.False(permissions.Vm.Mmu.TestClearYoung(FirstGfn, FirstGfn + Pages, new ulong[Pages / 64]));
    }
}
