using System.Buffers.Binary;
using System.Text;

namespace Ring3.Vmm;

/// <summary>Where a kernel's image and its modules are: in the cache, in an installed or unpacked package, or in the tree in which it was built.</summary>
public static class KernelFiles
{
    /// <summary>Beside a kernel of the cache.</summary>
    internal const string CachedModules = "modules";
    private const string BuiltImage = "arch/x86/boot/bzImage", Order = "modules.order";

    /// <summary>The kernel's file: <paramref name="path"/>, or the image in a tree of that name.</summary>
    /// <exception cref="BootException">The tree has none.</exception>
    public static string Image(string path)
    {
        if (!Directory.Exists(path))
            return path;
        string image = Path.Combine(path, BuiltImage);
        return File.Exists(image) ? image
            : throw new BootException(ExitStatus.NoInput, $"--kernel {path}: the folder has no {BuiltImage}: nothing was built there");
    }

    /// <summary>The modules of <paramref name="names"/> that there are, in that order. Others are part of the kernel, or it does without.</summary>
    /// <param name="path">The kernel's file.</param>
    /// <param name="image">Its content.</param>
    /// <param name="names">File names without what follows the first point.</param>
    public static IReadOnlyList<GuestModule> Modules(string path, ReadOnlySpan<byte> image, IReadOnlyList<string> names)
    {
        if (names.Count == 0)
            return [];
        Dictionary<string, string> files = Find(Path.GetFullPath(path), Release(image));
        return [.. from name in names
                   where files.ContainsKey(Plain(name))
                   let file = files[Plain(name)]
                   select new GuestModule(name, KernelLoader.Unpack(GuestCache.ReadFile(file), Path.GetFileName(file)))];
    }

    /// <summary>Both spellings are one.</summary>
    private static string Plain(string name) => name.Replace('-', '_');

    private static Dictionary<string, string> Find(string path, string release)
    {
        string directory = Path.GetDirectoryName(path)!;
        string beside = Path.Combine(directory, CachedModules);
        if (Directory.Exists(beside))
            return Index(Directory.EnumerateFiles(beside, "*.ko*"));
        if (path.EndsWith("/" + BuiltImage, StringComparison.Ordinal) && Built(path[..^(BuiltImage.Length + 1)]) is { } built)
            return built;
        if (release.Length == 0)
            return [];
        foreach (string root in (string[])[Path.Combine(directory, ".."), Path.Combine(directory, "../usr"), "/", "/usr"])
        {
            string modules = Path.Combine(root, "lib/modules", release, "kernel");
            if (Directory.Exists(modules))
                return Index(Directory.EnumerateFiles(modules, "*.ko*", SearchOption.AllDirectories));
        }
        return [];
    }

    /// <summary>What a build has listed. SPEC: Linux, Documentation/kbuild, modules.order.</summary>
    private static Dictionary<string, string>? Built(string tree)
    {
        string order = Path.Combine(tree, Order);
        if (!File.Exists(order))
            return null;
        const string Prefix = "kernel/";
        return Index(from line in File.ReadLines(order)
                     let name = line.StartsWith(Prefix, StringComparison.Ordinal) ? line[Prefix.Length..] : line
                     let file = Path.Combine(tree, Path.ChangeExtension(name, ".ko"))
                     where File.Exists(file)
                     select file);
    }

    private static Dictionary<string, string> Index(IEnumerable<string> files)
    {
        var index = new Dictionary<string, string>();
        foreach (string file in files)
            _ = index.TryAdd(Plain(Path.GetFileName(file).Split('.')[0]), file);
        return index;
    }

    /// <summary>The release that a bzImage says it is; empty for others. SPEC: Linux, "The Linux/x86 Boot Protocol", kernel_version.</summary>
    internal static string Release(ReadOnlySpan<byte> image)
    {
        const int VersionAt = 0x20e, Base = 0x200, Longest = 64;
        if (KernelLoader.Sniff(image) != ImageKind.BzImage || image.Length < VersionAt + 2)
            return "";
        int at = Base + BinaryPrimitives.ReadUInt16LittleEndian(image[VersionAt..]);
        if (at == Base || at >= image.Length)
            return "";
        ReadOnlySpan<byte> text = image.Slice(at, Math.Min(Longest, image.Length - at));
        int end = text.IndexOfAny((byte)' ', (byte)0);
        string release = end <= 0 ? "" : Encoding.Latin1.GetString(text[..end]);
        return release.All(c => char.IsAsciiLetterOrDigit(c) || ".-_+~".Contains(c)) && release != ".." ? release : "";
    }
}
