using System.Buffers.Binary;
using System.Text;
using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

/// <summary>
/// The firmware configuration device: items of bytes, selected by a 16-bit key at port 0x510, read byte by byte at 0x511 or by DMA through 0x514.
/// SPEC: QEMU, "QEMU Firmware Configuration (fw_cfg) Device".
/// </summary>
public sealed class FwCfg
{
    public const ushort SelectorPort = 0x510, DmaPort = 0x514;
    public const int SelectorPorts = 2, DmaPorts = 8;

    /// <summary>Well-known keys.</summary>
    public const ushort KeySignature = 0, KeyId = 1, KeyUuid = 2, KeyRamSize = 3, KeyNoGraphic = 4, KeyCpuCount = 5, KeyMaxCpus = 0xf, KeyFileDirectory = 0x19,
        KeyFirstFile = 0x20;

    private const int MaxName = 55, DirectoryEntryBytes = 64;
    private const uint DmaError = 1, DmaRead = 2, DmaSkip = 4, DmaSelect = 8, DmaWrite = 16;

    private sealed record Item(byte[] Data, bool Writable, Action? Written);

    private static readonly byte[] s_zeros = new byte[1 << 16];
    private readonly RankedLock _lock = new(LockRank.FwCfg);
    private readonly IDmaMemory _memory;
    private readonly Dictionary<ushort, Item> _items = [];
    private readonly List<(string Name, ushort Key, int Size)> _files = [];
    private ushort _selected;
    private int _position;
    private uint _dmaHigh;

    public FwCfg(IDmaMemory memory)
    {
        _memory = memory;
        AddItem(KeySignature, "QEMU"u8);
        AddItem(KeyId, [3, 0, 0, 0]); // traditional interface and DMA
        AddItem(KeyFileDirectory, [0, 0, 0, 0]);
    }

    /// <summary>Where the guest reads, of a snapshot.</summary>
    public void Transfer(StateTransfer state)
    {
        using (_lock.Enter())
        {
            state.Section("fw_cfg");
            state.Value(ref _selected);
            _position = Math.Max(0, state.Keep(_position));
            state.Value(ref _dmaHigh);
        }
    }

    /// <summary>Sets an item by key.</summary>
    public void AddItem(ushort key, ReadOnlySpan<byte> data)
    {
        using (_lock.Enter())
            _items[key] = new Item(data.ToArray(), false, null);
    }

    /// <summary>Adds a file to the directory and returns its key. Names are ASCII, at most 55 bytes, and unique.</summary>
    /// <param name="name">Such as <c>etc/e820</c> or <c>opt/org.example/key</c>.</param>
    /// <param name="data">Content.</param>
    /// <param name="written">If given, the guest may write the file by DMA; called after each write, under the device's lock.</param>
    public ushort AddFile(string name, ReadOnlySpan<byte> data, Action? written = null)
    {
        if (name.Length is 0 or > MaxName || !Ascii.IsValid(name))
            throw new ArgumentException($"fw_cfg file name \"{name}\" is not 1 to {MaxName} ASCII characters", nameof(name));
        using (_lock.Enter())
        {
            if (_files.Exists(f => f.Name == name))
                throw new ArgumentException($"fw_cfg file \"{name}\" exists", nameof(name));
            var key = (ushort)(KeyFirstFile + _files.Count);
            _items[key] = new Item(data.ToArray(), written is not null, written);
            _files.Add((name, key, data.Length));
            _items[KeyFileDirectory] = new Item(Directory(), false, null);
            return key;
        }
    }

    /// <summary>Current content of a file; null if there is none of that name.</summary>
    public byte[]? ReadFile(string name)
    {
        using (_lock.Enter())
        {
            int i = _files.FindIndex(f => f.Name == name);
            return i < 0 ? null : (byte[])_items[_files[i].Key].Data.Clone();
        }
    }

    private byte[] Directory()
    {
        var directory = new byte[4 + DirectoryEntryBytes * _files.Count];
        BinaryPrimitives.WriteInt32BigEndian(directory, _files.Count);
        int at = 4;
        foreach ((string name, ushort key, int size) in _files.OrderBy(f => f.Name, StringComparer.Ordinal))
        {
            Span<byte> entry = directory.AsSpan(at, DirectoryEntryBytes);
            BinaryPrimitives.WriteInt32BigEndian(entry, size);
            BinaryPrimitives.WriteUInt16BigEndian(entry[4..], key);
            _ = Encoding.ASCII.GetBytes(name, entry[8..]);
            at += DirectoryEntryBytes;
        }
        return directory;
    }

    /// <summary>Ports 0x510-0x511: selector (16-bit write at 0) and data (8-bit read at 1).</summary>
    public IBusDevice Selector => new SelectorRegister(this);

