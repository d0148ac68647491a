using System.Buffers.Binary;
using System.Text;

namespace Ring3.Vmm.Tests.Firmware;

public class BiosTests
{
    private readonly List<byte> _sent = [];
    private string Sent => Encoding.Latin1.GetString([.. _sent]);

    /// <summary>The areas do not depend on the boot protocol: they are there with the firmware's tables.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void DataAreaNamesTheEbdaAndLowMemory(bool acpi)
    {
        using var ram = new MachineRam(16 << 20);
        FirmwareTables.Write(ram, 1, acpi);
        ushort Word(ulong gpa) => BinaryPrimitives.ReadUInt16LittleEndian(ram.Span(gpa, 2, ""));
        Assert.Equal(MemoryLayout.Ebda, (ulong)Word(0x40e) << 4);
        Assert.Equal(MemoryLayout.Ebda, (ulong)Word(0x413) << 10);
        Assert.Equal(MemoryLayout.LowEnd - MemoryLayout.Ebda, (ulong)ram.Span(MemoryLayout.Ebda, 1, "")[0] << 10);
        // Every vector leads to code in the ROM that ends in IRET.
        for (ulong vector = 0; vector < 256; vector++)
        {
            ulong at = ((ulong)Word(vector * 4 + 2) << 4) + Word(vector * 4);
            Assert.InRange(at, 0xf_e000UL, 0xf_ffefUL);
            Assert.Contains((byte)0xcf, ram.Span(at, 64, "").ToArray());
        }
        // The firmware map keeps what is there from being used as RAM.
        Assert.Contains(E820.Build(ram), e => e.Kind == E820Kind.Reserved && e.Start <= MemoryLayout.Ebda && e.Start + e.Bytes == MemoryLayout.LowEnd);
        Assert.Equal(0xea, ram.Span(0xf_fff0, 1, "")[0]);
    }

    [Fact]
    public void ScreenKeepsPlainOutputPlain()
    {
        var screen = new BiosScreen(_sent.Add);
        foreach (char c in "ab\r\ncd")
            screen.Teletype((byte)c);
        Assert.Equal("ab\r\ncd", Sent);
        Assert.Equal((1, 2), screen.Cursor);
    }

    /// <summary>A character with its colour (AH = 9) and again by teletype: one character on the terminal.</summary>
    [Fact]
    public void ScreenShowsACharacterOnce()
    {
        var screen = new BiosScreen(_sent.Add);
        foreach (char c in "iPXE")
        {
            screen.WriteInPlace((byte)c, 1);
            screen.Teletype((byte)c);
        }
        Assert.Equal("iPXE", Sent);
    }

    /// <summary>Write in place, then move the cursor: as GRUB does.</summary>
    [Fact]
    public void ScreenFollowsTheCursor()
    {
        var screen = new BiosScreen(_sent.Add) { Cursor = (2, 5) };
        foreach (char c in "hi")
        {
            screen.WriteInPlace((byte)c, 1);
            screen.Cursor = (screen.Cursor.Row, screen.Cursor.Column + 1);
        }
        Assert.Equal("\e[3;6Hhi", Sent);
        screen.Cursor = (200, 200);
        Assert.Equal((BiosScreen.Rows - 1, BiosScreen.Columns - 1), screen.Cursor);
        screen.WriteInPlace((byte)'x', 65535);
        screen.Clear();
        Assert.EndsWith("\e[2J\e[H", Sent);
    }

    [Theory]
    [InlineData("a", 0x1e61)]
    [InlineData("A", 0x1e41)]
    [InlineData("\r", 0x1c0d)]
    [InlineData("\u007f", 0x0e08)]
    [InlineData("\u0002", 0x3002)] // Ctrl-B
    [InlineData("\e", 0x011b)]
    [InlineData("\e[A", 0x4800)]
    [InlineData("\e[Bx", 0x5000)]
    [InlineData("\u00e4", 0x00e4)]
    public void KeysHaveScanCodes(string typed, int expected)
    {
        var input = new List<byte>(Encoding.Latin1.GetBytes(typed));
        var keyboard = new BiosKeyboard(at => at < input.Count ? input[at] : -1, n => input.RemoveRange(0, n));
        Assert.Equal(expected, keyboard.Next(remove: false));
        Assert.Equal(typed.Length, input.Count);
        Assert.Equal(expected, keyboard.Next(remove: true));
        Assert.Equal(typed.EndsWith('x') ? 0x2d78 : -1, keyboard.Next(remove: true));
    }
}
