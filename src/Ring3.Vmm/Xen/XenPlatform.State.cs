using Ring3.Abi;
using Ring3.Host;
using Ring3.Kvm;
using Ring3.Sync;
using static Ring3.Abi.KvmApi;

// SAFETY: the special pages and the grant table are mapped from the constructor to Dispose; both spans lie in them.
namespace Ring3.Vmm;

// The platform in a snapshot, in two parts: its own tables, before the devices, whose lines they lead on; and what the hypervisor has, after the clocks, by
// which its timers and run states go. No processor runs.
internal sealed partial class XenPlatform
{
    private static readonly ushort[] s_places = [KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR];

    /// <summary>The tables have come back, and the hypervisor does not know of them yet.</summary>
    private bool _restoring;

    // ---- Standing still ----

    private bool _holding;
    private int _raising;
    private readonly WaitQueue _raised = new();
    private uint _heldEdges;
    private kvm_xen_vcpu_attr[]? _heldTimers;

    /// <summary>Nothing sends events until <see cref="Release"/>: what a snapshot has of the queues is what is in the memory that is copied. No processor
    /// runs.</summary>
    public void Hold()
    {
        // PAIRS-WITH: SetGsi. Both sides' locked instructions are full fences: it has seen the flag, or is waited for.
        Interlocked.Exchange(ref _holding, true);
        for (int ticket = _raised.Ticket; Volatile.Read(ref _raising) != 0; ticket = _raised.Ticket)
            _raised.Wait(ticket);
        var timers = new kvm_xen_vcpu_attr[_vcpus.Length];
        for (int i = 0; i < timers.Length; i++)
        {
            timers[i].type = KVM_XEN_VCPU_ATTR_TYPE_TIMER;
            Check(_vcpus[i].XenGetAttr(ref timers[i]), "read a timer");
            kvm_xen_vcpu_attr stopped = timers[i];
            stopped.timer.expires_ns = 0;
            Check(_vcpus[i].XenSetAttr(stopped), "stop a timer");
        }
        _heldTimers = timers;
    }

    /// <summary>The timers go on; what was due, and what devices have raised meanwhile, comes now.</summary>
    public void Release()
    {
        kvm_xen_vcpu_attr[] timers = _heldTimers ?? [];
        _heldTimers = null;
        for (int i = 0; i < timers.Length; i++)
            Check(_vcpus[i].XenSetAttr(timers[i]), "start a timer");
        Interlocked.Exchange(ref _holding, false);
        uint edges = Interlocked.Exchange(ref _heldEdges, 0);
        for (int gsi = 0; gsi < Gsis; gsi++)
        {
            if ((edges >> gsi & 1) == 0)
                continue;
            _ = _vm.IrqLine((uint)gsi, true);
            if (Volatile.Read(ref _levels[gsi]) == 0)
                _ = _vm.IrqLine((uint)gsi, false);
        }
    }

    /// <summary>The platform's own state: ports, PIRQs, parameters, grants, console and store.</summary>
    /// <exception cref="InvalidDataException">No guest can have brought it about.</exception>
    public unsafe void Transfer(StateTransfer state)
    {
        using RankedLock.Scope _ = _lock.Enter();
        _restoring = state.IsLoading;
        state.Section("xen");
        state.Bytes(System.Runtime.InteropServices.MemoryMarshal.AsBytes(_parameters.AsSpan()));
        state.Bytes(new Span<byte>(_special, 2 * PageBytes));
        Store.Transfer(state);
        _sharedGfn = state.Keep(_sharedGfn);
        for (int i = 0; i < _ports.Length; i++)
            TransferPort(state, ref _ports[i]);
        for (int i = 0; i < _pirqs.Length; i++)
            TransferPirq(state, ref _pirqs[i]);
        _grantFrames = state.Keep(_grantFrames);
        Require(_grantFrames is >= 1 and <= MaxGrantFrames, "grant table");
        state.Bytes(new Span<byte>(_grants, (int)_grantFrames * PageBytes));
        state.Bytes(System.Runtime.InteropServices.MemoryMarshal.AsBytes(_grantGfns.AsSpan(0, (int)_grantFrames)));
        if (state.IsLoading)
            CheckTables();
    }

