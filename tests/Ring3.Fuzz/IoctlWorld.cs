using System.Reflection;
using System.Runtime.CompilerServices;
using Ring3.Abi;
using Ring3.DevKvm;
using Ring3.Host;
using static Ring3.Abi.KvmApi;

namespace Ring3.Fuzz;

/// <summary>The client's memory, and what it passes to calls: mostly structures that mean something, sometimes anything.</summary>
/// <remarks>
/// SAFETY: guest memory and argument pointers lie in mappings of this object, in pages without access around them, or where no process has memory, so
/// that nothing here can hit the fuzzer itself.
/// </remarks>
internal sealed unsafe class IoctlWorld
{
    private const int GuestBytes = 4 << 20, ScratchBytes = 64 << 10, Threads = 16, ScratchStride = 3 * ScratchBytes;
    private readonly byte* _reserved = HostMemory.Map(4 * GuestBytes), _scratches = HostMemory.Map(Threads * ScratchStride);
    private readonly int _eventFd = EventFd.Create();
    private readonly (uint Value, string Name)[] _commands =
        [.. typeof(KvmApi).GetFields(BindingFlags.Public | BindingFlags.Static).Where(f => f.FieldType == typeof(uint) && f.IsLiteral
            && ((uint)f.GetRawConstantValue()! >> 8 & 0xff) == 0xae && f.Name.StartsWith("KVM_", StringComparison.Ordinal))
            .Select(f => ((uint)f.GetRawConstantValue()!, f.Name)).DistinctBy(c => c.Item1)];
    private static readonly Dictionary<uint, uint> s_pairs = new()
    {
        [KVM_SET_REGS] = KVM_GET_REGS, [KVM_SET_SREGS] = KVM_GET_SREGS, [KVM_SET_SREGS2] = KVM_GET_SREGS2, [KVM_SET_FPU] = KVM_GET_FPU,
            [KVM_SET_XSAVE] = KVM_GET_XSAVE, [KVM_SET_XCRS] = KVM_GET_XCRS,
        [KVM_SET_DEBUGREGS] = KVM_GET_DEBUGREGS, [KVM_SET_VCPU_EVENTS] = KVM_GET_VCPU_EVENTS, [KVM_SET_LAPIC] = KVM_GET_LAPIC,
            [KVM_SET_MP_STATE] = KVM_GET_MP_STATE, [KVM_SET_PIT2] = KVM_GET_PIT2,
        [KVM_SET_IRQCHIP] = KVM_GET_IRQCHIP, [KVM_SET_CLOCK] = KVM_GET_CLOCK, [KVM_SET_CPUID2] = KVM_GET_CPUID2, [KVM_SET_MSRS] = KVM_GET_MSRS,
    };
    private static readonly uint[] s_vcpuFavourites =
        [KVM_RUN, KVM_RUN, KVM_RUN, KVM_SET_REGS, KVM_SET_SREGS, KVM_SET_MSRS, KVM_SET_CPUID2, KVM_SET_VCPU_EVENTS, KVM_SET_LAPIC, KVM_SET_MP_STATE,
            KVM_INTERRUPT, KVM_NMI, KVM_SMI, KVM_TRANSLATE, KVM_SET_XSAVE, KVM_SET_GUEST_DEBUG, KVM_ENABLE_CAP, KVM_PRE_FAULT_MEMORY];
    private static readonly uint[] s_vmFavourites =
        [KVM_SET_USER_MEMORY_REGION, KVM_SET_USER_MEMORY_REGION2, KVM_SET_USER_MEMORY_REGION, KVM_CREATE_VCPU, KVM_CREATE_VCPU, KVM_CREATE_IRQCHIP,
            KVM_CREATE_PIT2, KVM_IRQ_LINE, KVM_SIGNAL_MSI, KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD,
         KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG, KVM_REGISTER_COALESCED_MMIO, KVM_ENABLE_CAP, KVM_CREATE_GUEST_MEMFD, KVM_SET_MEMORY_ATTRIBUTES,
             KVM_RESET_DIRTY_RINGS, KVM_SET_TSS_ADDR, KVM_X86_SET_MSR_FILTER, KVM_CREATE_DEVICE];
    private byte* Guest => _reserved + GuestBytes;

