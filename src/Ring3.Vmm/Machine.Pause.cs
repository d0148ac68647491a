using Ring3.Abi;
using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

// Standing still: the processors are between two instructions and owe no device an answer, and the devices serve nothing.
public sealed partial class Machine
{
    private readonly RankedLock _pauseLock = new(LockRank.MachinePause);
    private readonly ManualResetEventSlim _goOn = new(true), _allParked = new(false);
    private int _pauses, _parked;
    private volatile bool _pausing;

    /// <summary>Stops the processors, until as many calls of <see cref="Resume"/>. Not for a processor's thread.</summary>
    /// <param name="patienceMs">How long to wait for them. A processor may wait for somebody to take the guest's output.</param>
    /// <returns>False when the machine has ended meanwhile, or not all stand still yet.</returns>
    public bool Pause(int patienceMs = Timeout.Infinite)
    {
        using (_pauseLock.Enter())
        {
            if (_pauses++ == 0)
            {
                _goOn.Reset();
                _pausing = true;
                if (_parked != _vcpus.Length)
                    _allParked.Reset();
                foreach (Vcpu v in _vcpus)
                    v.Kick();
            }
        }
        // The end of the machine comes after both resets, or is seen here.
        return !_stopping && _allParked.Wait(patienceMs) && !_stopping;
    }

    /// <summary>Ends <see cref="Pause"/>.</summary>
    public void Resume()
    {
        using (_pauseLock.Enter())
        {
            if (--_pauses != 0)
                return;
            _pausing = false;
            _goOn.Set();
        }
    }

    /// <summary>A processor's thread waits. SAFETY: kvm_run belongs to this vCPU and lives as long as it.</summary>
    private unsafe void Park(Vcpu vcpu)
    {
        // What the last exit was about is done first: an access of several parts leaves for each of them.
        int r = 0;
        vcpu.KvmRun->immediate_exit = 1;
        while (!_stopping && (r = vcpu.Run()) == 0)
            Serve(vcpu);
        vcpu.KvmRun->immediate_exit = 0;
        if (r != -Errno.EINTR && !_stopping)
        {
            End(MachineEnd.Failure, detail: $"KVM_RUN returned error {-r} at {Where(vcpu)}");
            return;
        }
        using (_pauseLock.Enter())
        {
            if (!_pausing)
                return;
            if (++_parked == _vcpus.Length)
                _allParked.Set();
        }
        while (!_stopping)
        {
            _goOn.Wait();
            using (_pauseLock.Enter())
            {
                if (_pausing)
                    continue;
                _parked--;
                break;
            }
        }
        // The guest's watchdogs need not wonder where the time is.
        _ = vcpu.KvmClockCtrl();
    }
}
