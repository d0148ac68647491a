using System.Buffers.Binary;
using Microsoft.Win32.SafeHandles;
using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>A piece of guest memory in a snapshot: where it is in the machine's memory, and the sum of its bytes. Everything else is zero.</summary>
internal readonly record struct MemoryExtent(ulong Offset, ulong Bytes, uint Sum);

/// <summary>
/// A snapshot's file: a header, the machine's state, and the pieces of guest memory that are not zero, one after the other, from the next page on. The state
/// has a checksum, and so has each piece; the file's size follows from both. Files are written under another name and renamed, and never changed: clones have
/// them mapped.
/// </summary>
public sealed class SnapshotFile : IDisposable
{
    private const int HeaderBytes = 64, StateBytesAt = 16, FileBytesAt = 24, StateSumAt = 32, HeaderSumAt = 36, Page = 4096, MaxState = 64 << 20;
    private const int Piece = 16 << 20;
    private const uint Format = 1;

    private static ReadOnlySpan<byte> Magic => "RING3SNP"u8;

    private readonly SafeFileHandle _file;
    private readonly string _path;
    private readonly long _memoryAt;
    private readonly MemoryExtent[] _extents;

    private SnapshotFile(SafeFileHandle file, string path, long memoryAt, StateTransfer state, MachineIdentity made, SnapshotSettings settings,
        MemoryExtent[] extents)
    {
        (_file, _path, _memoryAt, _extents) = (file, path, memoryAt, extents);
        (State, Made, Settings) = (state, made, settings);
    }

    /// <summary>The machine's state is next.</summary>
    internal StateTransfer State { get; }
    internal MachineIdentity Made { get; }
    internal SnapshotSettings Settings { get; }

    /// <summary>The console belongs to the default guest.</summary>
    public bool OwnGuest => Settings.OwnGuest;

    /// <summary>Streams of a command lead into the machine.</summary>
    public bool HasCommandPorts => Settings.HasCommandPorts;

    /// <summary>The guest waits for a command.</summary>
    public bool TakesCommand => Settings.TakesCommand;

    /// <summary>Options of a machine for the snapshot: what it was made with, and what is given.</summary>
    /// <exception cref="BootException">Something is given for a device that the machine does not have.</exception>
    public BootOptions Apply(BootOptions options) => options with
    {
        Cpus = Settings.Cpus, MemoryBytes = Settings.MemoryBytes, Processor = Settings.Model, Xen = Settings.Xen, XenFifo = Settings.XenFifo,
        Net = Card(options.Net), Vsock = OtherSide(options.Vsock, Settings.Vsock, "--vsock"),
        PolledSerial = Settings.PolledSerial, WaitsForScript = Settings.TakesCommand, Disks = [.. Settings.Disks.Select(d => d.Option)],
        Streams = Settings.HasConsole ? options.Streams ?? new CommandStreams() : null,
    };

    private NetOption? Card(NetOption? given) =>
        OtherSide(given, Settings.Net, "--net") is { } net && net.Tap is null != Settings.Net!.Tap is null
            ? throw new BootException(ExitStatus.Usage, $"--net: the card of the snapshot's machine is one of {(net.Tap is null ? "tap" : "user")}")
            : given ?? Settings.Net;

    /// <summary>What a device is connected to: as it was, or to what is given instead.</summary>
    private static T? OtherSide<T>(T? given, T? kept, string option) where T : class =>
        given is null || kept is not null ? given ?? kept
        : throw new BootException(ExitStatus.Usage, $"{option}: the machine of the snapshot has no such device");

    /// <summary>Bytes of the file.</summary>
    public long Bytes { get; private init; }

    /// <summary>Opens a snapshot that this program can restore. Guest memory is not read.</summary>
    /// <exception cref="BootException">It cannot be read, is damaged, or is another machine's.</exception>
    public static SnapshotFile Open(string path)
    {
        SafeFileHandle file = OpenFile(path);
        try { return Read(file, path); }
        catch (Exception e) when (e is InvalidDataException or IOException or BootException)
        {
            file.Dispose();
            throw e as BootException ?? BootException.BadImage($"{path}: the snapshot is damaged: {e.Message}");
        }
    }

