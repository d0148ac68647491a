using System.Buffers.Binary;
using System.Text;
using Ring3.Host;

// SAFETY: the page lives as long as the platform that owns it; every index is masked to its ring.
namespace Ring3.Vmm;

/// <summary>
/// A small xenstore for one guest: a tree of strings, watches, transactions that always succeed (there is one client). SPEC: Xen's docs/misc/xenstore.txt and
/// io/xs_wire.h. Its owner serialises.
/// </summary>
internal sealed class XenStore
{
    private const int RingBytes = 1024, MaxPayload = 4096, HeaderBytes = 16, MaxNodes = 4096, MaxWatches = 256;
    /// <summary>Answers that wait: less than one, and what a request that changes something tells each watch.</summary>
    private const int MaxBacklog = MaxPayload + (MaxWatches + 1) * (HeaderBytes + 3 * MaxPayload);
    private const string Home = "/local/domain/1/";

    private enum Op : uint
    {
        Control, Directory, Read, GetPerms, Watch, Unwatch, TransactionStart, TransactionEnd, Introduce, Release, GetDomainPath, Write, Mkdir, Rm, SetPerms,
        WatchEvent, Error, IsDomainIntroduced, Resume,
        SetTarget, ResetWatches = SetTarget + 2, DirectoryPart,
    }

    private readonly unsafe byte* _page;
    private readonly SortedDictionary<string, byte[]> _nodes = new(StringComparer.Ordinal);
    private readonly List<(string Path, string Token)> _watches = [];
    private readonly byte[] _request = new byte[HeaderBytes + MaxPayload];
    private readonly Queue<byte> _responses = new();
    private int _have;
    private uint _transaction;

    public unsafe XenStore(byte* page, int vcpus, ulong ramBytes)
    {
        _page = page;
        Set("/vm", "");
        Set(Home + "name", "ring3");
        Set(Home + "domid", "1");
        Set(Home + "vm", "/vm/1");
        Set(Home + "memory/static-max", (ramBytes >> 10).ToString());
        Set(Home + "device", "");
        Set(Home + "control/shutdown", "");
        for (int i = 0; i < vcpus; i++)
            Set($"{Home}cpu/{i}/availability", "online");
    }

    /// <summary>Everything but the ring, whose page the platform has.</summary>
    /// <exception cref="InvalidDataException">It cannot be what a store had.</exception>
    public void Transfer(StateTransfer state)
    {
        state.Section("xenstore");
        var nodes = new KeyValuePair<string, byte[]>[Count(state.Keep(_nodes.Count), MaxNodes)];
        if (!state.IsLoading)
            _nodes.CopyTo(nodes, 0);
        for (int i = 0; i < nodes.Length; i++)
            nodes[i] = new(Words(state, nodes[i].Key), Block(state, nodes[i].Value, MaxPayload));
        var watches = new (string Path, string Token)[Count(state.Keep(_watches.Count), MaxWatches)];
        if (!state.IsLoading)
            _watches.CopyTo(watches);
        for (int i = 0; i < watches.Length; i++)
            watches[i] = (Words(state, watches[i].Path), Words(state, watches[i].Token));
        state.Bytes(_request);
        _have = Count(state.Keep(_have), _request.Length);
        byte[] responses = Block(state, [.. _responses], MaxBacklog);
        _transaction = state.Keep(_transaction);
        if (!state.IsLoading)
            return;
        if (_have > HeaderBytes && _have > HeaderBytes + (int)Length)
            throw new InvalidDataException("xenstore has more than one request");
        _nodes.Clear();
        foreach ((string path, byte[] value) in nodes)
            _nodes[path] = value;
        _watches.Clear();
        _watches.AddRange(watches);
        _responses.Clear();
        foreach (byte b in responses)
            _responses.Enqueue(b);
    }

    private static int Count(int n, int most) => (uint)n <= (uint)most ? n : throw new InvalidDataException("xenstore has too much");

