using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>Registration of the system instructions.</summary>
/// <remarks>SAFETY: takes addresses of static methods only.</remarks>
internal static unsafe class SystemHandlers
{
    internal static void Register()
    {
        RegisterSegments();
        RegisterFarPointers();
        RegisterTables();
        RegisterControl();
        RegisterTransfers();
        RegisterMisc();
    }

    private static void RegisterSegments()
    {
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Mov_rm16_Sreg, Code.Mov_r32m16_Sreg, Code.Mov_r64m16_Sreg])
            HandlerTable.Set(code, &SegmentHandlers.MovFromSegment);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Mov_Sreg_rm16, Code.Mov_Sreg_r32m16, Code.Mov_Sreg_r64m16])
            HandlerTable.Set(code, &SegmentHandlers.MovToSegment, true);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Pushw_ES, Code.Pushw_CS, Code.Pushw_SS, Code.Pushw_DS, Code.Pushw_FS, Code.Pushw_GS])
            HandlerTable.Set(code, &SegmentHandlers.Push16);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Pushd_ES, Code.Pushd_CS, Code.Pushd_SS, Code.Pushd_DS, Code.Pushd_FS, Code.Pushd_GS])
            HandlerTable.Set(code, &SegmentHandlers.Push32);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Pushq_FS, Code.Pushq_GS])
            HandlerTable.Set(code, &SegmentHandlers.Push64);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Popw_ES, Code.Popw_SS, Code.Popw_DS, Code.Popw_FS, Code.Popw_GS])
            HandlerTable.Set(code, &SegmentHandlers.Pop16, true);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Popd_ES, Code.Popd_SS, Code.Popd_DS, Code.Popd_FS, Code.Popd_GS])
            HandlerTable.Set(code, &SegmentHandlers.Pop32, true);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Popq_FS, Code.Popq_GS])
            HandlerTable.Set(code, &SegmentHandlers.Pop64, true);
    }

    private static void RegisterFarPointers()
    {
        HandlerTable.Set(Code.Les_r16_m1616, &SegmentHandlers.Les16, true);
        HandlerTable.Set(Code.Les_r32_m1632, &SegmentHandlers.Les32, true);
        HandlerTable.Set(Code.Lds_r16_m1616, &SegmentHandlers.Lds16, true);
        HandlerTable.Set(Code.Lds_r32_m1632, &SegmentHandlers.Lds32, true);
        HandlerTable.Set(Code.Lss_r16_m1616, &SegmentHandlers.Lss16, true);
        HandlerTable.Set(Code.Lss_r32_m1632, &SegmentHandlers.Lss32, true);
        HandlerTable.Set(Code.Lss_r64_m1664, &SegmentHandlers.Lss64, true);
        HandlerTable.Set(Code.Lfs_r16_m1616, &SegmentHandlers.Lfs16, true);
        HandlerTable.Set(Code.Lfs_r32_m1632, &SegmentHandlers.Lfs32, true);
        HandlerTable.Set(Code.Lfs_r64_m1664, &SegmentHandlers.Lfs64, true);
        HandlerTable.Set(Code.Lgs_r16_m1616, &SegmentHandlers.Lgs16, true);
        HandlerTable.Set(Code.Lgs_r32_m1632, &SegmentHandlers.Lgs32, true);
        HandlerTable.Set(Code.Lgs_r64_m1664, &SegmentHandlers.Lgs64, true);
    }

    private static void RegisterTables()
    {
        HandlerTable.Set(Code.Lgdt_m1632_16, &TableHandlers.Lgdt24);
        HandlerTable.Set(Code.Lgdt_m1632, &TableHandlers.Lgdt32);
        HandlerTable.Set(Code.Lgdt_m1664, &TableHandlers.Lgdt64);
        HandlerTable.Set(Code.Lidt_m1632_16, &TableHandlers.Lidt24);
        HandlerTable.Set(Code.Lidt_m1632, &TableHandlers.Lidt32);
        HandlerTable.Set(Code.Lidt_m1664, &TableHandlers.Lidt64);
        HandlerTable.Set(Code.Sgdt_m1632_16, &TableHandlers.Sgdt32);
        HandlerTable.Set(Code.Sgdt_m1632, &TableHandlers.Sgdt32);
        HandlerTable.Set(Code.Sgdt_m1664, &TableHandlers.Sgdt64);
        HandlerTable.Set(Code.Sidt_m1632_16, &TableHandlers.Sidt32);
        HandlerTable.Set(Code.Sidt_m1632, &TableHandlers.Sidt32);
        HandlerTable.Set(Code.Sidt_m1664, &TableHandlers.Sidt64);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Lldt_rm16, Code.Lldt_r32m16, Code.Lldt_r64m16])
            HandlerTable.Set(code, &TableHandlers.Lldt);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Ltr_rm16, Code.Ltr_r32m16, Code.Ltr_r64m16])
            HandlerTable.Set(code, &TableHandlers.Ltr);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Sldt_rm16, Code.Sldt_r32m16, Code.Sldt_r64m16])
            HandlerTable.Set(code, &TableHandlers.Sldt);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Str_rm16, Code.Str_r32m16, Code.Str_r64m16])
            HandlerTable.Set(code, &TableHandlers.Str);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Lar_r16_rm16, Code.Lar_r32_r32m16, Code.Lar_r64_r64m16])
            HandlerTable.Set(code, &TableHandlers.Lar);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Lsl_r16_rm16, Code.Lsl_r32_r32m16, Code.Lsl_r64_r64m16])
            HandlerTable.Set(code, &TableHandlers.Lsl);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Verr_rm16, Code.Verr_r32m16, Code.Verr_r64m16])
            HandlerTable.Set(code, &TableHandlers.Verr);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Verw_rm16, Code.Verw_r32m16, Code.Verw_r64m16])
            HandlerTable.Set(code, &TableHandlers.Verw);
        HandlerTable.Set(Code.Arpl_rm16_r16, &TableHandlers.Arpl);
        HandlerTable.Set(Code.Arpl_r32m16_r32, &TableHandlers.Arpl);
    }

    private static void RegisterControl()
    {
        HandlerTable.Set(Code.Mov_r32_cr, &ControlHandlers.MovFromControl);
        HandlerTable.Set(Code.Mov_r64_cr, &ControlHandlers.MovFromControl);
        HandlerTable.Set(Code.Mov_cr_r32, &ControlHandlers.MovToControl, true);
        HandlerTable.Set(Code.Mov_cr_r64, &ControlHandlers.MovToControl, true);
        HandlerTable.Set(Code.Mov_r32_dr, &ControlHandlers.MovFromDebug);
        HandlerTable.Set(Code.Mov_r64_dr, &ControlHandlers.MovFromDebug);
        HandlerTable.Set(Code.Mov_dr_r32, &ControlHandlers.MovToDebug, true);
        HandlerTable.Set(Code.Mov_dr_r64, &ControlHandlers.MovToDebug, true);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Lmsw_rm16, Code.Lmsw_r32m16, Code.Lmsw_r64m16])
            HandlerTable.Set(code, &ControlHandlers.Lmsw, true);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Smsw_rm16, Code.Smsw_r32m16, Code.Smsw_r64m16])
            HandlerTable.Set(code, &ControlHandlers.Smsw);
        HandlerTable.Set(Code.Clts, &ControlHandlers.Clts, true);
        HandlerTable.Set(Code.Invlpg_m, &ControlHandlers.Invlpg, true);
        HandlerTable.Set(Code.Invpcid_r32_m128, &ControlHandlers.Invpcid, true);
        HandlerTable.Set(Code.Invpcid_r64_m128, &ControlHandlers.Invpcid, true);
        HandlerTable.Set(Code.Xgetbv, &ControlHandlers.Xgetbv);
        HandlerTable.Set(Code.Xsetbv, &ControlHandlers.Xsetbv, true);
        HandlerTable.Set(Code.Rdpkru, &ControlHandlers.Rdpkru);
        HandlerTable.Set(Code.Wrpkru, &ControlHandlers.Wrpkru);
        HandlerTable.Set(Code.Stac, &ControlHandlers.Stac);
        HandlerTable.Set(Code.Clac, &ControlHandlers.Clac);
        HandlerTable.Set(Code.Rdmsr, &ControlUnit.Rdmsr);
        HandlerTable.Set(Code.Wrmsr, &ControlUnit.Wrmsr, true);
        HandlerTable.Set(Code.Swapgs, &FastCalls.Swapgs);
        HandlerTable.Set(Code.Rdfsbase_r32, &FastCalls.Rdfsbase);
        HandlerTable.Set(Code.Rdfsbase_r64, &FastCalls.Rdfsbase);
        HandlerTable.Set(Code.Rdgsbase_r32, &FastCalls.Rdgsbase);
        HandlerTable.Set(Code.Rdgsbase_r64, &FastCalls.Rdgsbase);
        HandlerTable.Set(Code.Wrfsbase_r32, &FastCalls.Wrfsbase);
        HandlerTable.Set(Code.Wrfsbase_r64, &FastCalls.Wrfsbase);
        HandlerTable.Set(Code.Wrgsbase_r32, &FastCalls.Wrgsbase);
        HandlerTable.Set(Code.Wrgsbase_r64, &FastCalls.Wrgsbase);
    }

    private static void RegisterTransfers()
    {
        HandlerTable.Set(Code.Call_ptr1616, &TransferHandlers.CallPtr16, true);
        HandlerTable.Set(Code.Call_ptr1632, &TransferHandlers.CallPtr32, true);
        HandlerTable.Set(Code.Jmp_ptr1616, &TransferHandlers.JmpPtr16, true);
        HandlerTable.Set(Code.Jmp_ptr1632, &TransferHandlers.JmpPtr32, true);
        HandlerTable.Set(Code.Call_m1616, &TransferHandlers.CallM16, true);
        HandlerTable.Set(Code.Call_m1632, &TransferHandlers.CallM32, true);
        HandlerTable.Set(Code.Call_m1664, &TransferHandlers.CallM64, true);
        HandlerTable.Set(Code.Jmp_m1616, &TransferHandlers.JmpM16, true);
        HandlerTable.Set(Code.Jmp_m1632, &TransferHandlers.JmpM32, true);
        HandlerTable.Set(Code.Jmp_m1664, &TransferHandlers.JmpM64, true);
        HandlerTable.Set(Code.Retfw, &TransferHandlers.Retf16, true);
        HandlerTable.Set(Code.Retfd, &TransferHandlers.Retf32, true);
        HandlerTable.Set(Code.Retfq, &TransferHandlers.Retf64, true);
        HandlerTable.Set(Code.Retfw_imm16, &TransferHandlers.Retf16, true);
        HandlerTable.Set(Code.Retfd_imm16, &TransferHandlers.Retf32, true);
        HandlerTable.Set(Code.Retfq_imm16, &TransferHandlers.Retf64, true);
        HandlerTable.Set(Code.Iretw, &TransferHandlers.Iret16, true);
        HandlerTable.Set(Code.Iretd, &TransferHandlers.Iret32, true);
        HandlerTable.Set(Code.Iretq, &TransferHandlers.Iret64, true);
        HandlerTable.Set(Code.Syscall, &FastCalls.Syscall, true);
        HandlerTable.Set(Code.Sysretd, &FastCalls.Sysret32, true);
        HandlerTable.Set(Code.Sysretq, &FastCalls.Sysret64, true);
        HandlerTable.Set(Code.Sysenter, &FastCalls.Sysenter, true);
        HandlerTable.Set(Code.Sysexitd, &FastCalls.Sysexit32, true);
        HandlerTable.Set(Code.Sysexitq, &FastCalls.Sysexit64, true);
        HandlerTable.Set(Code.Int_imm8, &TransferHandlers.Int, true);
        HandlerTable.Set(Code.Int3, &TransferHandlers.Int3, true);
        HandlerTable.Set(Code.Into, &TransferHandlers.Into, true);
        HandlerTable.Set(Code.Int1, &TransferHandlers.Int1, true);
    }

    private static void RegisterMisc()
    {
        HandlerTable.Set(Code.Cpuid, &TransferHandlers.Cpuid, true);
        HandlerTable.Set(Code.Vmcall, &TransferHandlers.Vmcall, true);
        HandlerTable.Set(Code.Vmmcall, &TransferHandlers.Vmmcall, true);
        HandlerTable.Set(Code.Rsm, &TransferHandlers.Rsm, true);
        HandlerTable.Set(Code.Invd, &TransferHandlers.CacheFlush);
        HandlerTable.Set(Code.Wbinvd, &TransferHandlers.CacheFlush);
        HandlerTable.Set(Code.Rdpmc, &TransferHandlers.Rdpmc, true);
        foreach (Code code in (ReadOnlySpan<Code>)[Code.Monitorw, Code.Monitord, Code.Monitorq])
            HandlerTable.Set(code, &TransferHandlers.Monitor);
        HandlerTable.Set(Code.Mwait, &TransferHandlers.Mwait, true);
    }
}
