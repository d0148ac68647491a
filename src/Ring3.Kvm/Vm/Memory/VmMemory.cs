using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Host;
using Ring3.Memory;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

/// <summary>The memory of a VM: slots, the nested page tables on them, dirty logs and rings, private memory.</summary>
internal sealed class VmMemory
{
    private readonly VmCore _core;
    private NxRecovery? _nxRecovery;

    public VmMemory(VmCore core)
    {
        _core = core;
        VmOptions options = core.Options;
        bool isProtected = options.Type == KVM_X86_SW_PROTECTED_VM;
        Slots = new MemorySlots { CodeWriteSink = new CodeSink(core.Machine), AllowPrivateMemory = isProtected, DirtyTracking = options.DirtyTracking };
        Guest = new GuestMemory(Slots);
        Host = new MmuHost(core.Vcpus, core.Stats);
        TlbJournal? journal = options.CheckTlb ? new TlbJournal() : null;
        Mmu = new TdpMmu(Slots, Host, core.Work)
        {
            ZapPolicy = options.ZapPolicy,
            Journal = journal,
            SlotZapAll = !isProtected,
            EagerSplit = options.EagerPageSplit,
            NxHugePages = options.NxHugePages,
            AccessedBits = options.AccessedBits,
        };
        if (journal is not null)
            TlbReference = new TlbJudge(core.Health, Slots, journal);
    }

    public MemorySlots Slots { get; }

    /// <summary>Guest memory by guest-physical address.</summary>
    public GuestMemory Guest { get; }
    public TdpMmu Mmu { get; }
    public MmuHost Host { get; }

    /// <summary>What the processors of a checked VM ask; null: off.</summary>
    public TlbReference? TlbReference { get; }

    // ---- Slots ----

    /// <summary>KVM_SET_USER_MEMORY_REGION. See <see cref="Vm.SetUserMemoryRegion(uint, uint, ulong, ulong, ulong)"/>.</summary>
    public int SetRegion(uint slot, uint flags, ulong gpa, ulong size, ulong hva) =>
        _core.Health.IsDead ? -Errno.EIO : Slots.SetRegion(slot, flags, gpa, size, hva);

    /// <summary>KVM_SET_USER_MEMORY_REGION2: 0, -EINVAL, -EEXIST, -EIO.</summary>
    public int SetRegion(in kvm_userspace_memory_region2 region, GuestMemfd? memory) => _core.Health.IsDead ? -Errno.EIO : Slots.SetRegion(region, memory);

    /// <summary>KVM_CREATE_GUEST_MEMFD: 0, -EINVAL, or the host's errno.</summary>
    public int CreateGuestMemfd(in kvm_create_guest_memfd args, out GuestMemfd? memory)
    {
        memory = null;
        return args.flags != 0 ? -Errno.EINVAL : GuestMemfd.Create(Slots, args.size, out memory);
    }

    // ---- Dirty rings ----

    /// <summary>Bytes of each vCPU's dirty ring (KVM_CAP_DIRTY_LOG_RING); 0: pages are logged in bitmaps.</summary>
    public int DirtyRingBytes { get; private set; }

    /// <summary>KVM_RESET_DIRTY_RINGS: number of entries taken back, or -EINVAL without rings.</summary>
    public int ResetDirtyRings()
    {
        if (DirtyRingBytes == 0)
            return -Errno.EINVAL;
        var rings = new List<DirtyRing>();
        foreach (Vcpu v in _core.Vcpus.All)
            rings.Add(v.DirtyRing!);
        return Mmu.ResetDirtyRings(CollectionsMarshal.AsSpan(rings));
    }

    // ---- Capabilities ----

    /// <summary>What KVM_CHECK_EXTENSION answers differently for this VM than for the system; null: no difference.</summary>
    public int? CheckExtension(int capability) => capability switch
    {
        KVM_CAP_GUEST_MEMFD => Slots.AllowPrivateMemory ? 1 : 0,
        KVM_CAP_MEMORY_ATTRIBUTES => (int)Slots.SupportedAttributes,
        KVM_CAP_MULTI_ADDRESS_SPACE when Slots.AllowPrivateMemory => 1,
        _ => null,
    };

    /// <summary>KVM_CAP_DIRTY_LOG_RING: 0, -E2BIG, -EINVAL for another size or after the first vCPU.</summary>
    public int EnableDirtyRing(ulong bytes)
    {
        ulong entry = (ulong)Unsafe.SizeOf<kvm_dirty_gfn>();
        if (bytes == 0 || !ulong.IsPow2(bytes) || bytes < DirtyRing.ReservedEntries * entry || bytes < Page.Size)
            return -Errno.EINVAL;
        if (bytes > DirtyRing.MaxEntries * entry)
            return -Errno.E2BIG;
        using (_core.Shaping.Enter())
        {
            if (DirtyRingBytes != 0 || _core.Vcpus.Count != 0)
                return -Errno.EINVAL;
            DirtyRingBytes = (int)bytes;
            Slots.UseDirtyRings = true;
        }
        return 0;
    }

    /// <summary>KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: 0 or -EINVAL.</summary>
    public int SetManualDirtyLogProtect(ulong flags)
    {
        if ((flags & ~(ulong)(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET)) != 0 || flags == KVM_DIRTY_LOG_INITIALLY_SET)
            return -Errno.EINVAL;
        Slots.ManualDirtyLogProtect = (uint)flags;
        return 0;
    }

    // ---- NX huge pages ----

    /// <summary>KVM_CAP_VM_DISABLE_NX_HUGE_PAGES: 0, -EPERM, -EINVAL.</summary>
    /// <remarks>KVM: the permission comes first, as without the mitigation a guest could stop its host.</remarks>
    public int DisableNxHugePages(ulong argument)
    {
        if (!Privileges.MayReboot)
            return -Errno.EPERM;
        using (_core.Shaping.Enter())
        {
            if (argument != 0 || _core.Vcpus.Count != 0)
                return -Errno.EINVAL;
            Mmu.NxHugePages = false;
        }
        return 0;
    }

    /// <summary>Before the first vCPU, with the lock held.</summary>
    public void VcpuComes()
    {
        VmOptions o = _core.Options;
        if (_nxRecovery is null && Mmu.NxHugePages && o.NxHugePagesRecoveryRatio != 0)
            _nxRecovery = new NxRecovery(Mmu, _core.Work, _core.Health, o.NxHugePagesRecoveryRatio, o.NxHugePagesRecoveryPeriodMs);
    }

    // ---- The end ----

    /// <summary>Nothing begins by itself any more.</summary>
    public void StopRecovery() => _nxRecovery?.Dispose();

    /// <summary>Decoded code follows what the accessors write.</summary>
    /// <remarks>SAFETY: the machine looks the address up and does not follow it.</remarks>
    private sealed class CodeSink(Machine machine) : ICodeWriteSink
    {
        public unsafe void CodeWritten(nint hva, nuint length) => machine.CodeWritten((byte*)hva, length);
    }
}