    public IoctlWorld()
    {
        HostMemory.Protect(_reserved, 4 * GuestBytes, false, false);
        HostMemory.Protect(Guest, GuestBytes, true, true);
        HostMemory.Protect(_scratches, Threads * ScratchStride, false, false);
        for (int i = 0; i < Threads; i++)
            HostMemory.Protect(Scratch(i), ScratchBytes, true, true);
    }

    public byte* Scratch(int thread) => _scratches + thread * ScratchStride + ScratchBytes;

    /// <summary>All memory is there again, as it was.</summary>
    public void Restore()
    {
        HostMemory.Protect(Guest, GuestBytes, true, true);
        HostMemory.Discard(Guest, GuestBytes);
        // Code at the start of each of the first pages: out, in, mov to memory, hlt, jumps and noise.
        new Random(7).NextBytes(new Span<byte>(Guest, 0x4000));
        ReadOnlySpan<byte> code = [0xe6, 0x80, 0xe4, 0x60, 0x88, 0x06, 0x00, 0x70, 0xa4, 0xf3, 0xaa, 0xf4, 0xeb, 0xf4];
        for (int page = 0; page < 16; page++)
            code.CopyTo(new Span<byte>(Guest + page * 0x1000, code.Length));
    }

    /// <summary>Takes guest memory away or gives it back, with or without telling.</summary>
    public void Disturb(Random random)
    {
        ulong page = (ulong)Guest + (ulong)random.Next(GuestBytes >> 12) / (random.Next(2) == 0 ? 1UL : 64) * 4096;
        nuint bytes = (nuint)Math.Min((ulong)random.Next(1, 32) << 12, (ulong)Guest + GuestBytes - page);
        bool told = random.Next(2) == 0 && KvmDevice.InvalidateStart(page, page + bytes);
        switch (random.Next(4))
        {
            case 0: HostMemory.Protect((void*)page, bytes, false, false); break;
            case 1: HostMemory.Protect((void*)page, bytes, true, false); break;
            case 2: HostMemory.Discard((void*)page, bytes); break;
            default: HostMemory.Protect(Guest, GuestBytes, true, true); break;
        }
        if (told)
            KvmDevice.InvalidateEnd(page, page + bytes);
    }

    public string Name(uint command) => Array.Find(_commands, c => c.Value == command).Name ?? $"0x{command:x8}";

    public uint Command(Random random, ObjectKind kind)
    {
        int way = random.Next(100);
        if (way < 60 && kind is ObjectKind.Vcpu or ObjectKind.Vm)
        {
            uint[] favourites = kind == ObjectKind.Vcpu ? s_vcpuFavourites : s_vmFavourites;
            return favourites[random.Next(favourites.Length)];
        }
        if (way < 97)
            return _commands[random.Next(_commands.Length)].Value;
        return way == 97 ? (uint)random.Next() : _commands[random.Next(_commands.Length)].Value ^ 1u << random.Next(32);
    }

    /// <summary>The argument of a call. <paramref name="followUp"/>: the call is a SET to be made on what its GET returns.</summary>
    public ulong Argument(Random random, uint command, ObjectKind kind, int thread, out bool followUp)
    {
        followUp = s_pairs.ContainsKey(command) && random.Next(4) != 0;
        byte* scratch = Scratch(thread);
        if (random.Next(12) == 0)
            return Wild(random, scratch);
        if ((command >> 30) == 0)
            return command switch
            {
                KVM_CREATE_VCPU => (ulong)random.Next(6),
                KVM_CREATE_VM => 0,
                KVM_CHECK_EXTENSION => (ulong)random.Next(260),
                KVM_RUN => 0,
                KVM_SET_TSS_ADDR => (ulong)random.Next(1 << 20) << 12,
                _ => (ulong)random.Next(16),
            };
        Span<byte> bytes = new(scratch, 4096);
        switch (random.Next(3))
        {
            case 0: random.NextBytes(bytes[..Math.Min((int)(command >> 16 & 0x3fff) + 64, 4096)]); break;
            case 1: bytes.Clear(); break;
        }
        Fill(random, command, scratch);
        return (ulong)scratch;
    }

