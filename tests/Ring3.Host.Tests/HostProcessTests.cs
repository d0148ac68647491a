using System.Diagnostics;

namespace Ring3.Host.Tests;

public class HostProcessTests
{
    /// <summary>As the runtime computes it from the same file and the clock of day, which may be stepped between the two.</summary>
    [Fact]
    public void AgeMs_IsTheTimeSinceTheStart()
    {
        const double ToleranceMs = 1000;
        using var self = Process.GetCurrentProcess();
        double before = (DateTime.Now - self.StartTime).TotalMilliseconds;
        long age = HostProcess.AgeMs();
        double after = (DateTime.Now - self.StartTime).TotalMilliseconds;
        Assert.InRange(age, before - ToleranceMs, after + ToleranceMs);
    }
}