    private static byte[] Block(StateTransfer state, byte[]? own, int most)
    {
        byte[] read = state.Block(own);
        Count(read.Length, most);
        return state.IsLoading ? read : own!;
    }

    private static string Words(StateTransfer state, string? own)
    {
        string words = state.Text(own ?? "");
        Count(words.Length, Home.Length + MaxPayload);
        return words;
    }

    private unsafe uint* Index(int i) => (uint*)(_page + 2 * RingBytes) + i;

    /// <summary>Serves what the guest has put into the ring. True if the guest is to be told.</summary>
    public bool Serve()
    {
        bool progress = false;
        while (true)
        {
            // A guest that leaves its answers lying gets no more of them.
            bool took = _responses.Count < MaxPayload && Take();
            if (_have >= HeaderBytes && _have >= HeaderBytes + (int)Length)
            {
                Handle();
                _have = 0;
                took = true;
            }
            bool gave = Give();
            progress |= took | gave;
            if (!took && !gave)
                return progress;
        }
    }

    private uint Length => Math.Min(BinaryPrimitives.ReadUInt32LittleEndian(_request.AsSpan(12)), MaxPayload);

    /// <summary>Moves request bytes from the ring, up to the end of one message.</summary>
    private unsafe bool Take()
    {
        uint consumed = *Index(0), produced = Volatile.Read(ref *Index(1));
        uint available = Math.Min(produced - consumed, RingBytes);
        int want = _have < HeaderBytes ? HeaderBytes - _have : HeaderBytes + (int)Length - _have;
        int n = (int)Math.Min(available, (uint)want);
        for (int i = 0; i < n; i++)
            _request[_have++] = _page[(consumed + (uint)i) & (RingBytes - 1)];
        Volatile.Write(ref *Index(0), consumed + (uint)n);
        return n != 0;
    }

    /// <summary>Moves answers into the ring as far as they fit.</summary>
    private unsafe bool Give()
    {
        uint consumed = Volatile.Read(ref *Index(2)), produced = *Index(3);
        uint used = produced - consumed;
        int n = used >= RingBytes ? 0 : Math.Min(RingBytes - (int)used, _responses.Count);
        for (int i = 0; i < n; i++)
            _page[RingBytes + ((produced + (uint)i) & (RingBytes - 1))] = _responses.Dequeue();
        Volatile.Write(ref *Index(3), produced + (uint)n);
        return n != 0;
    }

    private void Reply(Op type, uint request, uint transaction, ReadOnlySpan<byte> data)
    {
        Span<byte> header = stackalloc byte[HeaderBytes];
        BinaryPrimitives.WriteUInt32LittleEndian(header, (uint)type);
        BinaryPrimitives.WriteUInt32LittleEndian(header[4..], request);
        BinaryPrimitives.WriteUInt32LittleEndian(header[8..], transaction);
        BinaryPrimitives.WriteUInt32LittleEndian(header[12..], (uint)data.Length);
        foreach (byte b in header)
            _responses.Enqueue(b);
        foreach (byte b in data)
            _responses.Enqueue(b);
    }

    private void Handle()
    {
        var type = (Op)BinaryPrimitives.ReadUInt32LittleEndian(_request);
        uint id = BinaryPrimitives.ReadUInt32LittleEndian(_request.AsSpan(4)), transaction = BinaryPrimitives.ReadUInt32LittleEndian(_request.AsSpan(8));
        ReadOnlySpan<byte> payload = _request.AsSpan(HeaderBytes, (int)Length);
        int zero = payload.IndexOf((byte)0);
        string first = Encoding.ASCII.GetString(zero < 0 ? payload : payload[..zero]);
        ReadOnlySpan<byte> rest = zero < 0 ? [] : payload[(zero + 1)..];
        string path = first.StartsWith('/') || first.StartsWith('@') ? first : Home + first;
        var fire = new List<string>();
        byte[]? answer = Answer(type, path, first, rest, fire, out string error);
        if (answer is null)
            Reply(Op.Error, id, transaction, Encoding.ASCII.GetBytes(error + "\0"));
        else
            Reply(type, id, transaction, answer);
        foreach (string changed in fire)
            Fire(changed);
        if (type == Op.Watch && answer is not null)
            Event(first, Encoding.ASCII.GetString(rest).TrimEnd('\0'));
    }

