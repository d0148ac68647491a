using Ring3.Abi;
using Ring3.Arch;

namespace Ring3.Memory.Tests;

/// <summary>The rules and errnos of KVM_SET_USER_MEMORY_REGION as a table. SPEC: api.rst.</summary>
public class SlotRulesTests
{
    private const ulong P = Page.Size, Hva = 0x7000_0000_0000;
    private const uint Log = KvmApi.KVM_MEM_LOG_DIRTY_PAGES, Ro = KvmApi.KVM_MEM_READONLY;
    private const uint Smm = 1 << 16;

    /// <summary>Slots before every case: 1 = [16, 32) pages, 2 = [64, 65) read-only, SMM 1 = [16, 32).</summary>
    private static MemorySlots Prepared()
    {
        var slots = new MemorySlots();
        Assert.Equal(0, slots.SetRegion(1, 0, 16 * P, 16 * P, Hva));
        Assert.Equal(0, slots.SetRegion(2, Ro, 64 * P, P, Hva + 64 * P));
        Assert.Equal(0, slots.SetRegion(Smm | 1, 0, 16 * P, 16 * P, Hva + 128 * P));
        return slots;
    }

    public static TheoryData<string, uint, uint, ulong, ulong, ulong, int> Cases => new()
    {
        { "create", 0, 0, 0, P, Hva, 0 },
        { "create logged", 0, Log, 0, P, Hva, 0 },
        { "create read-only logged", 0, Log | Ro, 0, P, Hva, 0 },
        { "adjacent below", 0, 0, 15 * P, P, Hva, 0 },
        { "adjacent above", 0, 0, 32 * P, P, Hva, 0 },
        { "unknown flag", 0, 8, 0, P, Hva, -Errno.EINVAL },
        { "guest_memfd flag", 0, KvmApi.KVM_MEM_GUEST_MEMFD, 0, P, Hva, -Errno.EINVAL },
        { "gpa not aligned", 0, 0, 1, P, Hva, -Errno.EINVAL },
        { "size not aligned", 0, 0, 0, P + 1, Hva, -Errno.EINVAL },
        { "hva not aligned", 0, 0, 0, P, Hva + 8, -Errno.EINVAL },
        { "hva beyond user space", 0, 0, 0, P, 0xffff_8000_0000_0000, -Errno.EINVAL },
        { "hva range beyond user space", 0, 0, 0, 16 * P, 0x7fff_ffff_f000 - P, -Errno.EINVAL },
        { "slot number too large", 32764, 0, 0, P, Hva, -Errno.EINVAL },
        { "largest slot number", 32763, 0, 0, P, Hva, 0 },
        { "address space too large", 2 << 16, 0, 0, P, Hva, -Errno.EINVAL },
        { "SMM slot of its own", Smm | 2, 0, 0, P, Hva, 0 },
        { "gpa wraps", 0, 0, 0xffff_ffff_ffff_f000, 2 * P, Hva, -Errno.EINVAL },
        { "above 52 bits", 0, 0, 1UL << 52, P, Hva, -Errno.EINVAL },
        { "up to 52 bits", 0, 0, (1UL << 52) - P, P, Hva, 0 },
        { "too many pages", 0, 0, 0, (1UL << 31) * P, Hva, -Errno.EINVAL },
        { "delete what is not there", 0, 0, 0, 0, 0, -Errno.EINVAL },
        { "delete", 1, 0, 0, 0, 0, 0 },
        { "delete ignores the rest but alignment", 1, 0, 3 * P, 0, Hva, 0 },
        { "overlaps whole", 0, 0, 0, 128 * P, Hva, -Errno.EEXIST },
        { "overlaps first page", 0, 0, 15 * P, 2 * P, Hva, -Errno.EEXIST },
        { "overlaps last page", 0, 0, 31 * P, 2 * P, Hva, -Errno.EEXIST },
        { "overlaps inside", 0, 0, 20 * P, P, Hva, -Errno.EEXIST },
        { "does not overlap the other address space", Smm | 5, 0, 64 * P, P, Hva, 0 },
        { "same again", 1, 0, 16 * P, 16 * P, Hva, 0 },
        { "size change", 1, 0, 16 * P, 8 * P, Hva, -Errno.EINVAL },
        { "hva change", 1, 0, 16 * P, 16 * P, Hva + P, -Errno.EINVAL },
        { "becomes read-only", 1, Ro, 16 * P, 16 * P, Hva, -Errno.EINVAL },
        { "becomes writable", 2, 0, 64 * P, P, Hva + 64 * P, -Errno.EINVAL },
        { "logging on", 1, Log, 16 * P, 16 * P, Hva, 0 },
        { "move", 1, 0, 32 * P, 16 * P, Hva, 0 },
        { "move over itself", 1, 0, 17 * P, 16 * P, Hva, 0 },
        { "move with logging", 1, Log, 128 * P, 16 * P, Hva, 0 },
        { "move onto another", 1, 0, 60 * P, 16 * P, Hva, -Errno.EEXIST },
    };

