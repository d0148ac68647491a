using Iced.Intel;
using static Iced.Intel.AssemblerRegisters;
using static Ring3.Host.MachineCode;

namespace Ring3.Host;

/// <summary>
/// Machine code of <see cref="UserCopy"/>: accesses whose faults are fixed up. System V calling convention; leaf routines without a stack frame, so that a
/// fix-up is a change of RIP and nothing else.
/// </summary>
/// <remarks>
/// They return 0 in RAX; the fix-up returns 1. None touches a callee-saved register, except CompareExchange16, which keeps RBX in R9 and has a fix-up of its
/// own. Each access of 1, 2, 4 and 8 bytes is one instruction.
/// </remarks>
internal static class AccessorCode
{
    /// <summary>copy(rdi = to, rsi = from, rdx = bytes). Forward order from 512 bytes on; shorter copies may write the end first.</summary>
    internal static byte[] Copy() => Assemble(a =>
    {
        Label under16 = a.CreateLabel(), under8 = a.CreateLabel(), bytes = a.CreateLabel(), @long = a.CreateLabel(), loop = a.CreateLabel(),
            test = a.CreateLabel(), done = a.CreateLabel();
        a.cmp(rdx, 16);
        a.jb(under16);
        a.cmp(rdx, 512);
        a.jae(@long);
        // The last 16 bytes are loaded before anything is stored, so the loop may stop short of them.
        a.movdqu(xmm1, __[rsi + rdx - 16]);
        a.lea(rcx, __[rdx - 16]);
        a.xor(eax, eax);
        a.jmp(test);
        a.Label(ref loop);
        a.movdqu(xmm0, __[rsi + rax]);
        a.movdqu(__[rdi + rax], xmm0);
        a.add(rax, 16);
        a.Label(ref test);
        a.cmp(rax, rcx);
        a.jb(loop);
        a.movdqu(__[rdi + rdx - 16], xmm1);
        Succeed(a);
        a.Label(ref under16);
        a.cmp(edx, 8);
        a.jb(under8);
        a.mov(rax, __[rsi]);
        a.mov(rcx, __[rsi + rdx - 8]);
        a.mov(__[rdi], rax);
        a.mov(__[rdi + rdx - 8], rcx);
        Succeed(a);
        a.Label(ref under8);
        a.xor(eax, eax);
        a.Label(ref bytes);
        a.cmp(eax, edx);
        a.jae(done);
        a.movzx(ecx, __byte_ptr[rsi + rax]);
        a.mov(__[rdi + rax], cl);
        a.inc(eax);
        a.jmp(bytes);
        a.Label(ref @long);
        a.mov(rcx, rdx);
        a.rep.movsb();
        a.Label(ref done);
        Succeed(a);
    });

    /// <summary>fill(rdi = to, esi = value, rdx = bytes).</summary>
    internal static byte[] Fill() => Assemble(a =>
    {
        a.mov(eax, esi);
        a.mov(rcx, rdx);
        a.rep.stosb();
        Succeed(a);
    });

    /// <summary>load(rdi = from, rsi = to): one access to <paramref name="size"/> bytes.</summary>
    internal static byte[] Load(int size) => Assemble(a =>
    {
        switch (size)
        {
            case 1:
                a.movzx(eax, __byte_ptr[rdi]);
                a.mov(__[rsi], al);
                break;
            case 2:
                a.movzx(eax, __word_ptr[rdi]);
                a.mov(__[rsi], ax);
                break;
            case 4:
                a.mov(eax, __[rdi]);
                a.mov(__[rsi], eax);
                break;
            default:
                a.mov(rax, __[rdi]);
                a.mov(__[rsi], rax);
                break;
        }
        Succeed(a);
    });

    /// <summary>store(rdi = to, rsi = value): one access to <paramref name="size"/> bytes.</summary>
    internal static byte[] Store(int size) => Assemble(a =>
    {
        switch (size)
        {
            case 1: a.mov(__[rdi], sil); break;
            case 2: a.mov(__[rdi], si); break;
            case 4: a.mov(__[rdi], esi); break;
            default: a.mov(__[rdi], rsi); break;
        }
        Succeed(a);
    });

    /// <summary>
    /// move(rdi = to, rsi = from, rdx = elements), forward or backward as REP MOVS does it, whatever the overlap. Returns the elements not moved; a fault
    /// continues at <see cref="Moved()"/>'s code.
    /// </summary>
    internal static byte[] Move(int size, bool backward) => Assemble(a =>
    {
        a.mov(rcx, rdx);
        if (backward)
            a.std();
        switch (size)
        {
            case 1: a.rep.movsb(); break;
            case 2: a.rep.movsw(); break;
            case 4: a.rep.movsd(); break;
            default: a.rep.movsq(); break;
        }
        Moved(a);
    });

    /// <summary>The end of <see cref="Move"/>: RCX has what is left, and the direction flag is clear again.</summary>
    internal static byte[] Moved() => Assemble(Moved);

    private static void Moved(Assembler a)
    {
        a.cld();
        a.mov(rax, rcx);
        a.ret();
    }

    /// <summary>touch(rdi = address): a write that changes nothing, atomic.</summary>
    internal static byte[] Touch() => Assemble(a =>
    {
        a.@lock.or(__byte_ptr[rdi], 0);
        Succeed(a);
    });

    /// <summary>compareExchange(rdi = address, rsi = value, rdx = pointer to the comparand, which receives the value found), of <paramref name="size"/>
    /// bytes.</summary>
    internal static byte[] CompareExchange(int size) => Assemble(a =>
    {
        switch (size)
        {
            case 1:
                a.movzx(eax, __byte_ptr[rdx]);
                a.@lock.cmpxchg(__[rdi], sil);
                a.mov(__[rdx], al);
                break;
            case 4:
                a.mov(eax, __[rdx]);
                a.@lock.cmpxchg(__[rdi], esi);
                a.mov(__[rdx], eax);
                break;
            default:
                a.mov(rax, __[rdx]);
                a.@lock.cmpxchg(__[rdi], rsi);
                a.mov(__[rdx], rax);
                break;
        }
        Succeed(a);
    });

    /// <summary>As <see cref="CompareExchange"/> for 16 bytes at a multiple of 16; rsi points to the value.</summary>
    internal static byte[] CompareExchange16() => Assemble(a =>
    {
        a.mov(r9, rbx);
        a.mov(r8, rdx);
        a.mov(rbx, __[rsi]);
        a.mov(rcx, __[rsi + 8]);
        a.mov(rax, __[rdx]);
        a.mov(rdx, __[rdx + 8]);
        a.@lock.cmpxchg16b(__[rdi]);
        a.mov(__[r8], rax);
        a.mov(__[r8 + 8], rdx);
        a.mov(rbx, r9);
        Succeed(a);
    });

    /// <summary>Where a fault inside <see cref="CompareExchange16"/> continues.</summary>
    internal static byte[] Failed16() => Assemble(a =>
    {
        a.mov(rbx, r9);
        Fail(a);
    });

    /// <summary>Where a fault inside every other accessor continues.</summary>
    internal static byte[] Failed() => Assemble(Fail);

    private static void Succeed(Assembler a)
    {
        a.xor(eax, eax);
        a.ret();
    }

    private static void Fail(Assembler a)
    {
        a.mov(eax, 1);
        a.ret();
    }
}
