namespace Ring3.Host.Tests;

public class RandomTests
{
    /// <summary>The sequence's published values for this seed.</summary>
    [Fact]
    public void Seeded_IsSplitMix64()
    {
        var random = new SeededRandom(1234567);
        Assert.Equal((6457827717110365317UL, 3203168211198807973UL, 9817491932198370423UL), (random.Next(), random.Next(), random.Next()));
    }

    [Fact]
    public void Seeded_BytesAreTheValues()
    {
        byte[] bytes = new byte[11];
        new SeededRandom(1234567).Fill(bytes);
        byte[] values = [.. BitConverter.GetBytes(6457827717110365317UL), .. BitConverter.GetBytes(3203168211198807973UL)];
        Assert.Equal(values[..11], bytes);
    }

    /// <summary>More than the kernel gives by one call that a signal may cut short: no part stays as it was.</summary>
    [Fact]
    public void Host_FillsEverything()
    {
        byte[] bytes = new byte[1 << 20];
        HostRandom.Fill(bytes);
        Assert.All(bytes.Chunk(64), c => Assert.Contains(c, b => b != 0));
    }
}
