using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Keeps <see cref="CpuState.TlbContext"/> in step with CPL, RFLAGS.AC, control registers and ASID; and the flushes that the owner asks for.</summary>
/// <remarks>SAFETY: the context is computed from fields of the state.</remarks>
internal sealed unsafe partial class PagingUnit
{
    // Control registers that the cached translations were made under.
    private ulong _cachedCr0, _cachedCr4, _cachedEfer;

    /// <summary>CR0, CR4 and EFER bits that change the meaning of paging structures: everything linear is dropped when one changes.</summary>
    private const ulong Cr0Structure = Cr0.PG, Cr4Structure = Cr4.PAE | Cr4.PSE | Cr4.PGE | Cr4.LA57 | Cr4.PCIDE, EferStructure = Efer.NXE | Efer.LMA;
    /// <summary>Bits that only change permissions: level 1 is dropped.</summary>
    private const ulong Cr0Permission = Cr0.WP, Cr4Permission = Cr4.SMEP | Cr4.SMAP | Cr4.PKE;

    /// <summary>Recomputes the level-1 context. Call after CPL, RFLAGS.AC, the ASID or a control register changed.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal void UpdateContext(CpuState* c)
    {
        Tlb.Select(c->Asid, CpuMode.CurrentPcid(c));
        UpdatePrivilege(c);
    }

    /// <summary>Recomputes the level-1 context after CPL or RFLAGS.AC changed, and nothing else.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal void UpdatePrivilege(CpuState* c)
    {
        PrivilegeClass privilege = CpuMode.PrivilegeOf(c, CpuMode.ExplicitAccess(c));
        if (c->LentPages != 0 && (privilege < PrivilegeClass.Supervisor || (c->Rflags & Rflags.AC) == 0))
            Tlb.TakeBack();
        c->CodeContext = c->TlbContext = Tlb.Context(privilege);
        if (privilege < PrivilegeClass.Supervisor)
            return;
        c->CodeContext = Tlb.CodeContext(c->TlbContext);
        // All numbers may just have been dropped.
        c->TlbContext = Tlb.Context(privilege);
    }

    /// <summary>
    /// Drops what the difference between the control registers and those of the cached translations makes invalid, and recomputes the context.
    /// The instructions that change control registers call it, and so does <see cref="EventUnit.RecomputeMode"/>.
    /// </summary>
    internal void ControlsChanged(CpuState* c)
    {
        ulong cr0 = c->Cr0 ^ _cachedCr0, cr4 = c->Cr4 ^ _cachedCr4, efer = c->Efer ^ _cachedEfer;
        Tlb.Select(c->Asid, CpuMode.CurrentPcid(c));
        if ((cr0 & Cr0Structure) != 0 || (cr4 & Cr4Structure) != 0 || (efer & EferStructure) != 0)
            FlushAllPcids(GuestFlush.Controls, true);
        else if ((cr0 & Cr0Permission) != 0 || (cr4 & Cr4Permission) != 0)
            Tlb.DropContexts();
        _cachedCr0 = c->Cr0;
        _cachedCr4 = c->Cr4;
        _cachedEfer = c->Efer;
        if ((cr4 & (Cr4.VME | Cr4.PVI)) != 0)
            Breakpoints.UpdateStep(c);
        UpdateContext(c);
    }

    /// <summary>Rights of protection keys, outside the guest.</summary>
    public uint Pkru
    {
        get => _state->Pkru;
        set => SetPkru(_state, value);
    }

    /// <summary>
    /// WRPKRU and its like. Keys are cached with the pages, and rights apply to what is cached (SPEC: SDM volume 3, "Caching Translation Information"): only
    /// level 1, which holds the outcome, must look again.
    /// </summary>
    internal void SetPkru(CpuState* c, uint value)
    {
        uint changed = c->Pkru ^ value;
        c->Pkru = value;
        if (changed != 0 && (c->Cr4 & Cr4.PKE) != 0 && Tlb.DropKeyed(changed))
            UpdateContext(c);
    }

    /// <summary>Drops all translations of an ASID. Owner thread, outside the guest.</summary>
    public void FlushAsid(uint asid)
    {
        Tlb.FlushAsid(asid);
        UpdateContext(_state);
    }

    /// <summary>
    /// Drops what was derived from guest frames [start, end), in every ASID, and keeps the rest: for a hypervisor that has changed few mappings. Owner thread,
    /// outside the guest.
    /// </summary>
    public void FlushGfns(ulong start, ulong end)
    {
        Tlb.FlushGfns(start, end);
        UpdateContext(_state);
    }

    /// <summary>Drops all translations.</summary>
    public void FlushAll()
    {
        Tlb.FlushAll();
        UpdateContext(_state);
    }

    /// <summary>Drops the translations of the page that holds <paramref name="gva"/> in an ASID.</summary>
    public void FlushGva(uint asid, ulong gva)
    {
        _ = asid; // The page is dropped in every ASID.
        Tlb.FlushPage(gva);
        UpdateContext(_state);
    }
}