    [Theory]
    [MemberData(nameof(Cases))]
    public void SetRegion_Rules(string name, uint slot, uint flags, ulong gpa, ulong size, ulong hva, int expected)
    {
        MemorySlots slots = Prepared();
        ulong generation = slots.Generation;
        Assert.Equal(expected, slots.SetRegion(slot, flags, gpa, size, hva));
        if (expected != 0)
        {
            Assert.True(generation == slots.Generation, name);
            return;
        }
        Memslot? now = slots.Set((int)(slot >> 16)).ById((ushort)slot);
        if (size == 0)
        {
            Assert.Null(now);
            return;
        }
        Assert.NotNull(now);
        Assert.Equal((gpa >> 12, size >> 12, hva, flags, false), (now.BaseGfn, now.NPages, now.UserspaceAddr, now.Flags, now.IsInvalid));
        Assert.Equal((flags & Log) != 0, now.IsDirtyLogged);
        Assert.Same(now, slots.Find(gpa >> 12, (int)(slot >> 16)));
        Assert.Same(now, slots.Find((gpa + size - 1) >> 12, (int)(slot >> 16)));
    }

    [Fact]
    public void InternalSlots_AreOutOfTheClientsReach()
    {
        MemorySlots slots = Prepared();
        Assert.Equal(0, slots.SetInternalRegion(0, 0, 128 * P, P, Hva));
        Assert.Equal(-Errno.EEXIST, slots.SetInternalRegion(1, 0, 16 * P, P, Hva));
        Assert.Equal(-Errno.EINVAL, slots.SetInternalRegion(3, 0, 256 * P, P, Hva));
        Assert.Equal(-Errno.EINVAL, slots.SetRegion(32764, 0, 0, 0, 0));
        Assert.Equal(-Errno.EEXIST, slots.SetRegion(0, 0, 128 * P, P, Hva));
    }

    [Fact]
    public void Listener_SeesTheStepsInOrder()
    {
        MemorySlots slots = Prepared();
        var log = new Recorder(slots);
        slots.AddListener(log);
        slots.SetRegion(1, 0, 128 * P, 16 * P, Hva);
        slots.SetRegion(1, Log, 128 * P, 16 * P, Hva);
        slots.SetRegion(1, Log, 128 * P, 16 * P, Hva);
        slots.SetRegion(1, 0, 0, 0, 0);
        slots.SetRegion(9, 0, 0, P, Hva);
        Assert.Equal(["flush 1 invalid", "Move", "FlagsOnly", "flush 1 invalid", "Delete", "Create"], log.Steps);
    }

    [Fact]
    public void DirtyBitmap_SurvivesAMove()
    {
        MemorySlots slots = Prepared();
        slots.SetRegion(1, Log, 16 * P, 16 * P, Hva);
        slots.Find(20)!.MarkDirty(20);
        slots.SetRegion(1, Log, 128 * P, 16 * P, Hva);
        Assert.Equal(16UL, slots.Find(128)!.DirtyBitmap!.Word(0));
    }

    [Fact]
    public void AllSlots_CanBeUsedAndFound()
    {
        var slots = new MemorySlots();
        var random = new Random(7);
        int[] order = [.. Enumerable.Range(0, MemorySlots.UserSlots)];
        random.Shuffle(order);
        foreach (int i in order)
            Assert.Equal(0, slots.SetRegion((uint)i, 0, (ulong)i * 2 * P, P, Hva + (ulong)i * P));
        Assert.Equal(-Errno.EINVAL, slots.SetRegion((uint)MemorySlots.UserSlots, 0, 0, P, Hva));
        MemslotSet set = slots.Set(0);
        Assert.Equal(MemorySlots.UserSlots, set.Count);
        for (int i = 0; i < MemorySlots.UserSlots; i++)
        {
            Assert.Equal(i, set.Find((ulong)i * 2)!.Id);
            Assert.Null(set.Find((ulong)i * 2 + 1));
        }
        random.Shuffle(order);
        foreach (int i in order.AsSpan(0, 1000))
            Assert.Equal(0, slots.SetRegion((uint)i, 0, 0, 0, 0));
        Assert.Equal(MemorySlots.UserSlots - 1000, slots.Set(0).Count);
        Assert.Equal((ulong)(MemorySlots.UserSlots - 1000), slots.TotalPages);
    }

    private sealed class Recorder(MemorySlots slots) : IMemslotListener
    {
        public readonly List<string> Steps = [];

        public void FlushMemslot(Memslot old)
            => Steps.Add($"flush {old.Id}{(slots.Set(old.AsId).ById(old.Id)!.IsInvalid ? " invalid" : "")}");

        public void CommitMemslot(Memslot? old, Memslot? added, MemslotChange change) => Steps.Add(change.ToString());
    }
}