    private static void Require(bool holds, string what)
    {
        if (!holds)
            throw new InvalidDataException($"Xen's {what} cannot be as they are");
    }

    private static void TransferPort(StateTransfer state, ref Port port) => port = new()
    {
        Kind = (PortKind)state.Keep((byte)port.Kind), Vcpu = state.Keep(port.Vcpu), Virq = state.Keep(port.Virq), Priority = state.Keep(port.Priority),
    };

    private static void TransferPirq(StateTransfer state, ref Pirq pirq) =>
        pirq = new() { InUse = state.Keep((byte)(pirq.InUse ? 1 : 0)) != 0, Gsi = state.Keep(pirq.Gsi), Port = state.Keep(pirq.Port) };

    /// <summary>What hypercalls keep true of the tables, and the rest of the platform relies on.</summary>
    private void CheckTables()
    {
        for (uint p = 0; p < _ports.Length; p++)
        {
            ref readonly Port port = ref _ports[p];
            Require(port.Kind <= PortKind.Pirq, "ports");
            Require(port.Kind == PortKind.Free || Find(port.Vcpu) is not null && port.Priority < XenAbi.Fifo.Queues, "ports");
            Require(port.Kind != PortKind.Pirq || port.Virq < PirqCount && _pirqs[port.Virq].Port == p, "ports");
        }
        Require(_ports[0].Kind == PortKind.Free, "ports");
        Require(_ports[_storePort].Kind == PortKind.Interdomain && _ports[_consolePort].Kind == PortKind.Interdomain, "ports");
        for (uint p = 0; p < PirqCount; p++)
        {
            Pirq pirq = _pirqs[p];
            Require(pirq.Port == 0 || pirq.InUse && pirq.Port < _ports.Length && _ports[pirq.Port] is { Kind: PortKind.Pirq } port && port.Virq == p, "PIRQs");
            Require(pirq.Gsi is >= -1 and < Gsis && (!pirq.InUse || pirq.Gsi < 0 || Array.FindIndex(_pirqs, q => q.InUse && q.Gsi == pirq.Gsi) == p), "PIRQs");
        }
    }

    /// <summary>What the client of KVM has told it, and what it has counted. Events that are on their way get into the guest's memory.</summary>
    /// <exception cref="InvalidDataException">It takes something for impossible.</exception>
    public void TransferHypervisor(StateTransfer state)
    {
        using RankedLock.Scope _ = _lock.Enter();
        state.Section("xen hypervisor");
        var timers = new kvm_xen_vcpu_attr[_vcpus.Length];
        for (int i = 0; i < timers.Length; i++)
        {
            if (_heldTimers is { } held)
                timers[i] = state.Keep(held[i]);
            else
                timers[i] = Read(state, _vcpus[i], KVM_XEN_VCPU_ATTR_TYPE_TIMER);
        }
        TransferMachine(state, KVM_XEN_ATTR_TYPE_LONG_MODE);
        TransferMachine(state, KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG);
        TransferMachine(state, KVM_XEN_ATTR_TYPE_UPCALL_VECTOR);
        TransferFifo(state);
        // The guest's pages, before anything sends an event.
        TransferMachine(state, KVM_XEN_ATTR_TYPE_SHARED_INFO);
        foreach (Vcpu vcpu in _vcpus)
            TransferVcpu(state, vcpu);
        state.Bytes(System.Runtime.InteropServices.MemoryMarshal.AsBytes(_levels.AsSpan()));
        if (!state.IsLoading)
            return;
        Connect();
        for (int i = 0; i < timers.Length; i++)
            Require(timers[i].type == KVM_XEN_VCPU_ATTR_TYPE_TIMER && _vcpus[i].XenSetAttr(timers[i]) == 0, "timers");
        _restoring = false;
    }

    private void TransferMachine(StateTransfer state, ushort type)
    {
        var attr = new kvm_xen_hvm_attr { type = type };
        if (!state.IsLoading)
            Require(_vm.XenGetAttr(ref attr) == 0, "attributes");
        state.Value(ref attr);
        if (state.IsLoading)
            Require(attr.type == type && _vm.XenSetAttr(attr) == 0, "attributes");
    }

