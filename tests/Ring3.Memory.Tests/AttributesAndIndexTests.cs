using Ring3.Abi;
using Ring3.Arch;

namespace Ring3.Memory.Tests;

/// <summary>Structures that replace scans, against the scans they replace.</summary>
public unsafe class AttributesAndIndexTests
{
    private const ulong P = Page.Size, Hva = 0x7000_0000_0000;

    [Fact]
    public void Attributes_AreThoseOfTheLastChange_ForEveryFrame()
    {
        var random = new Random(1);
        for (int round = 0; round < 200; round++)
        {
            var model = new bool[64];
            MemoryAttributes a = MemoryAttributes.AllShared;
            for (int step = 0; step < 30; step++)
            {
                int start = random.Next(64), end = random.Next(start + 1, 65);
                bool isPrivate = random.Next(2) == 0;
                model.AsSpan(start, end - start).Fill(isPrivate);
                a = a.With((ulong)start, (ulong)end, isPrivate);
                int runs = 0;
                for (int i = 0; i < 64; i++)
                {
                    Assert.Equal(model[i], a.IsPrivate((ulong)i));
                    if (model[i] && (i == 0 || !model[i - 1]))
                        runs++;
                }
                // Neighbours are merged: as many ranges as there are runs.
                Assert.Equal(runs, a.Ranges);
                int from = random.Next(64), to = random.Next(from + 1, 65);
                Span<bool> part = model.AsSpan(from, to - from);
                Assert.Equal(!part.ContainsAnyExcept(part[0]), a.IsUniform((ulong)from, (ulong)to));
            }
        }
    }

    [Fact]
    public void HvaIndex_FindsWhatAScanFinds()
    {
        var random = new Random(2);
        var slots = new MemorySlots();
        for (int step = 0; step < 600; step++)
        {
            uint id = (uint)random.Next(60);
            if (slots.Set(0).ById((int)id) is null)
                Assert.Equal(0, slots.SetRegion(id, 0, id * 64 * P, (ulong)random.Next(1, 40) * P, Hva + (ulong)random.Next(100) * P));
            else
                Assert.Equal(0, slots.SetRegion(id, 0, 0, 0, 0));
            ulong start = Hva + (ulong)random.Next(140) * P, end = start + (ulong)random.Next(1, 20) * P;
            var expected = new List<int>();
            foreach (Memslot s in slots.Set(0).Slots)
                if (s.UserspaceAddr < end && s.HvaEnd > start)
                    expected.Add(s.Id);
            var found = new List<int>();
            foreach (Memslot s in slots.Set(0).InHvaRange(start, end))
                found.Add(s.Id);
            expected.Sort();
            found.Sort();
            Assert.Equal(expected, found);
            Assert.Equal(expected.Count != 0, slots.Notifier.TouchesAnySlot(start, end));
        }
    }

    [Theory]
    [InlineData(0UL, 0x1000UL, 8UL, 0UL, 0)]
    [InlineData(0UL, 0x1000UL, 0UL, 0UL, 0)]
    [InlineData(0UL, 0UL, 8UL, 0UL, -Errno.EINVAL)]
    [InlineData(0x800UL, 0x1000UL, 8UL, 0UL, -Errno.EINVAL)]
    [InlineData(0UL, 0x1800UL, 8UL, 0UL, -Errno.EINVAL)]
    [InlineData(0UL, 0x1000UL, 1UL, 0UL, -Errno.EINVAL)]
    [InlineData(0UL, 0x1000UL, 8UL, 1UL, -Errno.EINVAL)]
    [InlineData(0xffff_ffff_ffff_f000UL, 0x2000UL, 8UL, 0UL, -Errno.EINVAL)]
    public void SetAttributes_Errors(ulong address, ulong size, ulong attributes, ulong flags, int expected)
    {
        var args = new kvm_memory_attributes { address = address, size = size, attributes = attributes, flags = flags };
        Assert.Equal(expected, new MemorySlots { AllowPrivateMemory = true }.SetAttributes(args));
        // Without private memory only "no attribute" exists.
        Assert.Equal(expected != 0 || attributes != 0 ? -Errno.EINVAL : 0, new MemorySlots().SetAttributes(args));
    }

