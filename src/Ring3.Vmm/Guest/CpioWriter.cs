using System.Text;

namespace Ring3.Vmm;

/// <summary>Writes a cpio archive in the "newc" format that Linux unpacks as its initial root. Every entry belongs to root; times are zero, so equal inputs
/// give equal archives.</summary>
public sealed class CpioWriter(Stream output)
{
    private const int DirectoryMode = 0x4000, FileMode = 0x8000, SymlinkMode = 0xa000, CharDeviceMode = 0x2000;
    private long _position;
    private int _inode = 1;

    /// <summary>Adds a directory. <paramref name="permissions"/> are the low 12 mode bits.</summary>
    public void Directory(string path, int permissions = 0x1ed) => Entry(path, DirectoryMode | permissions, [], 0, 0, 2);

    public void File(string path, ReadOnlySpan<byte> content, int permissions = 0x1a4) => Entry(path, FileMode | permissions, content, 0, 0, 1);

    public void Symlink(string path, string target) => Entry(path, SymlinkMode | 0x1ff, Encoding.UTF8.GetBytes(target), 0, 0, 1);

    public void CharDevice(string path, int major, int minor, int permissions = 0x180) => Entry(path, CharDeviceMode | permissions, [], major, minor, 1);

    /// <summary>Writes the trailer. The archive may be followed by another.</summary>
    public void Finish()
    {
        Entry("TRAILER!!!", 0, [], 0, 0, 1);
        output.Flush();
    }

    private void Entry(string path, int mode, ReadOnlySpan<byte> content, int major, int minor, int links)
    {
        byte[] name = Encoding.UTF8.GetBytes(path.TrimStart('/') + "\0");
        int inode = mode == 0 ? 0 : _inode++;
        string header = $"070701{inode:X8}{mode:X8}{0:X8}{0:X8}{links:X8}{0:X8}{content.Length:X8}{0:X8}{0:X8}{major:X8}{minor:X8}{name.Length:X8}{0:X8}";
        Put(Encoding.ASCII.GetBytes(header));
        Put(name);
        Pad();
        Put(content);
        Pad();
    }

    private void Put(ReadOnlySpan<byte> bytes)
    {
        output.Write(bytes);
        _position += bytes.Length;
    }

    private void Pad()
    {
        ReadOnlySpan<byte> zeros = [0, 0, 0];
        Put(zeros[..(int)(-_position & 3)]);
    }
}
