namespace Ring3.Vmm.Tests.Bus;

public class SharedLineTests
{
    [Fact]
    public void SharedLineIsHighWhileAnyInputIs()
    {
        var levels = new List<bool>();
        var shared = new SharedLine(new Lambda(levels.Add));
        IInterruptLine a = shared.AddInput(), b = shared.AddInput();
        a.Set(true);
        b.Set(true);
        a.Set(false);
        a.Set(false);
        b.Set(false);
        Assert.Equal([true, false], levels);
    }

    internal sealed class Lambda(Action<bool> set) : IInterruptLine
    {
        public void Set(bool level) => set(level);
    }
}
