// What is linked into the native programs, from the resolved packages: their licence texts and an SBOM (SPDX 2.3).
// usage: dotnet run packaging/inventory.cs OUT_DIRECTORY VERSION EPOCH LICENSE ASSETS_FILE...
#:property PublishAot=false
using System.Globalization;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;
using System.Xml.Linq;

if (args.Length < 5)
{
    Console.Error.WriteLine("usage: inventory.cs OUT_DIRECTORY VERSION EPOCH LICENSE ASSETS_FILE...");
    return 64;
}

string output = args[0], version = args[1], license = args[3];
DateTimeOffset created = DateTimeOffset.FromUnixTimeSeconds(long.Parse(args[2], CultureInfo.InvariantCulture));
SortedDictionary<string, Linked> packages = new(StringComparer.OrdinalIgnoreCase);
foreach (string file in args[4..])
    AddResolved(JsonNode.Parse(File.ReadAllText(file))!.AsObject(), packages);

string texts = Path.Combine(output, "licenses");
Directory.CreateDirectory(texts);
foreach (Linked package in packages.Values)
    WriteLicense(package, texts, license);
string sbom = Sbom(version, created, packages.Values).ToJsonString(new JsonSerializerOptions { WriteIndented = true,
    Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping });
File.WriteAllText(Path.Combine(output, "sbom.spdx.json"), sbom + "\n");
return 0;

// The packages of one project.assets.json that have code for the target, and those of the native runtime and its libraries, which the SDK downloads.
static void AddResolved(JsonObject assets, SortedDictionary<string, Linked> packages)
{
    string[] folders = [.. assets["packageFolders"]!.AsObject().Select(f => f.Key)];
    foreach ((string key, JsonNode? library) in assets["targets"]!["net10.0/linux-x64"]!.AsObject())
    {
        if ((string?)library!["type"] == "package" && library["runtime"]?.AsObject().Any(r => !r.Key.EndsWith("/_._", StringComparison.Ordinal)) == true)
            Add(key.Split('/')[0], key.Split('/')[1]);
    }
    foreach (JsonNode? download in assets["project"]!["frameworks"]!["net10.0"]!["downloadDependencies"]!.AsArray())
    {
        string name = (string)download!["name"]!;
        if (name.Contains("NativeAOT", StringComparison.Ordinal) || name.StartsWith("runtime.linux-x64.", StringComparison.Ordinal))
            Add(name, ((string)download["version"]!).Trim('[', ']').Split(',')[0]);
    }

    void Add(string name, string version)
    {
        string path = Path.Combine(name.ToLowerInvariant(), version);
        string folder = folders.Select(f => Path.Combine(f, path)).FirstOrDefault(Directory.Exists)
            ?? throw new DirectoryNotFoundException($"{name} {version} is not among the restored packages");
        XElement nuspec = XDocument.Load(Directory.GetFiles(folder, "*.nuspec").Single()).Root!;
        XElement metadata = nuspec.Elements().Single(e => e.Name.LocalName == "metadata");
        XElement? license = metadata.Elements().SingleOrDefault(e => e.Name.LocalName == "license");
        string hash = File.ReadAllText(Directory.GetFiles(folder, "*.nupkg.sha512").Single());
        packages[name] = new Linked(name, version, folder, (string?)license?.Attribute("type") == "expression" ? license!.Value : null,
            Value("copyright") ?? $"Copyright (c) {Value("authors")}", Convert.ToHexStringLower(Convert.FromBase64String(hash)));

        string? Value(string element) => metadata.Elements().SingleOrDefault(e => e.Name.LocalName == element)?.Value;
    }
}