    private static SafeFileHandle OpenFile(string path)
    {
        if (Directory.Exists(path))
            throw new BootException(ExitStatus.NoInput, $"{path}: is a directory");
        try { return File.OpenHandle(path); }
        catch (Exception e) when (e is FileNotFoundException or DirectoryNotFoundException)
        {
            throw new BootException(ExitStatus.NoInput, $"{path}: no such file");
        }
        catch (UnauthorizedAccessException) { throw new BootException(ExitStatus.NoInput, $"{path}: permission denied"); }
        catch (Exception e) when (e is IOException or ArgumentException or NotSupportedException)
        {
            throw new BootException(ExitStatus.NoInput, $"{path}: {e.Message}");
        }
    }

    private static SnapshotFile Read(SafeFileHandle file, string path)
    {
        var header = new byte[HeaderBytes];
        if (RandomAccess.Read(file, header, 0) != HeaderBytes || !header.AsSpan(0, Magic.Length).SequenceEqual(Magic))
            throw BootException.BadImage($"{path}: is not a snapshot of ring3");
        if (BinaryPrimitives.ReadUInt32LittleEndian(header.AsSpan(HeaderSumAt)) != Crc32C.Of(header.AsSpan(0, HeaderSumAt))
            || header.AsSpan(HeaderSumAt + sizeof(uint)).ContainsAnyExcept((byte)0))
            throw new InvalidDataException("its header has a wrong checksum");
        if (BinaryPrimitives.ReadUInt32LittleEndian(header.AsSpan(Magic.Length)) != Format)
            throw BootException.BadImage($"{path}: cannot restore the snapshot: it was made by another version of ring3");
        long stateBytes = BinaryPrimitives.ReadInt64LittleEndian(header.AsSpan(StateBytesAt));
        long fileBytes = BinaryPrimitives.ReadInt64LittleEndian(header.AsSpan(FileBytesAt)), has = RandomAccess.GetLength(file);
        if (has != fileBytes)
            throw new InvalidDataException($"it has {has} bytes, and should have {fileBytes}");
        if (stateBytes is < 0 or > MaxState)
            throw new InvalidDataException("its state is too large");
        var bytes = new byte[stateBytes];
        if (RandomAccess.Read(file, bytes, HeaderBytes) != bytes.Length
            || Crc32C.Of(bytes) != BinaryPrimitives.ReadUInt32LittleEndian(header.AsSpan(StateSumAt)))
            throw new InvalidDataException("its state has a wrong checksum");
        var state = new StateTransfer(bytes);
        MachineIdentity made = MachineIdentity.Transfer(state, null);
        SnapshotSettings settings = SnapshotSettings.Transfer(state, new SnapshotSettings());
        if (MachineIdentity.Of(settings.Model).Refuse(made) is { } why)
            throw BootException.BadImage($"{path}: cannot restore the snapshot: {why}");
        MemoryExtent[] extents = TransferExtents(state, []);
        long memoryAt = PageEnd(HeaderBytes + stateBytes), end = memoryAt;
        foreach (MemoryExtent e in extents)
        {
            if (e.Offset > settings.MemoryBytes || e.Bytes > settings.MemoryBytes - e.Offset || (e.Offset | e.Bytes) % Page != 0)
                throw new InvalidDataException("it has memory where the machine has none");
            end += (long)e.Bytes;
        }
        if (end != fileBytes)
            throw new InvalidDataException("its memory has another size than it should");
        return new SnapshotFile(file, path, memoryAt, state, made, settings, extents) { Bytes = has };
    }

    private static long PageEnd(long at) => (at + Page - 1) / Page * Page;

    private static MemoryExtent[] TransferExtents(StateTransfer state, MemoryExtent[] own)
    {
        state.Section("memory");
        int count = state.Keep(own.Length);
        if (state.IsLoading)
            own = new MemoryExtent[Math.Clamp(count, 0, MaxState / 32)];
        for (int i = 0; i < own.Length; i++)
            own[i] = state.Keep(own[i]);
        return own;
    }

    /// <summary>Puts the memory in its place. Pages are read as they are used.</summary>
    internal void Map(MachineRam ram)
    {
        long at = _memoryAt;
        foreach (MemoryExtent e in _extents)
        {
            int error = ram.MapCopy(e.Offset, e.Bytes, _file, at);
            if (error != 0)
                throw new BootException(ExitStatus.Resources, $"cannot map {_path}: error {-error}");
            at += (long)e.Bytes;
        }
    }