    [Fact]
    public void GuestMemfd_BindsOnceAndOnlyInItsVm()
    {
        const uint Gmem = KvmApi.KVM_MEM_GUEST_MEMFD;
        var slots = new MemorySlots { AllowPrivateMemory = true };
        var other = new MemorySlots { AllowPrivateMemory = true };
        Assert.Equal(-Errno.EINVAL, GuestMemfd.Create(slots, 0x1001, out _));
        Assert.Equal(-Errno.EINVAL, GuestMemfd.Create(slots, 0, out _));
        Assert.Equal(0, GuestMemfd.Create(slots, 4 * P, out GuestMemfd? memory));
        kvm_userspace_memory_region2 Region(uint slot, ulong page, ulong pages, ulong offset, uint flags = Gmem)
            => new() { slot = slot, flags = flags, guest_phys_addr = page * P, memory_size = pages * P, userspace_addr = Hva, guest_memfd_offset = offset };
        Assert.Equal(-Errno.EINVAL, slots.SetRegion(Region(0, 0, 2, 0), null));
        Assert.Equal(-Errno.EINVAL, other.SetRegion(Region(0, 0, 2, 0), memory));
        Assert.Equal(-Errno.EINVAL, new MemorySlots().SetRegion(Region(0, 0, 2, 0), memory));
        Assert.Equal(-Errno.EINVAL, slots.SetRegion(Region(0, 0, 2, 8), memory));
        Assert.Equal(-Errno.EINVAL, slots.SetRegion(Region(0, 0, 5, 0), memory));
        Assert.Equal(-Errno.EINVAL, slots.SetRegion(Region(0, 0, 2, 0, Gmem | KvmApi.KVM_MEM_LOG_DIRTY_PAGES), memory));
        Assert.Equal(-Errno.EINVAL, slots.SetRegion(Region(0, 0, 2, 0, Gmem | KvmApi.KVM_MEM_READONLY), memory));
        Assert.Equal(0, slots.SetRegion(Region(0, 0, 2, 0), memory));
        Assert.Equal(-Errno.EINVAL, slots.SetRegion(Region(0, 0, 2, 0), memory));
        Assert.Equal(-Errno.EINVAL, slots.SetRegion(Region(0, 0, 2, 0, flags: 0), null));
        Assert.Equal(-Errno.EINVAL, slots.SetRegion(Region(1 << 16, 0, 2, 2 * P, flags: 0), null));
        Assert.Equal(-Errno.EINVAL, slots.SetRegion(Region(1, 16, 2, P), memory));
        Assert.Equal(-Errno.EEXIST, slots.SetRegion(Region(1, 1, 2, 2 * P), memory));
        Assert.Equal(0, slots.SetRegion(Region(1, 16, 2, 2 * P), memory));
        Assert.Equal(0, slots.SetRegion(Region(0, 0, 0, 0), null));
        Assert.Equal(0, slots.SetRegion(Region(2, 0, 2, 0), memory));
        Host.MemFd.Close(memory!.Fd);
    }

    [Theory]
    [InlineData(1, 0L, 0x4000L, 0)]
    [InlineData(1, 0x4000L, 0x1000L, -Errno.EINVAL)]
    [InlineData(3, 0x1000L, 0x1000L, 0)]
    [InlineData(3, 0x4000L, 0x1000L, 0)]
    [InlineData(3, 0x3000L, 0x4000L, 0)]
    [InlineData(3, 0x800L, 0x1000L, -Errno.EINVAL)]
    [InlineData(3, 0x1000L, 0x800L, -Errno.EINVAL)]
    [InlineData(0, 0L, 0x1000L, -Errno.EOPNOTSUPP)]
    [InlineData(0x11, 0L, 0x1000L, -Errno.EOPNOTSUPP)]
    [InlineData(1, 0L, 0L, -Errno.EINVAL)]
    [InlineData(1, -4096L, 0x1000L, -Errno.EINVAL)]
    public void GuestMemfd_AllocatesInPagesInsideItself(int mode, long offset, long length, int expected)
    {
        Assert.Equal(0, GuestMemfd.Create(new MemorySlots(), 4 * P, out GuestMemfd? memory));
        new Span<byte>((void*)memory!.Hva, 0x4000).Fill(1);
        Assert.Equal(expected, memory.Allocate(memory.Fd, mode, offset, length));
        bool punched = expected == 0 && (mode & 2) != 0 && offset < 0x4000;
        Assert.Equal(punched ? 0 : 1, *(byte*)(memory.Hva + (punched ? (ulong)offset : 0)));
        Host.MemFd.Close(memory.Fd);
    }
}
