namespace Ring3.Architecture.Tests;

/// <summary>Dependencies point down only (ARCHITECTURE.md, "Layers").</summary>
public class LayerTests
{
    /// <summary>Height of each layer: a project may refer only to projects of a lower number.</summary>
    private static readonly Dictionary<string, int> s_layer = new()
    {
        ["Ring3.Abi"] = 0, ["Ring3.Arch"] = 0,
        ["Ring3.Host"] = 1,
        ["Ring3.Sync"] = 2,
        ["Ring3.Memory"] = 3,
        ["Ring3.Cpu"] = 4, ["Ring3.Mmu"] = 4, ["Ring3.Irqchip"] = 4, ["Ring3.Xen"] = 4, ["Ring3.Reclaim"] = 4,
        ["Ring3.Mmu.Power"] = 5,
        ["Ring3.Kvm"] = 5,
        ["Ring3"] = 6, ["Ring3.DevKvm"] = 6, ["Ring3.Virtio"] = 6, ["Ring3.Vmm"] = 7,
        ["Ring3.Cli"] = 8, ["Ring3.Machines"] = 8,
    };

    [Fact]
    public void EveryProject_HasALayer() =>
        Assert.Empty(Repository.ProductProjects().Select(Repository.NameOf).Except(s_layer.Keys));

    [Fact]
    public void EveryProject_SaysWhatItIs() => Assert.Empty(
        from project in Repository.ProductProjects()
        where !File.Exists(Path.Combine(Path.GetDirectoryName(project)!, "README.md"))
        select Repository.NameOf(project));

    /// <summary>What limits a VM's memory knows of a VM what it asks for, and no page tables.</summary>
    [Fact]
    public void Reclaim_StandsOnMemory() => Assert.Equal(
        ["Ring3.Memory"],
        Repository.ReferencesOf(Repository.ProductProjects().Single(p => Repository.NameOf(p) == "Ring3.Reclaim")));

    [Fact]
    public void References_PointDownOnly() => Assert.Empty(
        from project in Repository.ProductProjects()
        let name = Repository.NameOf(project)
        from reference in Repository.ReferencesOf(project)
        where s_layer[reference] >= s_layer[name]
        select $"{name} -> {reference}");

    [Fact]
    public void Processor_KnowsNeitherMemorySlotsNorTheHypervisor() => Assert.Equal(
        ["Ring3.Arch", "Ring3.Host"],
        Repository.ReferencesOf(Repository.ProductProjects().Single(p => Repository.NameOf(p) == "Ring3.Cpu")).Order());
}
