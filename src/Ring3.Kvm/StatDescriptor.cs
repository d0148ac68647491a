using Ring3.Abi;

namespace Ring3.Kvm;

/// <summary>One statistic of KVM_GET_STATS_FD: its name and meaning as api.rst defines them, and where its values come from.</summary>
/// <typeparam name="T">What is counted: <see cref="Vm"/> or <see cref="Vcpu"/>.</typeparam>
/// <param name="Name">KVM's name.</param>
/// <param name="Flags">KVM_STATS_TYPE_*, KVM_STATS_UNIT_* and KVM_STATS_BASE_*.</param>
/// <param name="Exponent">The unit is scaled by ten to this power.</param>
/// <param name="Size">Number of values; more than one for histograms.</param>
/// <param name="Read">The value with an index below <paramref name="Size"/>.</param>
public sealed record StatDescriptor<T>(string Name, uint Flags, short Exponent, ushort Size, Func<T, int, ulong> Read)
{
    private const uint Seconds = KvmApi.KVM_STATS_UNIT_SECONDS | KvmApi.KVM_STATS_BASE_POW10;

    internal static StatDescriptor<T> Counter(string name, Func<T, ulong> read) => new(name, KvmApi.KVM_STATS_TYPE_CUMULATIVE, 0, 1, (o, _) => read(o));
    internal static StatDescriptor<T> Instant(string name, Func<T, ulong> read) => new(name, KvmApi.KVM_STATS_TYPE_INSTANT, 0, 1, (o, _) => read(o));
    internal static StatDescriptor<T> Peak(string name, Func<T, ulong> read) => new(name, KvmApi.KVM_STATS_TYPE_PEAK, 0, 1, (o, _) => read(o));
    internal static StatDescriptor<T> Boolean(string name, Func<T, bool> read) =>
        new(name, KvmApi.KVM_STATS_TYPE_INSTANT | KvmApi.KVM_STATS_UNIT_BOOLEAN, 0, 1, (o, _) => read(o) ? 1ul : 0);
    internal static StatDescriptor<T> Nanoseconds(string name, Func<T, ulong> read) =>
        new(name, KvmApi.KVM_STATS_TYPE_CUMULATIVE | Seconds, -9, 1, (o, _) => read(o));
    internal static StatDescriptor<T> LogHistogram(string name, Func<T, LogHistogram> read) =>
        new(name, KvmApi.KVM_STATS_TYPE_LOG_HIST | Seconds, -9, Kvm.LogHistogram.Buckets, (o, i) => read(o)[i]);
}

/// <summary>Counts values by their number of significant bits: bucket 0 has the zeros, bucket n the values from 2^(n-1), the last also all above.
/// One writer.</summary>
internal sealed class LogHistogram
{
    /// <summary>KVM's HALT_POLL_HIST_COUNT.</summary>
    public const int Buckets = 32;

    private readonly ulong[] _counts = new ulong[Buckets];

    public ulong this[int bucket] => Volatile.Read(ref _counts[bucket]);

    public void Add(ulong value) => _counts[Math.Min(64 - System.Numerics.BitOperations.LeadingZeroCount(value), Buckets - 1)]++;
}