    /// <summary>Reads all the memory and compares its checksums.</summary>
    /// <exception cref="BootException">Some piece is damaged.</exception>
    public void Verify()
    {
        var buffer = new byte[1 << 20];
        long at = _memoryAt;
        foreach (MemoryExtent e in _extents)
        {
            uint sum = 0;
            for (ulong done = 0; done < e.Bytes;)
            {
                Span<byte> part = buffer.AsSpan(0, (int)Math.Min((ulong)buffer.Length, e.Bytes - done));
                int n = RandomAccess.Read(_file, part, at);
                if (n <= 0)
                    throw BootException.BadImage($"{_path}: the snapshot is damaged: its memory ends too soon");
                sum = Crc32C.Of(part[..n], sum);
                done += (ulong)n;
                at += n;
            }
            if (sum != e.Sum)
                throw BootException.BadImage($"{_path}: the snapshot is damaged: its memory has a wrong checksum");
        }
    }

    /// <summary>Reads what a snapshot says of this program, which a confined process cannot.</summary>
    public static void Prepare() => MachineIdentity.Prepare();

    /// <summary>Writes a snapshot. The machine stands still.</summary>
    /// <param name="place">Where it is afterwards, whole or not at all.</param>
    /// <param name="ram">Guest memory.</param>
    /// <param name="identity">Who writes.</param>
    /// <param name="settings">What machine it is.</param>
    /// <param name="machine">Adds the machine's state.</param>
    internal static void Write(SnapshotPlace place, MachineRam ram, MachineIdentity identity, SnapshotSettings settings, Action<StateTransfer> machine)
    {
        bool kept = false;
        try
        {
            using (SafeFileHandle file = place.Create())
                Write(file, ram, identity, settings, machine);
            place.Keep();
            kept = true;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException) { throw SnapshotFolder.Failure(place.Path, e); }
        finally
        {
            if (!kept)
                place.Drop();
        }
    }

    private static void Write(SafeFileHandle file, MachineRam ram, MachineIdentity identity, SnapshotSettings settings, Action<StateTransfer> machine)
    {
        // Before the memory is looked at: parts that are asked for their state may write into it what they have for the guest.
        var own = new StateTransfer();
        machine(own);
        List<MemoryExtent> extents = MemoryScan.Used(ram);
        long memoryAt = PageEnd(HeaderBytes + Head(extents, identity, settings).Length + own.Written.Length), at = memoryAt;
        for (int i = 0; i < extents.Count; i++)
        {
            MemoryExtent e = extents[i];
            uint sum = 0;
            for (ulong done = 0; done < e.Bytes; done += Piece)
            {
                Span<byte> part = ram.Flat(e.Offset + done, (int)Math.Min(Piece, e.Bytes - done));
                sum = Crc32C.Of(part, sum);
                RandomAccess.Write(file, part, at);
                at += part.Length;
            }
            extents[i] = e with { Sum = sum };
        }
        byte[] state = [.. Head(extents, identity, settings), .. own.Written];
        var header = new byte[HeaderBytes];
        Magic.CopyTo(header);
        BinaryPrimitives.WriteUInt32LittleEndian(header.AsSpan(Magic.Length), Format);
        BinaryPrimitives.WriteInt64LittleEndian(header.AsSpan(StateBytesAt), state.Length);
        BinaryPrimitives.WriteInt64LittleEndian(header.AsSpan(FileBytesAt), at);
        BinaryPrimitives.WriteUInt32LittleEndian(header.AsSpan(StateSumAt), Crc32C.Of(state));
        BinaryPrimitives.WriteUInt32LittleEndian(header.AsSpan(HeaderSumAt), Crc32C.Of(header.AsSpan(0, HeaderSumAt)));
        RandomAccess.Write(file, state, HeaderBytes);
        RandomAccess.Write(file, header, 0);
        RandomAccess.SetLength(file, at);
    }

    /// <summary>What stands before the machine's state.</summary>
    private static ReadOnlySpan<byte> Head(List<MemoryExtent> extents, MachineIdentity identity, SnapshotSettings settings)
    {
        var head = new StateTransfer();
        MachineIdentity.Transfer(head, identity);
        SnapshotSettings.Transfer(head, settings);
        TransferExtents(head, [.. extents]);
        return head.Written;
    }

    /// <summary>The memory stays where it was mapped.</summary>
    public void Dispose() => _file.Dispose();
}