    private void TransferFifo(StateTransfer state)
    {
        _fifo = state.Keep((byte)(_fifo ? 1 : 0)) != 0;
        int pages = state.Keep(_fifoPages.Count);
        Require(pages is >= 0 and <= (int)XenAbi.Fifo.MaxPages && (_fifo || pages == 0) && (_fifoOffered || !_fifo), "event arrays");
        if (state.IsLoading && _fifo)
            Require(TellFifo(RING3_XEN_FIFO_ON) == 0, "event arrays");
        for (int i = 0; i < pages; i++)
        {
            ulong gfn = state.Keep(state.IsLoading ? 0 : _fifoPages[i]);
            if (!state.IsLoading)
                continue;
            Require(TellFifo(RING3_XEN_FIFO_EXPAND, gfn) == 0, "event arrays");
            _fifoPages.Add(gfn);
        }
    }

    private void TransferVcpu(StateTransfer state, Vcpu vcpu)
    {
        // What the run state has counted, before where the guest has it: registering writes it there.
        TransferVcpu(state, vcpu, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA);
        foreach (ushort place in s_places)
            TransferVcpu(state, vcpu, place);
        TransferVcpu(state, vcpu, KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR);
        if (_fifo)
        {
            TransferVcpu(state, vcpu, RING3_XEN_VCPU_ATTR_TYPE_FIFO_CONTROL);
            TransferVcpu(state, vcpu, RING3_XEN_VCPU_ATTR_TYPE_FIFO_TAILS);
        }
        if (state.IsLoading)
            NoteStop(vcpu);
    }

    private static void TransferVcpu(StateTransfer state, Vcpu vcpu, ushort type)
    {
        kvm_xen_vcpu_attr attr = Read(state, vcpu, type);
        if (state.IsLoading)
            Require(vcpu.XenSetAttr(attr) == 0, "attributes of processors");
    }

    /// <summary>The processor's attribute on its way into a snapshot, or the one that comes out.</summary>
    private static kvm_xen_vcpu_attr Read(StateTransfer state, Vcpu vcpu, ushort type)
    {
        var attr = new kvm_xen_vcpu_attr { type = type };
        if (!state.IsLoading && vcpu.XenGetAttr(ref attr) is var error and not 0)
        {
            // The guest has registered none.
            Require(error == -Errno.ENOENT && type == KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, "attributes of processors");
            attr.gpa = KVM_XEN_INVALID_GPA;
        }
        state.Value(ref attr);
        Require(attr.type == type, "attributes of processors");
        return attr;
    }

    /// <summary>As KVM_KVMCLOCK_CTRL does for kvmclock's page: the guest's watchdogs are not to count the time that it did not run.</summary>
    private void NoteStop(Vcpu vcpu)
    {
        const ulong FlagsAt = 29;
        var info = new kvm_xen_vcpu_attr { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO };
        if (vcpu.XenGetAttr(ref info) != 0 || info.gpa == KVM_XEN_INVALID_GPA)
            return;
        ulong flags = info.gpa + XenAbi.VcpuInfo.Time + FlagsAt;
        if (_vm.Memory.TryRead(flags, out byte old))
            _ = _vm.Memory.Write(flags, [(byte)(old | KvmPara.PVCLOCK_GUEST_STOPPED)]);
    }

    /// <summary>The tables' ports, PIRQs and grants, told as the guest's hypercalls have told them.</summary>
    private unsafe void Connect()
    {
        for (int frame = 0; frame < _grantFrames; frame++)
            if (_grantGfns[frame] is var gfn and not 0)
            {
                _grantGfns[frame] = 0;
                Require(MapGrantFrame((ulong)frame, gfn) == 0, "grant table");
            }
        for (uint p = 1; p < _ports.Length; p++)
            if (_ports[p].Kind == PortKind.Ipi)
                Require(BindInKernel(p, 0) == 0, "ports");
        for (uint p = 0; p < PirqCount; p++)
            if (_pirqs[p].Port != 0)
                Route(p);
    }
}
