using Ring3.Arch;

namespace Ring3.Cpu.Tests;

/// <summary>
/// What the manual says a linear access does, as a function of values: nothing here shares code or structure with the processor's walk.
/// SPEC: SDM volume 3, chapter "Paging" (figures of entry formats, "Determination of Access Rights", "Protection Keys", "Page-Fault Exceptions",
/// "Accessed and Dirty Flags"),
/// and "EPT Violations" / "EPT Misconfigurations".
/// </summary>
internal static class SysPageWalkSpecification
{
    public enum Kind { Read, Write, Fetch }

    /// <summary>One access under one set of controls. Entries[0] is the topmost entry of the path.</summary>
    public sealed record Case(
        string Mode, bool Wp, bool Smep, bool Smap, bool Nxe, bool Pse, int Cpl, bool Ac, bool Implicit, Kind Access,
        ulong[] Entries, ulong[] TableNested, ulong LeafNested, int MaxPhysical, bool Pages1G, bool Pse36 = true, bool Amd = false,
        bool Pke = false, uint Pkru = 0);

    /// <summary>Expected result: exactly one of Fault (error code), Nested (GPA class), Mmio, or success.</summary>
    public sealed record Expectation(string Result, uint ErrorCode, int NestedAt, bool NestedWrite, ulong[] EntriesAfter, int LeafIndex);

    private sealed record Format(int[] Shifts, string[] ReservedAlways, string[] ReservedIfLarge, bool[] MayBeLarge);

    // Reserved bits as ranges "high:low"; M stands for MAXPHYADDR. Straight from the tables of entry formats.
    private static Format FormatOf(Case c) => c.Mode switch
    {
        "32-bit" => new([22, 12], ["", ""], ["21:21", ""], [c.Pse, false]),
        "PAE" => new([21, 12], ["62:M", "62:M"], ["20:13", ""], [true, false]),
        "4-level" => new([39, 30, 21, 12], ["51:M 7:7", c.Pages1G ? "51:M" : "51:M 7:7", "51:M", "51:M"], ["", "29:13", "20:13", ""],
            [false, c.Pages1G, true, false]),
        _ => new([48, 39, 30, 21, 12], ["51:M 7:7", "51:M 7:7", c.Pages1G ? "51:M" : "51:M 7:7", "51:M", "51:M"], ["", "", "29:13", "20:13", ""],
            [false, false, c.Pages1G, true, false]),
    };

    private static ulong MaskOf(string ranges, int maxPhysical)
    {
        ulong mask = 0;
        foreach (string range in ranges.Split(' ', StringSplitOptions.RemoveEmptyEntries))
        {
            string[] ends = range.Split(':');
            int low = ends[1] == "M" ? maxPhysical : int.Parse(ends[1]);
            for (int bit = low; bit <= int.Parse(ends[0]); bit++)
                mask |= 1UL << bit;
        }
        return mask;
    }

    private static bool Bit(ulong value, int n) => (value & (1UL << n)) != 0;

