using System.Runtime.InteropServices;

// SAFETY: these are images of guest memory; their padding is sized by the paravirtual ABI, and nothing here follows a pointer.
namespace Ring3.Abi;

/// <summary>The paravirtual interface between KVM and its guest. SPEC: asm/kvm_para.h, linux/kvm_para.h, asm/pvclock-abi.h.</summary>
public static class KvmPara
{
    public const uint KVM_CPUID_SIGNATURE = 0x4000_0000, KVM_CPUID_FEATURES = 0x4000_0001;
    public const int KVM_FEATURE_CLOCKSOURCE = 0, KVM_FEATURE_NOP_IO_DELAY = 1, KVM_FEATURE_CLOCKSOURCE2 = 3, KVM_FEATURE_ASYNC_PF = 4,
        KVM_FEATURE_STEAL_TIME = 5, KVM_FEATURE_PV_EOI = 6, KVM_FEATURE_PV_UNHALT = 7;
    public const int KVM_FEATURE_PV_TLB_FLUSH = 9, KVM_FEATURE_ASYNC_PF_VMEXIT = 10, KVM_FEATURE_PV_SEND_IPI = 11, KVM_FEATURE_POLL_CONTROL = 12,
        KVM_FEATURE_PV_SCHED_YIELD = 13, KVM_FEATURE_ASYNC_PF_INT = 14;
    public const int KVM_FEATURE_MSI_EXT_DEST_ID = 15, KVM_FEATURE_HC_MAP_GPA_RANGE = 16, KVM_FEATURE_MIGRATION_CONTROL = 17,
        KVM_FEATURE_CLOCKSOURCE_STABLE_BIT = 24;
    public const int KVM_HINTS_REALTIME = 0;

    public const uint KVM_HC_VAPIC_POLL_IRQ = 1, KVM_HC_KICK_CPU = 5, KVM_HC_CLOCK_PAIRING = 9, KVM_HC_SEND_IPI = 10, KVM_HC_SCHED_YIELD = 11,
        KVM_HC_MAP_GPA_RANGE = 12;
    public const int KVM_EPERM = 1, KVM_E2BIG = 7, KVM_EFAULT = 14, KVM_EINVAL = 22, KVM_EOPNOTSUPP = 95, KVM_ENOSYS = 1000;
    public const ulong KVM_CLOCK_PAIRING_WALLCLOCK = 0;

    public const ulong KVM_MSR_ENABLED = 1;
    public const byte KVM_VCPU_PREEMPTED = 1, KVM_VCPU_FLUSH_TLB = 2;
    public const ulong KVM_STEAL_RESERVED_MASK = 0x3e, KVM_STEAL_VALID_BITS = ~0x3fUL;
    public const byte PVCLOCK_TSC_STABLE_BIT = 1, PVCLOCK_GUEST_STOPPED = 2;
    /// <summary>Flag in the PV EOI word.</summary>
    public const byte KVM_PV_EOI_MASK = 1;
}

/// <summary>Steal time area of a vCPU in guest memory.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_steal_time
{
    public ulong steal;
    public uint version, flags;
    public byte preempted;
    public unsafe fixed byte u8_pad[3];
    public unsafe fixed uint pad[11];
}

/// <summary>Clock page of a vCPU in guest memory: ns = system_time + ((tsc - tsc_timestamp) shifted by tsc_shift) * tsc_to_system_mul >> 32.</summary>
[StructLayout(LayoutKind.Sequential, Pack = 4)]
public struct pvclock_vcpu_time_info
{
    public uint version, pad0;
    public ulong tsc_timestamp, system_time;
    public uint tsc_to_system_mul;
    public sbyte tsc_shift;
    public byte flags;
    public ushort pad;
}

/// <summary>Wall-clock time at which the guest's system time was zero.</summary>
[StructLayout(LayoutKind.Sequential, Pack = 4)]
public struct pvclock_wall_clock { public uint version, sec, nsec; }

/// <summary>Answer of KVM_HC_CLOCK_PAIRING.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_clock_pairing
{
    public long sec, nsec;
    public ulong tsc;
    public uint flags;
    public unsafe fixed uint pad[9];
}
