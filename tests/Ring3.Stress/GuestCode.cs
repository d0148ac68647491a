using Iced.Intel;
using Ring3.Tests.Shared;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Stress;

/// <summary>
/// The program of all vCPUs. For ever: map a random window page to a random data page, flush as the architecture demands (INVLPG, MOV CR3 or INVPCID),
/// check that the page's tag is seen, count in the page and in a private counter;
/// check the tag of another window page mapped long ago; now and then change the PCID without a flush, or fill a garbage entry with random bits and
/// read through it.
/// </summary>
/// <remarks>
/// r8 random state; r12 private counters; r13 offset of the cell in data pages; r14 window page table of the current PCID; r15 scratch page; rbp PCID.
/// Scratch page: +0 iterations, +8 expected faults, +16 CR3 by PCID, +48 window table by PCID.
/// The expected page of each window entry is in the entry's own bits 12-51, which the guest alone writes.
/// </remarks>
internal static class GuestCode
{
    public const int TagMismatch = 1, UnexpectedFault = 2;

    /// <summary>Bits of a garbage entry that vary: all flags, a reserved one, and few enough address bits that the nested tables for them stay few.</summary>
    private const ulong Garbage = 1UL << 63 | 1UL << 51 | 7UL << 39 | 15UL << 30 | 0x1f_ffff;