    public static Expectation Evaluate(Case c)
    {
        Format format = FormatOf(c);
        bool userMode = c.Cpl == 3 && !c.Implicit;
        ulong[] after = (ulong[])c.Entries.Clone();
        uint code = (c.Access == Kind.Write ? 2u : 0) | (userMode ? 4u : 0) | (c.Access == Kind.Fetch && (c.Smep || (c.Mode != "32-bit" && c.Nxe)) ? 16u : 0);

        // The path ends at the first entry that maps a page.
        int leaf = format.Shifts.Length - 1;
        for (int i = 0; i < format.Shifts.Length; i++)
        {
            ulong e = c.Entries[i];
            if (NestedStop(c.TableNested[i], write: false) is { } stop)
                return new(stop, 0, i, false, after, -1);
            if (!Bit(e, 0))
                return new("Fault", code, -1, false, after, -1);
            bool large = format.MayBeLarge[i] && Bit(e, 7);
            ulong reserved = MaskOf(format.ReservedAlways[i], c.MaxPhysical) | (large ? MaskOf(format.ReservedIfLarge[i], c.MaxPhysical) : 0);
            if (c.Amd && format.Shifts[i] >= 39)
                reserved |= 1UL << 8;
            if (c.Mode != "32-bit" && !c.Nxe)
                reserved |= 1UL << 63;
            if (c.Mode == "32-bit" && large)
                reserved |= MaskOf("20:13", 0) & ~(c.Pse36 ? MaskOf($"{Math.Min(c.MaxPhysical, 40) - 32 + 12}:13", 0) : 0);
            if ((e & reserved) != 0)
                return new("Fault", code | 1 | 8, -1, false, after, -1);
            if (large)
            {
                leaf = i;
                break;
            }
        }

        ulong[] path = c.Entries[..(leaf + 1)];
        bool keyForbids = KeyForbids(c, path, userMode);
        if (!RightsAllow(c, path, userMode) || keyForbids)
            return new("Fault", code | 1 | (keyForbids ? 32u : 0), -1, false, after, -1);

        // Flags are set on the whole path, from the top.
        for (int i = 0; i <= leaf; i++)
        {
            ulong wanted = path[i] | 0x20 | (i == leaf && c.Access == Kind.Write ? 0x40UL : 0);
            if (wanted == path[i])
                continue;
            if (NestedStop(c.TableNested[i], write: true) is { } stop && stop != "Mmio")
                return new(stop, 0, i, true, after, leaf);
            after[i] = wanted;
        }
        ulong n = c.LeafNested;
        if ((n & 7) == 6)
            return new("Mmio", 0, -1, false, after, leaf);
        bool nestedAllows = c.Access switch { Kind.Read => Bit(n, 0), Kind.Write => Bit(n, 1), _ => Bit(n, 2) };
        return new(nestedAllows ? "Ok" : "Nested", 0, nestedAllows ? -1 : 99, c.Access == Kind.Write, after, leaf);
    }

    private static string? NestedStop(ulong nested, bool write)
    {
        if ((nested & 7) == 6)
            return "Mmio";
        return Bit(nested, write ? 1 : 0) ? null : "Nested";
    }

    /// <summary>
    /// "Protection Keys" and bit 5 of "Page-Fault Exceptions", which have the same conditions: all of them, whatever else forbids the access.
    /// </summary>
    private static bool KeyForbids(Case c, ulong[] path, bool userMode)
    {
        bool longMode = c.Mode is "4-level" or "5-level";
        if (!longMode || !c.Pke || c.Access == Kind.Fetch || !Array.TrueForAll(path, e => Bit(e, 2)))
            return false;
        int key = (int)(path[^1] >> 59 & 15);
        bool accessDisable = Bit(c.Pkru, 2 * key), writeDisable = Bit(c.Pkru, 2 * key + 1);
        return accessDisable || writeDisable && c.Access == Kind.Write && (c.Wp || userMode);
    }

    /// <summary>"Determination of Access Rights", sentence by sentence.</summary>
    private static bool RightsAllow(Case c, ulong[] path, bool userMode)
    {
        bool everyU = Array.TrueForAll(path, e => Bit(e, 2));
        bool everyRw = Array.TrueForAll(path, e => Bit(e, 1));
        bool anyXd = c.Mode != "32-bit" && c.Nxe && Array.Exists(path, e => Bit(e, 63));
        bool userAddress = everyU;
        if (!userMode)
        {
            bool smapForbids = userAddress && c.Smap && (c.Implicit || !c.Ac);
            return c.Access switch
            {
                Kind.Read => !smapForbids,
                Kind.Write => !smapForbids && (!c.Wp || everyRw),
                _ => userAddress ? !c.Smep && !anyXd : !anyXd,
            };
        }
        if (!userAddress)
            return false;
        return c.Access switch { Kind.Read => true, Kind.Write => everyRw, _ => !anyXd };
    }
}