    /// <summary>Ports 0x514-0x51b: big-endian address of the DMA descriptor; writing the low half starts the transfer.</summary>
    public IBusDevice Dma => new DmaRegister(this);

    private void Select(ushort key)
    {
        // Bit 14 is the write channel of old devices, bit 15 the architecture's own items: neither names another item here.
        _selected = (ushort)(key & 0xbfff);
        _position = 0;
    }

    private Item? Current => _items.GetValueOrDefault(_selected);

    private byte ReadByte()
    {
        Item? item = Current;
        return item is not null && _position < item.Data.Length ? item.Data[_position++] : (byte)0;
    }

    /// <summary>Runs the descriptor at <paramref name="gpa"/>: control, length, address, all big-endian. The control word becomes 0, or the error
    /// bit.</summary>
    private void RunDma(ulong gpa)
    {
        Span<byte> descriptor = stackalloc byte[16];
        if (!_memory.TryRead(gpa, descriptor))
            return;
        uint control = BinaryPrimitives.ReadUInt32BigEndian(descriptor), length = BinaryPrimitives.ReadUInt32BigEndian(descriptor[4..]);
        ulong address = BinaryPrimitives.ReadUInt64BigEndian(descriptor[8..]);
        if ((control & DmaSelect) != 0)
            Select((ushort)(control >> 16));
        bool ok = (control & (DmaRead | DmaWrite | DmaSkip)) switch
        {
            DmaRead => DmaOut(address, length),
            DmaWrite => DmaIn(address, length),
            DmaSkip => Skip(length),
            0 => true,
            _ => false,
        };
        Span<byte> result = stackalloc byte[4];
        BinaryPrimitives.WriteUInt32BigEndian(result, ok ? 0 : DmaError);
        _ = _memory.TryWrite(gpa, result);
    }

    private bool Skip(uint length)
    {
        _position = (int)Math.Min((uint)_position + (ulong)length, int.MaxValue);
        return true;
    }

    /// <summary>Item to guest memory; bytes past the end of the item are zero.</summary>
    private bool DmaOut(ulong address, uint length)
    {
        ReadOnlySpan<byte> data = Current is { } item && _position < item.Data.Length ? item.Data.AsSpan(_position) : default;
        int n = (int)Math.Min((uint)data.Length, length);
        if (n != 0 && !_memory.TryWrite(address, data[..n]))
            return false;
        _position += n;
        for (ulong done = (uint)n; done < length;)
        {
            int chunk = (int)Math.Min(length - done, (ulong)s_zeros.Length);
            if (!_memory.TryWrite(address + done, s_zeros.AsSpan(0, chunk)))
                return false;
            done += (ulong)chunk;
        }
        return true;
    }

    private bool DmaIn(ulong address, uint length)
    {
        if (Current is not { Writable: true } item || length > item.Data.Length - Math.Min(_position, item.Data.Length))
            return false;
        if (!_memory.TryRead(address, item.Data.AsSpan(_position, (int)length)))
            return false;
        _position += (int)length;
        item.Written?.Invoke();
        return true;
    }

    private sealed class SelectorRegister(FwCfg owner) : IBusDevice
    {
        public void Read(ulong offset, Span<byte> data)
        {
            data.Fill(0xff);
            using (owner._lock.Enter())
            {
                if (offset == 1)
                    data[0] = owner.ReadByte();
                else if (data.Length == 2)
                    BusData.Set(data, owner._selected);
            }
        }

        public void Write(ulong offset, ReadOnlySpan<byte> data)
        {
            if (offset != 0 || data.Length != 2)
                return;
            using (owner._lock.Enter())
                owner.Select((ushort)BusData.Get(data));
        }
    }

    private sealed class DmaRegister(FwCfg owner) : IBusDevice
    {
        /// <summary>Reads as the text "QEMU CFG", which tells that DMA works.</summary>
        public void Read(ulong offset, Span<byte> data)
        {
            ReadOnlySpan<byte> signature = "QEMU CFG"u8;
            for (int i = 0; i < data.Length; i++)
                data[i] = (int)offset + i < signature.Length ? signature[(int)offset + i] : (byte)0xff;
        }

        public void Write(ulong offset, ReadOnlySpan<byte> data)
        {
            using (owner._lock.Enter())
            {
                switch (offset, data.Length)
                {
                    case (0, 4):
                        owner._dmaHigh = BinaryPrimitives.ReadUInt32BigEndian(data);
                        break;
                    case (4, 4):
                        ulong high = (ulong)owner._dmaHigh << 32;
                        owner._dmaHigh = 0;
                        owner.RunDma(high | BinaryPrimitives.ReadUInt32BigEndian(data));
                        break;
                    case (0, 8):
                        owner.RunDma(BinaryPrimitives.ReadUInt64BigEndian(data));
                        break;
                }
            }
        }
    }
}
