using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>A condition of a system call's argument: its bits under the mask have this value.</summary>
public readonly record struct ArgumentIs(int Argument, ulong Mask, ulong Value)
{
    /// <summary>An argument that the kernel takes as 32 bits: a descriptor, a command, flags.</summary>
    public static ArgumentIs Int(int argument, uint value) => new(argument, uint.MaxValue, value);
}

/// <summary>
/// Which system calls the process may make: a seccomp filter. What is not allowed fails with EPERM and nothing else happens; a call of another ABI (32-bit,
/// x32), which no part of the process makes, ends it.
/// </summary>
/// <remarks>
/// EPERM, and not the end of the process: the runtime and the C library ask the system for things that they can do without, and do. SPEC: seccomp(2), struct
/// seccomp_data; the program is classic BPF. SAFETY: the kernel copies the program while the call lasts, for which the array is pinned.
/// </remarks>
public sealed class SystemCallFilter
{
    private const int Number = 0, Architecture = 4, Arguments = 16;
    private const ushort LoadWord = 0x20, JumpEqual = 0x15, JumpAtLeast = 0x35, And = 0x54, Return = 0x06;
    private const uint X86_64 = 0xc000003e, FirstOfX32 = 0x4000_0000;
    private const uint KillProcess = 0x8000_0000, Error = 0x0005_0000, Allowed = 0x7fff_0000;
    private const int EPERM = 1;

    /// <summary>What is allowed by number: whenever one of the lists holds. Sorted, so that a program does not depend on the order of the calls here.</summary>
    private readonly SortedDictionary<int, List<ArgumentIs[]>> _rules = [];
    private readonly SortedDictionary<int, int> _errors = [];

    /// <summary>Allows calls whatever their arguments are.</summary>
    public void Allow(params ReadOnlySpan<SystemCall> calls)
    {
        foreach (SystemCall call in calls)
            AllowWhen(call);
    }

    /// <summary>Allows a call whose arguments fulfil all of these; added again, one list or the other.</summary>
    public void AllowWhen(SystemCall call, params ArgumentIs[] all)
    {
        if (!_rules.TryGetValue((int)call, out List<ArgumentIs[]>? lists))
            _rules.Add((int)call, lists = []);
        lists.Add(all);
    }

    /// <summary>What no rule names is allowed, instead of failing with EPERM.</summary>
    public bool AllowsOthers { get; init; }

    /// <summary>A call fails with another error than EPERM; with 0 it is not made and seems to succeed.</summary>
    public void Fail(SystemCall call, int error) => _errors.Add((int)call, error);

    /// <summary>The program, an instruction a word: code, two distances of a jump, operand (struct sock_filter).</summary>
    public ulong[] Program()
    {
        var program = new List<ulong>
        {
            Instruction(LoadWord, Architecture), Instruction(JumpEqual, X86_64, whenTrue: 1), Instruction(Return, KillProcess), Instruction(LoadWord, Number),
            Instruction(JumpAtLeast, FirstOfX32, whenFalse: 1), Instruction(Return, KillProcess),
        };
        foreach ((int number, List<ArgumentIs[]> lists) in _rules)
        {
            List<ulong> rule = Rule(lists);
            program.Add(Instruction(JumpEqual, (uint)number, whenFalse: rule.Count));
            program.AddRange(rule);
        }
        foreach ((int number, int error) in _errors)
        {
            program.Add(Instruction(JumpEqual, (uint)number, whenFalse: 1));
            program.Add(Instruction(Return, Error | (uint)error));
        }
        program.Add(Instruction(Return, AllowsOthers ? Allowed : Error | EPERM));
        return [.. program];
    }

    /// <summary>What is done with one number: it ends in a return.</summary>
    private static List<ulong> Rule(List<ArgumentIs[]> lists)
    {
        if (lists.Any(l => l.Length == 0))
            return [Instruction(Return, Allowed)];
        var rule = new List<ulong>();
        foreach (ArgumentIs[] list in lists)
        {
            List<(ulong Load, ulong Mask, uint Value)> halves = [.. list.SelectMany(Halves)];
            int left = halves.Count * 3 + 1;
            foreach ((ulong load, ulong mask, uint value) in halves)
            {
                left -= 3;
                rule.AddRange(load, mask, Instruction(JumpEqual, value, whenFalse: left));
            }
            rule.Add(Instruction(Return, Allowed));
        }
        rule.Add(Instruction(Return, Error | EPERM));
        return rule;
    }

    /// <summary>The program has words of 32 bits: a condition is one, or two.</summary>
    private static IEnumerable<(ulong Load, ulong Mask, uint Value)> Halves(ArgumentIs condition)
    {
        for (int half = 0; half < 2; half++)
        {
            (uint mask, uint value) = ((uint)(condition.Mask >> 32 * half), (uint)(condition.Value >> 32 * half));
            if (mask != 0)
                yield return (Instruction(LoadWord, (uint)(Arguments + 8 * condition.Argument + 4 * half)), Instruction(And, mask), value);
        }
    }

    private static ulong Instruction(ushort code, uint operand, int whenTrue = 0, int whenFalse = 0) =>
        code | (ulong)checked((byte)whenTrue) << 16 | (ulong)checked((byte)whenFalse) << 24 | (ulong)operand << 32;

    /// <summary>
    /// Confines all threads of the process, those to come and what it executes, for good. None of them gains a privilege any more, by set-user-ID programs
    /// for instance. 0, -errno, or the number of a thread that has a filter which this process has not installed.
    /// </summary>
    /// <remarks>With SPEC_ALLOW kernels before 5.16 do not take the filter as a wish to run all of the process without speculative stores: what there is to
    /// read by them is this process's own.</remarks>
    public int Install() => Install(wholeProcess: true);

    /// <summary>Confines the calling thread alone, and what it starts. 0 or -errno.</summary>
    public int InstallForThread() => Install(wholeProcess: false);

    private unsafe int Install(bool wholeProcess)
    {
        const int SetModeFilter = 1, SpecAllow = 4;
        int threadSync = wholeProcess ? 1 : 0;
        ulong[] program = Program();
        if (Libc.syscall(157 /* prctl */, 38 /* PR_SET_NO_NEW_PRIVS */, 1, 0, 0, 0, 0) != 0)
            return -Marshal.GetLastPInvokeError();
        fixed (ulong* p = program)
        {
            // struct sock_fprog { unsigned short len; struct sock_filter *filter; }
            nint* list = stackalloc nint[2] { program.Length, (nint)p };
            nint r = Libc.syscall(317 /* seccomp */, SetModeFilter, threadSync | SpecAllow, (nint)list, 0, 0, 0);
            return r >= 0 ? (int)r : -Marshal.GetLastPInvokeError();
        }
    }
}
