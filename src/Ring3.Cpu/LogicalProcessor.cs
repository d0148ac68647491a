using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// One software x86-64 logical processor: state, TLB, and the loop that runs guest code. It offers what VMX and SVM offer: <see cref="Enter"/> with a state, an
/// ASID and a nested root;
/// come back with an <see cref="ExitReason"/>. All members are for the owning thread, except <see cref="RequestExit"/>.
/// </summary>
/// <remarks>
/// SAFETY: State and Exit are unmanaged blocks that live as long as the processor; guest memory is touched only at host addresses that the nested tables map.
/// </remarks>
public sealed unsafe partial class LogicalProcessor
{
    /// <summary>The machine whose decoded code this processor shares.</summary>
    public readonly Machine Machine;
    /// <summary>The machine's, here for handlers: they ask it on their rare paths only.</summary>
    internal readonly ProcessorModel Model;
    /// <summary>The model's, for the end of every x87 instruction.</summary>
    internal readonly bool NotesEveryX87;
    /// <summary>The process-wide table of vector forms, here so that the fast path needs no static field.</summary>
    internal readonly VectorForm* Forms;
    /// <summary>Architectural state and controls.</summary>
    public readonly CpuState* State;
    /// <summary>Details of the last exit.</summary>
    public readonly ExitInfo* Exit;

    /// <summary>What kind of processor it is for its guest.</summary>
    internal readonly Identity Identity;
    /// <summary>Linear address to host page.</summary>
    internal readonly PagingUnit Paging;
    /// <summary>Reads and writes of guest memory.</summary>
    internal readonly GuestAccess Access;
    /// <summary>Exceptions, interrupts and every other way through descriptors.</summary>
    internal readonly EventUnit Events;
    /// <summary>Control registers and MSRs.</summary>
    internal readonly ControlUnit Control;
    /// <summary>Input that the owner is asked for.</summary>
    internal readonly PortInput Input;
    /// <summary>RIP to block.</summary>
    internal readonly CodeFetch Fetch;
    internal readonly Interpreter Interpreter;
    internal readonly Translator Translator;
    internal readonly RandomSource Random = new();
    /// <summary>Host memory that is gone.</summary>
    internal readonly MemoryGuard Guard = new();

    internal LogicalProcessor(Machine machine)
    {
        Machine = machine;
        Model = machine.Model;
        NotesEveryX87 = Model.NotesEveryX87;
        Identity = new Identity(Model);
        CpuState.CheckLayout();
        State = ProcessorMemory.Map();
        Exit = (ExitInfo*)HostMemory.Map((nuint)sizeof(ExitInfo));
        State->Exit = Exit;
        Paging = new PagingUnit(State, Identity, machine.Blocks);
        Access = new GuestAccess(Paging, Model);
        Events = new EventUnit(State, Identity, Paging, Access, Guard);
        Control = new ControlUnit(State, Identity, Paging, Events);
        Input = new PortInput(State, Paging, Access, Guard);
        Forms = VectorForms.At(0);
        Reset(false);
        Fetch = new CodeFetch(State, Paging, machine.Blocks, Model);
        Interpreter = new Interpreter(this, Fetch);
        Translator = new Translator(this, Fetch);
        Observer = ExecutionObserver.Make?.Invoke(this);
    }

    /// <summary>Null unless a test looks on.</summary>
    internal ExecutionObserver? Observer
    {
        get;
        set => Paging.Observer = field = value;
    }

    /// <summary>With a deadline: the count of instructions at which an entry first looks at the clock.</summary>
    internal ulong FirstTimerLook;

    /// <summary>Releases the processor's memory. It never runs again.</summary>
    internal void Free()
    {
        Paging.Free();
        Fetch.Free();
        Access.Free();
        Translator.Free();
        HostMemory.Unmap(Exit, (nuint)sizeof(ExitInfo));
        ProcessorMemory.Unmap(State);
    }

    /// <summary>Makes the processor leave the guest at the next block end, or refuse to enter. Any thread.</summary>
    public void RequestExit() => Volatile.Write(ref State->ExitRequest, 1);
}
