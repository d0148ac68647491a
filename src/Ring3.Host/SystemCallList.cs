using System.Runtime.InteropServices;
using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Host;

/// <summary>
/// System calls that are made one after the other by machine code, so that neither a garbage collection nor another managed thread can come between them. An
/// entry whose result is not the expected one skips the next entries; each keeps its result.
/// </summary>
/// <remarks>SAFETY: entries are bounds-checked; the calls themselves are the caller's responsibility, who keeps their pointers valid.</remarks>
internal sealed class SystemCallList : IDisposable
{
    internal const long Mmap = 9, Mprotect = 10, Pread = 17, Pwrite = 18, Madvise = 28;
    /// <summary>Not a call: result = word at A1 and A2.</summary>
    internal const long Mask = -1;

    /// <summary>One call. The layout is in <see cref="RunList"/>.</summary>
    [StructLayout(LayoutKind.Sequential, Size = 80)]
    internal struct Entry
    {
        public long Number, A1, A2, A3, A4, A5, A6, Result, Expected, Skip;
    }

    private static readonly ExecutableMemory s_code = new(4096);
    private static readonly unsafe delegate* unmanaged<Entry*, Entry*, void> s_run = (delegate* unmanaged<Entry*, Entry*, void>)s_code.Add(RunList());

    /// <summary>run(rdi = first entry, rsi = end).</summary>
    private static byte[] RunList() => MachineCode.Assemble(a =>
    {
        const int Number = 0, A1 = 8, A2 = 16, A3 = 24, A4 = 32, A5 = 40, A6 = 48, Result = 56, Expected = 64, Skip = 72, Size = 80;
        Label next = a.CreateLabel(), mask = a.CreateLabel(), result = a.CreateLabel(), ok = a.CreateLabel(), done = a.CreateLabel();
        a.push(rbx);
        a.push(rbp);
        a.mov(rbx, rdi);
        a.mov(rbp, rsi);
        a.Label(ref next);
        a.cmp(rbx, rbp);
        a.jae(done);
        a.mov(rax, __[rbx + Number]);
        a.mov(rdi, __[rbx + A1]);
        a.mov(rsi, __[rbx + A2]);
        a.test(rax, rax);
        a.js(mask);
        a.mov(rdx, __[rbx + A3]);
        a.mov(r10, __[rbx + A4]);
        a.mov(r8, __[rbx + A5]);
        a.mov(r9, __[rbx + A6]);
        a.syscall();
        a.jmp(result);
        a.Label(ref mask);
        a.mov(rax, __[rdi]);
        a.and(rax, rsi);
        a.Label(ref result);
        a.mov(__[rbx + Result], rax);
        a.cmp(rax, __[rbx + Expected]);
        a.je(ok);
        a.imul(rax, __qword_ptr[rbx + Skip], Size);
        a.add(rbx, rax);
        a.Label(ref ok);
        a.add(rbx, Size);
        a.jmp(next);
        a.Label(ref done);
        a.pop(rbp);
        a.pop(rbx);
        a.ret();
    });

    private readonly unsafe Entry* _entries;
    private readonly int _capacity;

    internal unsafe SystemCallList(int capacity)
    {
        _capacity = capacity;
        _entries = (Entry*)NativeMemory.Alloc((nuint)capacity, (nuint)sizeof(Entry));
    }

    internal int Count { get; private set; }

    internal unsafe ref Entry this[int index] => ref _entries[index];

    internal void Clear() => Count = 0;

    /// <summary>Appends a call and returns its index.</summary>
    internal unsafe int Add(long number, long a1, long a2, long a3, long a4 = 0, long a5 = 0, long a6 = 0, long expected = 0, long skip = 0)
    {
        if (Count == _capacity)
            throw new InvalidOperationException("list of system calls is full");
        _entries[Count] = new Entry { Number = number, A1 = a1, A2 = a2, A3 = a3, A4 = a4, A5 = a5, A6 = a6, Result = long.MinValue, Expected = expected,
            Skip = skip };
        return Count++;
    }

    /// <summary>Makes the calls. Results of skipped entries stay <see cref="long.MinValue"/>.</summary>
    internal unsafe void Run() => s_run(_entries, _entries + Count);

    internal unsafe bool Succeeded(int index) => _entries[index].Result == _entries[index].Expected;

    public unsafe void Dispose() => NativeMemory.Free(_entries);
}
