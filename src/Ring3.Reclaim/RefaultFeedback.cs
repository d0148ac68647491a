namespace Ring3.Reclaim;

/// <summary>
/// Learns from pages that came back soon after their eviction. A page's tier is how often that has happened, up to 3. When the pages of a tier come back more
/// often than those of tier 0, they are passed over once at eviction and stay a generation longer.
/// Counts are halved at each aging pass, so that the judgement follows the guest.
/// </summary>
/// <remarks>BENIGN-RACE: shadows and counts are updated without atomics; a lost update is a slightly different judgement.</remarks>
internal sealed class RefaultFeedback
{
    public const int Tiers = 4;
    private const int TierMask = Tiers - 1, TierBits = 2, SequenceMask = 31;

    private readonly long[] _evicted = new long[Tiers], _refaulted = new long[Tiers], _protected = new long[Tiers];

    /// <summary>Notes the generation from which a page is evicted.</summary>
    public void Evicted(ref byte shadow, long youngest)
    {
        int tier = shadow & TierMask;
        _evicted[tier]++;
        shadow = (byte)(tier | (int)((youngest & SequenceMask) + 1) << TierBits);
    }

    /// <summary>A page has become resident. Refault: it was evicted before; recent: so lately that keeping it would have been better.</summary>
    public (bool Refault, bool Recent) BecameResident(ref byte shadow, long youngest)
    {
        int at = shadow >> TierBits, tier = shadow & TierMask;
        if (at == 0)
            return (false, false);
        bool recent = ((youngest - (at - 1)) & SequenceMask) < Generations.Most;
        if (recent)
            _refaulted[tier]++;
        shadow = (byte)(recent ? Math.Min(tier + 1, Tiers - 1) : tier);
        return (true, recent);
    }

    /// <summary>Whether a page that could be evicted is passed over this time.</summary>
    public bool Protects(byte shadow)
    {
        int tier = shadow & TierMask;
        if (tier == 0 || _refaulted[tier] * (_evicted[0] + 1) <= _refaulted[0] * (_evicted[tier] + _protected[tier] + 1))
            return false;
        _protected[tier]++;
        return true;
    }

    public void Decay()
    {
        for (int t = 0; t < Tiers; t++)
        {
            _evicted[t] >>= 1;
            _refaulted[t] >>= 1;
            _protected[t] >>= 1;
        }
    }
}