// The texts that come with a package; where only "MIT" does, that text with the package's own line of copyright; where nothing does, what
// packaging/licenses has
// from its repository.
static void WriteLicense(Linked package, string directory, string given)
{
    string mit = File.ReadAllText(given);
    string ours = Path.Combine(Path.GetDirectoryName(given)!, "packaging", "licenses", $"{package.Name}.txt");
    string[] files = File.Exists(ours) ? [ours]
        : [.. Directory.GetFiles(package.Folder).Where(f => IsLicense(Path.GetFileName(f))).Order(StringComparer.Ordinal)];
    var text = new StringBuilder($"{package.Name} {package.Version}\n\n");
    if (package.License == "MIT" && !files.Any(f => Path.GetFileName(f).StartsWith("LICENSE", StringComparison.OrdinalIgnoreCase)))
    {
        foreach (string line in mit.TrimEnd().Split('\n'))
            text.Append(line.StartsWith("Copyright", StringComparison.Ordinal) ? package.Copyright : line).Append('\n');
    }
    else if (files.Length == 0)
    {
        throw new InvalidDataException($"{package.Name} {package.Version} has neither a licence text nor the expression MIT");
    }
    foreach (string file in files)
        text.Append(File.ReadAllText(file).ReplaceLineEndings("\n").TrimEnd()).Append("\n\n");
    File.WriteAllText(Path.Combine(directory, $"{package.Name}.txt"), text.ToString().TrimEnd() + "\n");

    static bool IsLicense(string name) =>
        name.StartsWith("LICENSE", StringComparison.OrdinalIgnoreCase) || name.StartsWith("THIRD-PARTY-NOTICES", StringComparison.OrdinalIgnoreCase);
}

static JsonObject Sbom(string version, DateTimeOffset created, IEnumerable<Linked> packages)
{
    var list = new JsonArray(Package("SPDXRef-ring3", "ring3", version, "MIT", "The Ring3 authors", null, null));
    var relations = new JsonArray(Relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-ring3"));
    foreach (Linked p in packages)
    {
        string id = "SPDXRef-" + p.Name;
        list.Add(Package(id, p.Name, p.Version, p.License ?? "NOASSERTION", p.Copyright, $"pkg:nuget/{p.Name}@{p.Version}", p.Sha512));
        relations.Add(Relation("SPDXRef-ring3", "STATIC_LINK", id));
    }
    return new JsonObject
    {
        ["spdxVersion"] = "SPDX-2.3",
        ["dataLicense"] = "CC0-1.0",
        ["SPDXID"] = "SPDXRef-DOCUMENT",
        ["name"] = $"ring3-{version}",
        ["documentNamespace"] = $"https://spdx.org/spdxdocs/ring3-{version}-{created.ToUnixTimeSeconds()}",
        ["creationInfo"] = new JsonObject
        {
            ["created"] = created.UtcDateTime.ToString("yyyy-MM-dd'T'HH:mm:ss'Z'", CultureInfo.InvariantCulture),
            ["creators"] = new JsonArray("Tool: ring3-package"),
        },
        ["packages"] = list,
        ["relationships"] = relations,
    };

    static JsonObject Relation(string from, string type, string to) =>
        new() { ["spdxElementId"] = from, ["relationshipType"] = type, ["relatedSpdxElement"] = to };

    static JsonObject Package(string id, string name, string version, string license, string copyright, string? purl, string? sha512)
    {
        var package = new JsonObject
        {
            ["SPDXID"] = id,
            ["name"] = name,
            ["versionInfo"] = version,
            ["downloadLocation"] = purl is null ? "NOASSERTION" : $"https://www.nuget.org/api/v2/package/{name}/{version}",
            ["filesAnalyzed"] = false,
            ["licenseConcluded"] = license,
            ["licenseDeclared"] = license,
            ["copyrightText"] = copyright,
        };
        if (purl is not null)
        {
            package["checksums"] = new JsonArray(new JsonObject { ["algorithm"] = "SHA512", ["checksumValue"] = sha512 });
            package["externalRefs"] = new JsonArray(new JsonObject
            {
                ["referenceCategory"] = "PACKAGE-MANAGER", ["referenceType"] = "purl", ["referenceLocator"] = purl,
            });
        }
        return package;
    }
}

/// <summary>A package whose code is in the programs.</summary>
/// <param name="License">SPDX expression; null: a file.</param>
/// <param name="Sha512">Of the package, hexadecimal.</param>
internal sealed record Linked(string Name, string Version, string Folder, string? License, string Copyright, string Sha512);
