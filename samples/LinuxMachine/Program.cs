// Boots Debian's kernel with a disk and a network, takes the disk away, and makes clones of another guest: `dotnet run --project samples/LinuxMachine`.
using Ring3.Machines;

TimeSpan patience = TimeSpan.FromMinutes(3);
string folder = Directory.CreateTempSubdirectory("ring3-sample").FullName;
try
{
    string image = Path.Combine(folder, "disk.img"), snapshot = Path.Combine(folder, "guest.snapshot");
    using (FileStream file = File.Create(image))
        file.SetLength(16 << 20);

    // The default guest has a shell on its console. A network needs passt (Debian package passt).
    bool network = File.Exists("/usr/bin/passt");
    using (Pc pc = Pc.Boot(new PcOptions { Disks = [new PcDisk(image)], Network = network ? new PcNetwork() : null }))
    {
        pc.Type("echo written by a guest >/dev/vda; sync; ip -o addr show up; echo sample-do''ne\n");
        Expect(pc, "sample-done");
        string found = pc.Output.Contains("eth0    inet ") ? "the guest has a network" : "the guest has no network";
        Console.WriteLine(network ? found : "no network: passt is not installed");
        // The guest lets the disk go, and the file is ours again.
        pc.RemoveDisk(image);
        using (StreamReader reader = File.OpenText(image))
            Console.WriteLine($"the disk: {reader.ReadLine()}");
        Console.WriteLine($"the disk is back as {pc.AddDisk(new PcDisk(image) { Serial = "again" })}");
        pc.Type("poweroff -f\n");
        Console.WriteLine($"the machine's end: {pc.Wait()}");
    }

    // Whatever the guest has in memory, its clones have, too.
    using (Pc pc = Pc.Boot(new PcOptions()))
    {
        pc.Type("number=42; echo sample-re''ady\n");
        Expect(pc, "sample-ready");
        pc.Snapshot(snapshot);
    }
    for (int i = 1; i <= 2; i++)
    {
        using Pc clone = Pc.Restore(snapshot);
        clone.Type($"echo clone {i} has $number; echo clone-do''ne\n");
        Expect(clone, "clone-done");
        Console.WriteLine(clone.Output.Split('\n').First(l => l.StartsWith("clone")).Trim());
    }
    return 0;
}
catch (PcException e)
{
    Console.Error.WriteLine(e.Message);
    return 1;
}
finally
{
    Directory.Delete(folder, recursive: true);
}

void Expect(Pc pc, string text)
{
    if (!pc.WaitForOutput(text, patience))
        throw new TimeoutException($"the guest has not said '{text}' but:\n{pc.Output}");
}
