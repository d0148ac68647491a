using System.Buffers.Binary;
using System.Text;
using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Virtio;

/// <summary>Who the guest's users are for the program that serves a share.</summary>
public readonly record struct ShareOwner(uint User, uint Group);

/// <summary>
/// A folder of the host, which virtiofsd serves. What a read-only share forbids is refused here, by the request's code. SPEC: virtio 1.2, "File System
/// Device"; Linux, include/uapi/linux/fuse.h.
/// </summary>
public sealed class VhostFsDevice : VhostUserDevice
{
    public const int DeviceType = 26, MaxTagBytes = 36;

    private const int QueueSize = 1024, HighPriorityQueueSize = 128, ConfigBytes = 40;
    /// <summary>A read or write of 1 MiB, which is what servers and Linux agree on at most, and headers.</summary>
    private const int SlotBytes = (1 << 20) + (64 << 10);
    private const int RequestHeader = 40, AnswerHeader = 16, CodeAt = 4, UniqueAt = 8, UserAt = 24, GroupAt = 28, OpenFlagsAt = 40;
    private const int EIO = 5, EROFS = 30, ENOSYS = 38;
    private const uint Forget = 2, Open = 14, OpenDirectory = 27, Interrupt = 36, BatchForget = 42;
    private const uint AccessMode = 3, Create = 0x40, Truncate = 0x200, NoTimes = 0x4_0000;

    /// <summary>LOOKUP, FORGET, GETATTR, READLINK; OPEN, READ, STATFS, RELEASE, FSYNC; GETXATTR, LISTXATTR, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR,
    /// FSYNCDIR, GETLK, SETLK, SETLKW, ACCESS, INTERRUPT, BMAP, DESTROY, POLL; BATCH_FORGET, READDIRPLUS, LSEEK, SYNCFS, STATX.</summary>
    private static readonly uint[] s_reading =
        [1, Forget, 3, 5, Open, 15, 17, 18, 20, 22, 23, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, Interrupt, 37, 38, 40, BatchForget, 44, 46, 50, 52];

    /// <summary>SETATTR, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, WRITE, SETXATTR, REMOVEXATTR, CREATE, FALLOCATE, RENAME2, COPY_FILE_RANGE,
    /// TMPFILE.</summary>
    private static readonly uint[] s_writing = [4, 6, 8, 9, 10, 11, 12, 13, Open, 16, 21, 24, 35, 43, 45, 47, 51];

    private readonly bool _readOnly;
    private readonly ShareOwner? _owner;
    private readonly byte[] _config = new byte[ConfigBytes];

    /// <param name="memory">The guest's.</param>
    /// <param name="tag">What the guest mounts it by; at most <see cref="MaxTagBytes"/> bytes.</param>
    /// <param name="readOnly">The guest may not change anything.</param>
    /// <param name="owner">Whom the server acts for whoever asks; null: it acts for each of the guest's users as for the host's of the same number.</param>
    /// <param name="link">To the server; belongs to the device from now on.</param>
    /// <param name="name">For threads and messages.</param>
    /// <param name="ended">Told why the server serves no more, a phrase, on a thread of the device.</param>
    /// <exception cref="VhostUserException">The other side is no such server.</exception>
    public VhostFsDevice(GuestMemory memory, string tag, bool readOnly, ShareOwner? owner, VhostUserLink link, string name, Action<string> ended)
        : base(memory, DeviceType, name, [HighPriorityQueueSize, QueueSize], SlotBytes, link, Agree(link), ended)
    {
        (_readOnly, _owner) = (readOnly, owner);
        if (Encoding.UTF8.GetByteCount(tag) > MaxTagBytes)
            throw new ArgumentException("the tag is too long", nameof(tag));
        Encoding.UTF8.GetBytes(tag, _config);
        _config[MaxTagBytes] = 1;
    }

    private static ulong Agree(VhostUserLink link)
    {
        _ = link.Open(0);
        return 0;
    }

    public override ulong Features => 0;

    public override ReadOnlySpan<byte> Config => _config;

    protected override bool ErrorIsLast => false;

    /// <summary>Before the guest mounts it, a server has nothing that another one would not have.</summary>
    protected internal override void Transfer(StateTransfer state)
    {
        if (!state.IsLoading && HasTaken)
            throw new NotSupportedException($"{Name} is in use: its server knows the guest's files, and a clone's would not");
    }

    protected override bool TryAnswer(Span<byte> request, Span<byte> answer, out int written)
    {
        written = 0;
        if (request.Length < RequestHeader)
        {
            // No server expects that.
            written = Refuse(request, answer);
            return true;
        }
        if (_owner is { } owner)
        {
            BinaryPrimitives.WriteUInt32LittleEndian(request[UserAt..], owner.User);
            BinaryPrimitives.WriteUInt32LittleEndian(request[GroupAt..], owner.Group);
            KeepTimes(request);
        }
        if (!_readOnly || Reads(request))
            return false;
        // Of what is neither, ioctl above all, a read-only share knows nothing: who asks can do without.
        bool writes = Array.IndexOf(s_writing, BinaryPrimitives.ReadUInt32LittleEndian(request[CodeAt..])) >= 0;
        written = Error(request, answer, writes ? EROFS : ENOSYS);
        return true;
    }

    /// <summary>An overlay asks for files without their times of access changing, which the host allows their owners alone.</summary>
    private static void KeepTimes(Span<byte> request)
    {
        if (BinaryPrimitives.ReadUInt32LittleEndian(request[CodeAt..]) is not (Open or OpenDirectory) || request.Length < OpenFlagsAt + 4)
            return;
        Span<byte> flags = request[OpenFlagsAt..];
        BinaryPrimitives.WriteUInt32LittleEndian(flags, BinaryPrimitives.ReadUInt32LittleEndian(flags) & ~NoTimes);
    }

    private static bool Reads(ReadOnlySpan<byte> request)
    {
        uint code = BinaryPrimitives.ReadUInt32LittleEndian(request[CodeAt..]);
        if (Array.IndexOf(s_reading, code) < 0)
            return false;
        if (code != Open)
            return true;
        if (request.Length < OpenFlagsAt + 4)
            return false;
        uint flags = BinaryPrimitives.ReadUInt32LittleEndian(request[OpenFlagsAt..]);
        return (flags & (AccessMode | Create | Truncate)) == 0;
    }

    protected override int Refuse(ReadOnlySpan<byte> request, Span<byte> answer) => Error(request, answer, EIO);

    /// <summary>An answer with an error; none to who expects none.</summary>
    private static int Error(ReadOnlySpan<byte> request, Span<byte> answer, int errno)
    {
        if (request.Length < RequestHeader || answer.Length < AnswerHeader)
            return 0;
        BinaryPrimitives.WriteInt32LittleEndian(answer, AnswerHeader);
        BinaryPrimitives.WriteInt32LittleEndian(answer[4..], -errno);
        request.Slice(UniqueAt, 8).CopyTo(answer[8..]);
        return AnswerHeader;
    }
}