    /// <summary>The GET that belongs to a SET.</summary>
    public static uint GetOf(uint set) => s_pairs[set];

    public void Mutate(Random random, int thread)
    {
        byte* scratch = Scratch(thread);
        for (int n = random.Next(4); n > 0; n--)
        {
            int at = random.Next(random.Next(2) == 0 ? 64 : 1024);
            scratch[at] = random.Next(3) switch { 0 => 0, 1 => (byte)random.Next(256), _ => (byte)(scratch[at] ^ 1 << random.Next(8)) };
        }
    }

    private static ulong Wild(Random random, byte* scratch) => random.Next(9) switch
    {
        0 => 0,
        1 => 1,
        2 => 0x8000_0000_0000,
        3 => ulong.MaxValue - (ulong)random.Next(64),
        4 => 0xffff_8000_0000_0000,
        5 => (ulong)scratch + ScratchBytes - (ulong)random.Next(300),
        6 => (ulong)scratch - (ulong)random.Next(1, 300),
        7 => (ulong)random.Next(4096),
        _ => (ulong)random.NextInt64() | 1UL << 62,
    };

    private static ulong Gpa(Random random) => random.Next(6) switch
    {
        0 => 0,
        1 => (ulong)random.Next(1024) << 12,
        2 => 0xfee0_0000,
        3 => 0xfec0_0000,
        4 => 0x1_0000_0000 + ((ulong)random.Next(64) << 12),
        _ => (ulong)random.Next(32) << 12,
    };

