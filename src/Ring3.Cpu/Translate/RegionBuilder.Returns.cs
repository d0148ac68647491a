using Iced.Intel;

namespace Ring3.Cpu;

// Calls and returns of the host's for those of the guest: see ReturnFrame.
// SAFETY: RSP moves by whole frames between the two ends that the state has, and the host's RET is reached only when the newest frame is a call's.
internal sealed unsafe partial class RegionBuilder
{
    /// <summary>Returns to other than the newest frame's place.</summary>
    private readonly List<(int Jump, int Jump2, Site Site)> _otherReturns = [];
    /// <summary>Calls without room for another frame.</summary>
    private readonly List<(int Jump, int Back)> _fullFrames = [];

    /// <summary>Calls whose target the translated jumps do not have: the two jumps, the site, and the continuation.</summary>
    private readonly List<(int Jump, int Jump2, int Site, int Continuation)> _missedCalls = [];
    /// <summary>The trace that the last continuation jumps to, if that has not been emitted, and the end of the jump.</summary>
    private (Trace? Trace, int End) _expected;

    /// <summary>In place of an offset to return to.</summary>
    private const int NoCall = -1;

    /// <summary>
    /// Notes on the host's stack that a callee is expected to return to an offset of the page. The host's call and the continuation must follow, and nothing
    /// that could lead elsewhere between. False: it is no call, or one that is not noted.
    /// </summary>
    private bool NoteReturn(int back)
    {
        const Register Linear = HostRegisters.Spare;
        if ((uint)back >= 4096)
            return false;
        _a.WithState(HostOperation.Compare, Register.RSP, StateLayout.LastReturn);
        _fullFrames.Add((_a.Jump(NotAbove), _a.Position));
        _a.Load(Linear, StateLayout.CodeBase);
        _a.Lea(Linear, Linear, back, _word);
        _a.Add(Instruction.Create(Code.Push_rm64, RegionAssembler.State(StateLayout.JumpContext)));
        _a.Add(Instruction.Create(Code.Push_r64, Linear));
        return true;
    }

    /// <summary>
    /// Where the host's RET comes to. The address register has the return's target, in the page that the call was in; the flags are in the state, wherever
    /// they are at the call.
    /// </summary>
    private void EmitContinuation(int back, Trace? head)
    {
        const Register Target = HostRegisters.Address;
        _a.Lea(Register.RSP, Register.RSP, ReturnFrame.Bytes - ReturnFrame.LinearOffset);
        _a.And64(Target, -4096);
        _a.Store(StateLayout.CodeBase, Target);
        // There is no poll on the way, because each call polls.
        if (head is null)
        {
            LinkTo(back, true);
            return;
        }
        // The region may have become stale since the call.
        int site = AddSite(new Site { Kind = SiteKind.Poll, PageOffset = back, Block = head.Head });
        _a.CompareHereWithZero(0);
        _stubs.Add((_a.Jump(NotEqual), site));
        _resumes.Add((site, _a.Position));
        int jump = _a.Jump();
        if (head.Body >= 0)
        {
            _a.Bind(jump, head.Body);
            return;
        }
        head.Pending.Add(jump);
        _expected = (head, jump);
    }

    /// <summary>The trace that can follow here, in place of a jump to it.</summary>
    private Trace? Expected()
    {
        if (_expected.Trace is not { Body: < 0 } next || _expected.End != _a.Position)
            return null;
        next.Pending.Remove(_a.Position);
        _a.TakeJumpBack();
        return next;
    }

    /// <summary>Returns to the linear address in <see cref="HostRegisters.Address"/>. The flags are in the state.</summary>
    private void EmitReturn(in Site site)
    {
        const Register Target = HostRegisters.Address, Other = HostRegisters.Entry;
        EndShadow();
        _a.Add(Instruction.Create(Code.Cmp_r64_rm64, Target, HostAssembler.Memory(Register.RSP, ReturnFrame.LinearOffset)));
        int elsewhere = _a.Jump(NotEqual);
        _a.Load(Other, StateLayout.JumpContext);
        _a.Add(Instruction.Create(Code.Cmp_r64_rm64, Other, HostAssembler.Memory(Register.RSP, ReturnFrame.ContextOffset)));
        _otherReturns.Add((elsewhere, _a.Jump(NotEqual), site));
        _a.Add(Instruction.Create(Code.Retnq));
    }

    /// <summary>What is out of line of calls and returns.</summary>
    private void EmitOtherReturns()
    {
        foreach ((int jump, int jump2, Site site) in _otherReturns)
        {
            _a.Bind(jump);
            _a.Bind(jump2);
            _a.WithState(HostOperation.Compare, Register.RSP, StateLayout.FirstReturn);
            int none = _a.Jump(Equal);
            _a.Lea(Register.RSP, Register.RSP, ReturnFrame.Bytes);
            _a.Bind(none);
            EmitJump(site);
        }
        foreach ((int jump, int back) in _fullFrames)
        {
            _a.Bind(jump);
            _a.Load(Register.RSP, StateLayout.FirstReturn);
            _a.Bind(_a.Jump(), back);
        }
        foreach ((int jump, int jump2, int site, int continuation) in _missedCalls)
        {
            _a.Bind(jump);
            _a.Bind(jump2);
            LoadSite(site);
            _a.Add(Instruction.Create(Code.Call_rm64, RegionAssembler.State(StateLayout.SlowRoutine)));
            _a.Bind(_a.Jump(), continuation);
        }
    }
}