    public static (byte[] Code, ulong FaultHandler) Assemble()
    {
        var a = new Assembler(64);
        Label loop = a.CreateLabel("loop"), cr3 = a.CreateLabel(), invpcid = a.CreateLabel(), flushed = a.CreateLabel(), global = a.CreateLabel(),
            write = a.CreateLabel(), noSwitch = a.CreateLabel(), noGarbage = a.CreateLabel(), bad = a.CreateLabel();
        a.Label(ref loop);
        a.inc(__qword_ptr[r15]);
        GuestRandom.Next(a);
        // rbx window page, rcx data page, rdx its entry, rdi its linear address.
        a.mov(ebx, r8d);
        a.and(ebx, Layout.WindowPages - 1);
        a.mov(rcx, r8);
        a.shr(rcx, 16);
        a.and(ecx, (int)Layout.DataPages - 1);
        a.mov(rdx, rcx);
        a.shl(rdx, 12);
        a.add(rdx, (int)Layout.DataGpa + 3);
        a.mov(rdi, rbx);
        a.shl(rdi, 12);
        a.add(rdi, (int)Layout.Window);
        // The upper half is global and flushed by address; the lower by CR3, INVPCID or address.
        a.cmp(ebx, Layout.WindowPages / 2);
        a.jb(write);
        a.or(edx, 0x100);
        a.mov(__qword_ptr[r14 + rbx * 8], rdx);
        a.invlpg(__byte_ptr[rdi]);
        // A global page is shared by the PCIDs: their tables agree.
        for (int p = 0; p < Layout.Pcids; p++)
        {
            a.mov(rsi, __qword_ptr[r15 + 48 + 8 * p]);
            a.mov(__qword_ptr[rsi + rbx * 8], rdx);
        }
        a.jmp(flushed);
        a.Label(ref write);
        a.mov(__qword_ptr[r14 + rbx * 8], rdx);
        a.mov(rax, r8);
        a.shr(rax, 32);
        a.and(eax, 7);
        a.cmp(eax, 1);
        a.je(cr3);
        a.cmp(eax, 2);
        a.je(invpcid);
        a.cmp(eax, 3);
        a.je(global);
        a.invlpg(__byte_ptr[rdi]);
        a.jmp(flushed);
        a.Label(ref cr3);
        a.mov(rax, __qword_ptr[r15 + rbp * 8 + 16]);
        a.mov(AssemblerRegisters.cr3, rax);
        a.jmp(flushed);
        a.Label(ref invpcid);
        a.mov(__qword_ptr[r15 + 0x100], rbp);
        a.mov(__qword_ptr[r15 + 0x108], rdi);
        a.mov(eax, 1);
        a.invpcid(rax, __xmmword_ptr[r15 + 0x100]);
        a.jmp(flushed);
        a.Label(ref global);
        a.mov(eax, 2);
        a.invpcid(rax, __xmmword_ptr[r15 + 0x100]);
        a.Label(ref flushed);
        a.mov(r9, rcx);
        CheckTag(a, bad);
        a.inc(__qword_ptr[rdi + r13]);
        a.inc(__qword_ptr[r12 + rcx * 8]);
        // Another window page, mapped earlier; also with a vector load, and sometimes written.
        GuestRandom.Next(a);
        a.mov(ebx, r8d);
        a.and(ebx, Layout.WindowPages - 1);
        a.mov(rdi, rbx);
        a.shl(rdi, 12);
        a.add(rdi, (int)Layout.Window);
        a.mov(r9, __qword_ptr[r14 + rbx * 8]);
        a.shr(r9, 12);
        a.sub(r9, (int)(Layout.DataGpa >> 12));
        CheckTag(a, bad);
        a.movups(xmm0, __xmmword_ptr[rdi]);
        a.movq(rax, xmm0);
        a.cmp(rax, rdx);
        a.jne(bad);
        Label noCount = a.CreateLabel();
        a.bt(r8, 40);
        a.jc(noCount);
        a.inc(__qword_ptr[rdi + r13]);
        a.inc(__qword_ptr[r12 + r9 * 8]);
        a.Label(ref noCount);
        // One in 16: another PCID, keeping its translations.
        a.mov(rax, r8);
        a.shr(rax, 44);
        a.test(al, 15);
        a.jne(noSwitch);
        a.mov(ebp, eax);
        a.shr(ebp, 4);
        a.and(ebp, Layout.Pcids - 1);
        a.mov(rax, __qword_ptr[r15 + rbp * 8 + 16]);
        a.bts(rax, 63);
        a.mov(AssemblerRegisters.cr3, rax);
        a.mov(r14, __qword_ptr[r15 + rbp * 8 + 48]);
        a.Label(ref noSwitch);
        // One in 32: garbage.
        a.mov(rax, r8);
        a.shr(rax, 52);
        a.test(al, 31);
        a.jne(noGarbage);
        GuestRandom.Next(a);
        a.mov(ebx, r8d);
        a.and(ebx, Layout.GarbagePages - 1);
        a.mov(rax, Garbage);
        a.and(rax, r8);
        a.mov(__qword_ptr[r14 + rbx * 8 + Layout.WindowPages * 8], rax);
        a.shl(rbx, 12);
        a.add(rbx, (int)Layout.Window + Layout.WindowPages * 4096);
        a.mov(al, __byte_ptr[rbx + 8]);
        a.Label(ref noGarbage);
        a.jmp(loop);

        a.Label(ref bad);
        a.mov(eax, TagMismatch);
        a.@out(0xf4, eax);
        a.jmp(bad);

        Label fault = a.CreateLabel("fault"), unexpected = a.CreateLabel();
        a.Label(ref fault);
        a.mov(rax, cr2);
        a.sub(rax, (int)Layout.Window + Layout.WindowPages * 4096);
        a.cmp(rax, Layout.GarbagePages * 4096);
        a.jae(unexpected);
        a.inc(__qword_ptr[r15 + 8]);
        a.lea(rsp, __qword_ptr[r15 + 0xff0]);
        a.jmp(loop);
        a.Label(ref unexpected);
        a.mov(eax, UnexpectedFault);
        a.@out(0xf4, eax);
        a.jmp(unexpected);

        var stream = new MemoryStream();
        AssemblerResult result = a.Assemble(new StreamCodeWriter(stream), Layout.Code, BlockEncoderOptions.ReturnNewInstructionOffsets);
        return (stream.ToArray(), result.GetLabelRIP(fault));
    }

    /// <summary>The word at rdi must be the tag of data page r9; leaves the tag in rdx.</summary>
    private static void CheckTag(Assembler a, Label bad)
    {
        a.mov(rdx, Layout.Tag);
        a.or(rdx, r9);
        a.cmp(__qword_ptr[rdi], rdx);
        a.jne(bad);
    }
}
