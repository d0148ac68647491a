using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

/// <summary>Multiprocessor state, with KVM's values.</summary>
internal enum MpState : uint
{
    Runnable = KVM_MP_STATE_RUNNABLE,
    /// <summary>An application processor before its first INIT.</summary>
    Uninitialized = KVM_MP_STATE_UNINITIALIZED,
    /// <summary>INIT has been taken; waiting for SIPI.</summary>
    InitReceived = KVM_MP_STATE_INIT_RECEIVED,
    /// <summary>HLT executed, waiting for an interrupt.</summary>
    Halted = KVM_MP_STATE_HALTED,
    /// <summary>Waiting as after HLT, for a client that holds the processor until its reset (SEV-ES). Only the client sets it.</summary>
    ApResetHold = KVM_MP_STATE_AP_RESET_HOLD,
}
