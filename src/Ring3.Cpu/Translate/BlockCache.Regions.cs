using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>The regions of translated code: publication, links, and their end. SAFETY: see the type.</summary>
internal sealed unsafe partial class BlockCache
{
    /// <summary>Executions of a block by the interpreter after an attempt to translate it has failed.</summary>
    internal const int Retry = 1 << 20;

    /// <summary>Executions before a block is translated; <see cref="int.MaxValue"/>: never. For blocks decoded afterwards.</summary>
    public int TranslationThreshold { get; set; } = Engine.Threshold;

    /// <summary>
    /// Told of every region that is made, guest and host code side by side, and of every block that is refused, by the thread that translates.
    /// </summary>
    public Action<string>? RegionObserver { get; set; } = Engine.RegionLog;

    // Statistics. Decode lock.
    /// <summary>Regions made, their bytes, and regions dropped because bytes of their blocks were written.</summary>
    public ulong RegionsMade, RegionBytes, RegionsDropped;

    internal bool Translates => TranslationThreshold != int.MaxValue;

    /// <summary>
    /// Places a region that was built in the epoch <paramref name="epoch"/> and makes its heads enter it. False: its blocks changed meanwhile, or there is no
    /// room.
    /// </summary>
    internal bool PublishRegion(RegionBuilder builder, long epoch)
    {
        using (_decodeLock.Enter())
        {
            if (_epoch != epoch)
                return false;
            foreach (nint b in builder.Sources)
                if (((Block*)b)->Stale != 0)
                    return false;
            RegionArena? arena = _arena.Regions ??= RegionArena.Take();
            if (arena is null)
                return false;
            if (!arena.HasRoom(builder.CodeBytes, builder.DataBytes))
            {
                // Everything is dropped and becomes hot again.
                DropAll();
                return false;
            }
            Region* region = builder.Place(arena);
            RegionsMade++;
            RegionBytes += (ulong)region->CodeBytes;
            PerfMap.Add(region);
            for (int i = 0; i < region->BlockCount; i++)
            {
                Block* b = region->Blocks[i];
                if (b->Code == 0)
                    Volatile.Write(ref b->Code, region->Code + builder.EntryOf(i));
                b->Heat = 0;
            }
            for (int i = 0; i < region->SourceCount; i++)
            {
                // A block that is in several regions leads to the latest; the others hang behind it.
                RegionUse* use = (RegionUse*)arena.Allocate(sizeof(RegionUse));
                *use = new RegionUse { Region = region, Next = region->Sources[i]->Uses };
                region->Sources[i]->Uses = use;
            }
            return true;
        }
    }

    /// <summary>
    /// What has been translated so far, of which <paramref name="translated"/> instructions were executed, with the regions in which processors were seen most
    /// often. Any thread.
    /// </summary>
    public TranslationSummary Summarize(int hottest, ulong translated)
    {
        List<HotRegion> hot = [];
        using (_decodeLock.Enter())
        {
            foreach (BlockArena a in _arenas)
                for (Region* r = a.Regions is { } regions ? regions.First : null; r != null; r = r->Next)
                    if (r->Stale == 0)
                        hot.Add(new HotRegion(r->Address, r->Instructions, r->CodeBytes, r->Samples));
            return new TranslationSummary(RegionsMade, RegionsDropped, RegionBytes, translated, [.. hot.OrderByDescending(r => r.Samples).Take(hottest)]);
        }
    }

    /// <summary>Makes a branch go to a block's translation directly.</summary>
    internal void Link(Site* site, Block* target)
    {
        using (_decodeLock.Enter())
        {
            Region* region = target->Uses != null ? RegionOf(target) : null;
            // Two processors come here from one site: it is in one region's chain, once.
            if (region == null || site->Region->Stale != 0 || site->Target != RegionRoutines.Slow)
                return;
            site->NextIncoming = region->Incoming;
            region->Incoming = site;
            Volatile.Write(ref site->Target, target->Code + (site->Onward ? Region.EntryBytes : 0));
        }
    }

    /// <summary>The region that a block's code lies in. Decode lock.</summary>
    private static Region* RegionOf(Block* b)
    {
        for (RegionUse* u = b->Uses; u != null; u = u->Next)
            if (u->Region->Stale == 0 && b->Code >= u->Region->Code && b->Code < u->Region->Code + u->Region->CodeBytes)
                return u->Region;
        return null;
    }

    /// <summary>Whether the bytes of all blocks of a region are still what was translated.</summary>
    internal bool Verify(Region* region)
    {
        ulong stamp = EntryStamp;
        for (int i = 0; i < region->SourceCount; i++)
            if (!Verify(region->Sources[i], stamp))
            {
                InvalidateBlock(region->Sources[i]);
                return false;
            }
        Volatile.Write(ref region->VerifiedAt, stamp);
        return region->Stale == 0;
    }

    /// <summary>A block is no longer what it was: its regions are left and not entered again. Decode lock.</summary>
    private void DropRegions(Block* b)
    {
        for (RegionUse* u = b->Uses; u != null; u = u->Next)
            DropRegion(u->Region);
        b->Uses = null;
    }

    private void DropRegion(Region* region)
    {
        if (region->Stale != 0)
            return;
        RegionsDropped++;
        Volatile.Write(ref region->Stale, 1);
        Volatile.Write(ref *region->StaleInCode, 1);
        for (int i = 0; i < region->BlockCount; i++)
        {
            Block* b = region->Blocks[i];
            if (b->Code >= region->Code && b->Code < region->Code + region->CodeBytes)
            {
                b->Code = 0;
                b->Heat = TranslationThreshold;
            }
        }
        for (Site* s = region->Incoming; s != null; s = s->NextIncoming)
            Volatile.Write(ref s->Target, RegionRoutines.Slow);
        region->Incoming = null;
    }
}
