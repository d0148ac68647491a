using Ring3.Host;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary>Standard output or error for text. The runtime's own streams take a closed pipe for success and throw for a full device.</summary>
internal sealed class StandardStream : Stream
{
    private readonly int _fd;
    private readonly bool _required;

    private StandardStream(int fd, bool required) => (_fd, _required) = (fd, required);

    /// <summary>Makes these the console's: output that cannot be written is an error with a status of its own; messages that cannot be written are
    /// lost.</summary>
    public static void Install()
    {
        Console.SetOut(new StreamWriter(new StandardStream(1, required: true)) { AutoFlush = true });
        Console.SetError(new StreamWriter(new StandardStream(2, required: false)) { AutoFlush = true });
    }

    public override void Write(ReadOnlySpan<byte> buffer)
    {
        if (!Terminal.WriteAll(_fd, buffer, out string why) && _required)
            throw new BootException(ExitStatus.NoOutput, $"cannot write standard output: {why}");
    }

    public override void Write(byte[] buffer, int offset, int count) => Write(buffer.AsSpan(offset, count));
    public override void Flush() { }
    public override bool CanRead => false;
    public override bool CanSeek => false;
    public override bool CanWrite => true;
    public override long Length => throw new NotSupportedException();
    public override long Position { get => throw new NotSupportedException(); set => throw new NotSupportedException(); }
    public override int Read(byte[] buffer, int offset, int count) => throw new NotSupportedException();
    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();
    public override void SetLength(long value) => throw new NotSupportedException();
}
