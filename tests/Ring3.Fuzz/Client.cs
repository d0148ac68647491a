using Ring3.Abi;
using Ring3.Kvm;
using static Ring3.Abi.KvmApi;

namespace Ring3.Fuzz;

/// <summary>A client whose devices answer at random.</summary>
/// <remarks>SAFETY: kvm_run and its data page live as long as the vCPU; an exit's size times count fits the page.</remarks>
internal static unsafe class Client
{
    private const int MaxExits = 400;

    /// <summary>Runs until the guest ends, is kicked, or has left too often. Returns how it ended.</summary>
    public static string Run(Vcpu vcpu, Random random)
    {
        kvm_run* run = vcpu.KvmRun;
        for (int i = 0; i < MaxExits; i++)
        {
            int result = vcpu.Run();
            if (result == -Errno.EINTR)
                return "kicked";
            if (result != 0)
                return $"error {result}";
            switch (run->exit_reason)
            {
                case KVM_EXIT_IO:
                    if (run->io.direction == KVM_EXIT_IO_IN)
                        random.NextBytes(new Span<byte>((byte*)run + run->io.data_offset, (int)(run->io.size * run->io.count)));
                    break;
                case KVM_EXIT_MMIO:
                    if (run->mmio.is_write == 0)
                        random.NextBytes(new Span<byte>(run->mmio.data, 8));
                    break;
                case KVM_EXIT_HLT: return "halt";
                case KVM_EXIT_SHUTDOWN: return "shutdown";
                case KVM_EXIT_INTERNAL_ERROR: return $"internal error {run->@internal.suberror}";
                default: return $"exit {run->exit_reason}";
            }
        }
        return "exits";
    }
}
