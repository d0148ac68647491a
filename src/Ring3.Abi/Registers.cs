using System.Runtime.InteropServices;

// SAFETY: register files are fixed arrays of the sizes that api.rst gives.
namespace Ring3.Abi;

/// <summary>KVM_GET_REGS / KVM_SET_REGS.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_regs
{
    public ulong rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags;
}

/// <summary>A segment register with its hidden part.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_segment
{
    public ulong @base;
    public uint limit;
    public ushort selector;
    public byte type, present, dpl, db, s, l, g, avl, unusable, padding;
}

/// <summary>GDTR or IDTR.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_dtable
{
    public ulong @base;
    public ushort limit;
    public unsafe fixed ushort padding[3];
}

/// <summary>KVM_GET_SREGS / KVM_SET_SREGS.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sregs
{
    public kvm_segment cs, ds, es, fs, gs, ss, tr, ldt;
    public kvm_dtable gdt, idt;
    public ulong cr0, cr2, cr3, cr4, cr8, efer, apic_base;
    public unsafe fixed ulong interrupt_bitmap[4];
}

/// <summary>KVM_GET_SREGS2 / KVM_SET_SREGS2.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sregs2
{
    public kvm_segment cs, ds, es, fs, gs, ss, tr, ldt;
    public kvm_dtable gdt, idt;
    public ulong cr0, cr2, cr3, cr4, cr8, efer, apic_base, flags;
    public unsafe fixed ulong pdptrs[4];
}

/// <summary>KVM_GET_FPU / KVM_SET_FPU.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_fpu
{
    public unsafe fixed byte fpr[8 * 16];
    public ushort fcw, fsw;
    public byte ftwx, pad1;
    public ushort last_opcode;
    public ulong last_ip, last_dp;
    public unsafe fixed byte xmm[16 * 16];
    public uint mxcsr, pad2;
}

/// <summary>KVM_GET_XSAVE / KVM_SET_XSAVE: the standard (not compacted) XSAVE format.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_xsave { public unsafe fixed uint region[1024]; }

/// <summary>One extended control register.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_xcr { public uint xcr, reserved; public ulong value; }

/// <summary>KVM_GET_XCRS / KVM_SET_XCRS.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_xcrs
{
    public uint nr_xcrs, flags;
    public xcr_array xcrs;
    public unsafe fixed ulong padding[16];

    [System.Runtime.CompilerServices.InlineArray(16)]
    public struct xcr_array { private kvm_xcr _first; }
}

/// <summary>KVM_GET_DEBUGREGS / KVM_SET_DEBUGREGS.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_debugregs
{
    public unsafe fixed ulong db[4];
    public ulong dr6, dr7, flags;
    public unsafe fixed ulong reserved[9];
}

/// <summary>KVM_GET_VCPU_EVENTS / KVM_SET_VCPU_EVENTS.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_vcpu_events
{
    public exception_t exception;
    public interrupt_t interrupt;
    public nmi_t nmi;
    public uint sipi_vector, flags;
    public smi_t smi;
    public triple_fault_t triple_fault;
    public unsafe fixed byte reserved[26];
    public byte exception_has_payload;
    public ulong exception_payload;

    [StructLayout(LayoutKind.Sequential)]
    public struct exception_t { public byte injected, nr, has_error_code, pending; public uint error_code; }
    [StructLayout(LayoutKind.Sequential)]
    public struct interrupt_t { public byte injected, nr, soft, shadow; }
    [StructLayout(LayoutKind.Sequential)]
    public struct nmi_t { public byte injected, pending, masked, pad; }
    [StructLayout(LayoutKind.Sequential)]
    public struct smi_t { public byte smm, pending, smm_inside_nmi, latched_init; }
    [StructLayout(LayoutKind.Sequential)]
    public struct triple_fault_t { public byte pending; }
}

/// <summary>KVM_GET_MP_STATE / KVM_SET_MP_STATE.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_mp_state { public uint mp_state; }

/// <summary>One model-specific register.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_msr_entry { public uint index, reserved; public ulong data; }

/// <summary>One CPUID leaf.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_cpuid_entry2
{
    public uint function, index, flags, eax, ebx, ecx, edx;
    public unsafe fixed uint padding[3];
}

/// <summary>KVM_SET_GUEST_DEBUG.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_guest_debug
{
    public uint control, pad;
    public kvm_guest_debug_arch arch;
}

[StructLayout(LayoutKind.Sequential)]
public struct kvm_guest_debug_arch { public unsafe fixed ulong debugreg[8]; }

/// <summary>KVM_TRANSLATE.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_translation
{
    public ulong linear_address, physical_address;
    public byte valid, writeable, usermode;
    public unsafe fixed byte pad[5];
}

/// <summary>KVM_X86_SET_MCE.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_x86_mce
{
    public ulong status, addr, misc, mcg_status;
    public byte bank;
    public unsafe fixed byte pad1[7];
    public unsafe fixed ulong pad2[3];
}

/// <summary>KVM_INTERRUPT.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_interrupt { public uint irq; }

/// <summary>Registers shared through kvm_run.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_sync_regs
{
    public kvm_regs regs;
    public kvm_sregs sregs;
    public kvm_vcpu_events events;
}
