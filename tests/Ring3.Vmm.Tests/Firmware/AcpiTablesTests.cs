using System.Diagnostics;
using System.Text;
using Xunit;

namespace Ring3.Vmm.Tests.Firmware;

public class AcpiTablesTests
{
    [Theory, InlineData(1), InlineData(8), InlineData(255), InlineData(300), InlineData(1024)]
    public void EveryTableSumsToZeroAndIsReachedFromTheRsdp(int cpus)
    {
        const ulong Address = FirmwareTables.Acpi;
        AcpiTables.Image image = AcpiTables.Build(cpus, Address);
        byte[] b = image.Bytes;
        Assert.Equal("RSD PTR ", Encoding.ASCII.GetString(b, 0, 8));
        Assert.Equal(0, Sum(b.AsSpan(0, 20)));
        Assert.Equal(0, Sum(b.AsSpan(0, 36)));
        foreach (string table in new[] { "RSDT", "XSDT", "FACP", "APIC", "DSDT" })
        {
            int at = image.Offsets[table];
            Assert.Equal(table, Encoding.ASCII.GetString(b, at, 4));
            Assert.Equal(0, Sum(b.AsSpan(at, BitConverter.ToInt32(b, at + 4))));
        }
        ulong xsdt = BitConverter.ToUInt64(b, 24) - Address, fadt = BitConverter.ToUInt64(b, (int)xsdt + 36) - Address;
        Assert.Equal("FACP", Encoding.ASCII.GetString(b, (int)fadt, 4));
        Assert.Equal(BitConverter.ToUInt32(b, (int)fadt + 40), (uint)BitConverter.ToUInt64(b, (int)fadt + 140));
        Assert.Equal("DSDT", Encoding.ASCII.GetString(b, (int)(BitConverter.ToUInt64(b, (int)fadt + 140) - Address), 4));
        Assert.True((ulong)b.Length <= FirmwareTables.Mp - FirmwareTables.Acpi);
    }

    /// <summary>Intel's compiler must read the tables without an error: DSDT as AML, the others by their data definitions.</summary>
    [Theory, InlineData(2), InlineData(300)]
    public void IaslAcceptsTheTables(int cpus)
    {
        string? iasl = Tools.Find("iasl");
        Assert.SkipWhen(iasl is null, "no iasl on this machine");
        string directory = Directory.CreateTempSubdirectory("ring3-acpi").FullName;
        try
        {
            AcpiTables.Image image = AcpiTables.Build(cpus, FirmwareTables.Acpi);
            foreach (string table in new[] { "FACP", "APIC", "DSDT", "XSDT", "FACS" })
            {
                int at = image.Offsets[table];
                string file = Path.Combine(directory, table.ToLowerInvariant());
                File.WriteAllBytes(file + ".dat", image.Bytes[at..(at + BitConverter.ToInt32(image.Bytes, at + 4))]);
                string text = Tools.Run(iasl!, ["-d", file + ".dat"], directory);
                Assert.True(File.Exists(file + ".dsl"), text);
                Assert.DoesNotContain("rror", text.Replace("0 Errors", ""), StringComparison.Ordinal);
                Assert.DoesNotContain("Invalid", text, StringComparison.Ordinal);
                string again = Tools.Run(iasl!, [file + ".dsl"], directory);
                Assert.Matches(@"\b0 Errors|successful", again);
            }
        }
        finally { Directory.Delete(directory, recursive: true); }
    }

    private static byte Sum(ReadOnlySpan<byte> bytes)
    {
        byte sum = 0;
        foreach (byte b in bytes)
            sum += b;
        return sum;
    }
}

public class LegacyTablesTests
{
    [Theory, InlineData(1), InlineData(8), InlineData(1000)]
    public void MpTableSumsAndCounts(int cpus)
    {
        byte[] t = MpTable.Build(cpus, FirmwareTables.Mp);
        Assert.Equal(0, t.AsSpan(0, 16).ToArray().Sum(b => b) & 0xff);
        Assert.Equal((uint)FirmwareTables.Mp + 16, BitConverter.ToUInt32(t, 4));
        int length = BitConverter.ToUInt16(t, 20);
        Assert.Equal(t.Length - 16, length);
        Assert.Equal(0, t.AsSpan(16, length).ToArray().Sum(b => b) & 0xff);
        int at = 16 + 44, entries = 0, processors = 0;
        while (at < t.Length)
        {
            processors += t[at] == 0 ? 1 : 0;
            at += t[at] == 0 ? 20 : 8;
            entries++;
        }
        Assert.Equal(BitConverter.ToUInt16(t, 16 + 34), entries);
        Assert.Equal(Math.Min(cpus, MpTable.MaxCpus), processors);
        Assert.True((ulong)t.Length <= FirmwareTables.SmbiosAddress - FirmwareTables.Mp);
    }

    [Fact]
    public void SmbiosStructuresAreWellFormed()
    {
        byte[] t = Smbios.Build(4, 512 << 20, FirmwareTables.SmbiosAddress);
        Assert.Equal(0, t.AsSpan(0, 31).ToArray().Sum(b => b) & 0xff);
        Assert.Equal(0, t.AsSpan(16, 15).ToArray().Sum(b => b) & 0xff);
        Assert.Equal(0, t.AsSpan(32, 24).ToArray().Sum(b => b) & 0xff);
        int at = 64, count = 0, last = -1;
        ushort handle = 0;
        while (at < t.Length)
        {
            last = t[at];
            Assert.Equal(handle++, BitConverter.ToUInt16(t, at + 2));
            at += t[at + 1];
            while (t[at] != 0 || t[at + 1] != 0)
                at++;
            at += 2;
            count++;
        }
        Assert.Equal(127, last);
        Assert.Equal(BitConverter.ToUInt16(t, 28), count);
        Assert.Equal(t.Length - 64, BitConverter.ToUInt16(t, 22));
    }
}

internal static class Tools
{
    public static string? Find(string program) =>
        (Environment.GetEnvironmentVariable("PATH") ?? "").Split(':').Select(d => Path.Combine(d, program)).FirstOrDefault(File.Exists);

    public static string Run(string program, string[] arguments, string directory)
    {
        var start = new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true, RedirectStandardError = true, WorkingDirectory = directory };
        using Process p = Process.Start(start)!;
        Task<string> error = p.StandardError.ReadToEndAsync();
        string output = p.StandardOutput.ReadToEnd();
        p.WaitForExit();
        return output + error.Result;
    }
}