    private static readonly byte[] s_ok = "OK\0"u8.ToArray();

    private byte[]? Answer(Op type, string path, string first, ReadOnlySpan<byte> rest, List<string> fire, out string error)
    {
        error = "ENOENT";
        switch (type)
        {
            case Op.Read:
                return _nodes.TryGetValue(path, out byte[]? value) ? value : null;
            case Op.Directory:
                return Exists(path) ? Encoding.ASCII.GetBytes(string.Concat(Children(path).Select(c => c + "\0"))) : null;
            case Op.GetPerms:
                return Exists(path) ? "n1\0"u8.ToArray() : null;
            case Op.SetPerms:
                return Exists(path) ? s_ok : null;
            case Op.Write or Op.Mkdir:
                error = "ENOSPC";
                if (_nodes.Count >= MaxNodes || path.Length > 3072)
                    return null;
                if (type == Op.Write || !Exists(path))
                    _nodes[path] = type == Op.Write ? rest.ToArray() : [];
                fire.Add(path);
                return s_ok;
            case Op.Rm:
                if (!Exists(path))
                    return null;
                foreach (string key in _nodes.Keys.Where(k => k == path || k.StartsWith(path + "/", StringComparison.Ordinal)).ToList())
                    _nodes.Remove(key);
                fire.Add(path);
                return s_ok;
            case Op.Watch:
                error = "EEXIST";
                string token = Encoding.ASCII.GetString(rest).TrimEnd('\0');
                if (_watches.Count >= MaxWatches || _watches.Contains((first, token)))
                    return null;
                _watches.Add((first, token));
                return s_ok;
            case Op.Unwatch:
                return _watches.Remove((first, Encoding.ASCII.GetString(rest).TrimEnd('\0'))) ? s_ok : null;
            case Op.ResetWatches:
                _watches.Clear();
                return s_ok;
            case Op.TransactionStart:
                return Encoding.ASCII.GetBytes($"{++_transaction}\0");
            case Op.TransactionEnd or Op.Control or Op.Resume:
                return s_ok;
            case Op.GetDomainPath:
                return Encoding.ASCII.GetBytes($"/local/domain/{first}\0");
            case Op.IsDomainIntroduced:
                return "T\0"u8.ToArray();
            default:
                error = "ENOSYS";
                return null;
        }
    }

    private void Set(string path, string value) => _nodes[path] = Encoding.ASCII.GetBytes(value);

    private bool Exists(string path) => path == "/" || _nodes.ContainsKey(path) || _nodes.Keys.Any(k => k.StartsWith(path + "/", StringComparison.Ordinal));

    private IEnumerable<string> Children(string path)
    {
        string prefix = path == "/" ? "/" : path + "/";
        return _nodes.Keys.Where(k => k.StartsWith(prefix, StringComparison.Ordinal)).Select(k => k[prefix.Length..].Split('/')[0]).Distinct();
    }

    private void Fire(string changed)
    {
        foreach (var (watch, token) in _watches)
        {
            string full = watch.StartsWith('/') || watch.StartsWith('@') ? watch : Home + watch;
            if (changed == full || changed.StartsWith(full + "/", StringComparison.Ordinal))
                Event(watch.StartsWith('/') ? changed : watch + changed[full.Length..], token);
        }
    }

    private void Event(string path, string token) => Reply(Op.WatchEvent, 0, 0, Encoding.ASCII.GetBytes($"{path}\0{token}\0"));
}