    private void Fill(Random random, uint command, byte* s)
    {
        ulong* q = (ulong*)s;
        uint* d = (uint*)s;
        switch (command)
        {
            case KVM_SET_USER_MEMORY_REGION or KVM_SET_USER_MEMORY_REGION2:
                Unsafe.InitBlock(s, 0, 160);
                d[0] = (uint)random.Next(5) | (random.Next(8) == 0 ? 1u << 16 : 0);
                d[1] = random.Next(3) switch { 0 => (uint)random.Next(8), 1 => 1u, _ => 0u };
                q[1] = Gpa(random);
                ulong offset = (ulong)random.Next(GuestBytes >> 12) / 2 << 12;
                q[2] = random.Next(4) == 0 ? 0 : random.Next(3) == 0 ? GuestBytes - offset : (ulong)random.Next(1, 64) << 12;
                q[3] = random.Next(15) == 0 ? (ulong)random.Next(1, 16) << 12 : (ulong)Guest + offset;
                d[10] = (uint)random.Next(200);
                if (random.Next(25) == 0)
                    q[random.Next(1, 3)] ^= 1UL << random.Next(64);
                // Nothing beyond the reservation: what is there is the fuzzer's.
                if (q[3] >= (ulong)_reserved && q[2] > (ulong)_reserved + 4 * GuestBytes - q[3])
                    q[2] = 0x1000;
                else if (q[3] < (ulong)_reserved && q[2] > 0x10_0000)
                    q[2] = 0x1000;
                break;
            case KVM_GET_DIRTY_LOG:
                (d[0], q[1]) = ((uint)random.Next(5), random.Next(6) == 0 ? Wild(random, s) : (ulong)s + 4096);
                break;
            case KVM_CLEAR_DIRTY_LOG:
                (d[0], d[1], q[1], q[2]) = ((uint)random.Next(5), (uint)random.Next(2000), (ulong)random.Next(40) * 32, random.Next(6) == 0 ? Wild(random, s)
                    : (ulong)s + 4096);
                break;
            case KVM_ENABLE_CAP:
                Unsafe.InitBlock(s, 0, 104);
                d[0] = (uint)random.Next(250);
                for (int i = 0; i < 2; i++)
                    q[1 + i] = random.Next(3) == 0 ? (ulong)random.Next(70_000) : (ulong)random.Next(8);
                break;
            case KVM_IRQFD:
                (d[0], d[1], d[2], d[3]) = (Descriptor(random), (uint)random.Next(30), (uint)random.Next(4), Descriptor(random));
                break;
            case KVM_IOEVENTFD:
                (q[0], q[1], d[4], d[5], d[6]) = ((ulong)random.Next(4), Gpa(random), 1u << random.Next(5), Descriptor(random), (uint)random.Next(16));
                break;
            case KVM_SET_GSI_ROUTING:
                d[0] = random.Next(20) == 0 ? (uint)random.Next() : (uint)random.Next(30);
                d[1] = random.Next(10) == 0 ? 1u : 0;
                for (int i = 0; i < 30; i++)
                    (d[2 + 12 * i], d[3 + 12 * i]) = ((uint)random.Next(30), (uint)random.Next(5));
                break;
            case KVM_IRQ_LINE or KVM_IRQ_LINE_STATUS:
                (d[0], d[1]) = ((uint)random.Next(28), (uint)random.Next(2));
                break;
            case KVM_SIGNAL_MSI:
                (d[0], d[1], d[2], d[3]) = (0xfee0_0000 | (uint)random.Next(4) << 12, 0, (uint)random.Next(0x1000), 0);
                break;
            case KVM_GET_MSRS or KVM_SET_MSRS:
                d[0] = (uint)random.Next(random.Next(20) == 0 ? 300 : 12);
                for (int i = 0; i < 12; i++)
                    d[2 + 4 * i] = random.Next(5) switch { 0 => 0xc000_0080 + (uint)random.Next(8), 1 => 0x4b56_4d00 + (uint)random.Next(10), 2 => 0x10
                        + (uint)random.Next(0x30), 3 => 0x800 + (uint)random.Next(0x40), _ => (uint)random.Next(0x400) };
                break;
            case KVM_SET_CPUID2 or KVM_GET_CPUID2 or KVM_GET_SUPPORTED_CPUID:
                d[0] = (uint)random.Next(random.Next(6) == 0 ? 400 : 100);
                break;
            case KVM_SET_MEMORY_ATTRIBUTES:
                (q[0], q[1], q[2], q[3]) = (Gpa(random), (ulong)random.Next(1, 64) << 12, (ulong)random.Next(2) << 3, 0);
                break;
            case KVM_CREATE_GUEST_MEMFD:
                Unsafe.InitBlock(s, 0, 64);
                q[0] = (ulong)random.Next(64) << 12;
                break;
            case KVM_PRE_FAULT_MEMORY:
                Unsafe.InitBlock(s, 0, 64);
                (q[0], q[1]) = (Gpa(random), (ulong)random.Next(64) << 12);
                break;
            case KVM_REGISTER_COALESCED_MMIO or KVM_UNREGISTER_COALESCED_MMIO:
                (q[0], d[2], d[3]) = (Gpa(random), (uint)random.Next(0x2000), (uint)random.Next(2));
                break;
            case KVM_INTERRUPT:
                d[0] = (uint)random.Next(260);
                break;
            case KVM_X86_SET_MSR_FILTER:
                Unsafe.InitBlock(s, 0, 400);
                d[0] = (uint)random.Next(3);
                for (int i = 0; i < 3; i++)
                    (d[2 + 6 * i], d[3 + 6 * i], d[4 + 6 * i], q[(4 + 6 * i) / 2 + 1]) = ((uint)random.Next(4), (uint)random.Next(2000),
                        (uint)random.Next(0x400), (ulong)s + 4096);
                break;
        }
    }

    private uint Descriptor(Random random) => random.Next(4) switch { 0 => uint.MaxValue, 1 => 9999u, _ => (uint)_eventFd };
}
