using System;
using System.Collections.Generic;
using System.IO;
using Microsoft.Build.Framework;
using Microsoft.Build.Utilities;

/// <summary>
/// Applies Defects.patch to copies of the product's files. A hunk is a line "@@ project/file.cs" and the lines after it, that begin with ' ', '-' or
/// '+': ' ' stays, '-' goes, '+' comes. What stays or goes must be found exactly once
/// in the file: a defect that does not fit the code any more is an error of the build. Lines that begin with '#' are for readers.
/// </summary>
public class ApplyPatch : Task
{
    [Required] public string Patch { get; set; }
    [Required] public string ProductRoot { get; set; }
    [Required] public string TargetRoot { get; set; }
    [Output] public ITaskItem[] Changed { get; set; }
    [Output] public ITaskItem[] Replacements { get; set; }

    public override bool Execute()
    {
        var texts = new SortedDictionary<string, string>(StringComparer.Ordinal);
        string[] lines = File.ReadAllLines(Patch);
        for (int i = 0; i < lines.Length; i++)
        {
            if (lines[i].Length == 0 || lines[i][0] == '#')
                continue;
            if (!lines[i].StartsWith("@@ ", StringComparison.Ordinal))
            {
                Refuse(i, "a hunk begins with '@@ project/file.cs'");
                return false;
            }
            int header = i;
            string file = lines[i].Substring(3), before = "", after = "";
            while (i + 1 < lines.Length && lines[i + 1].Length != 0 && " -+".IndexOf(lines[i + 1][0]) >= 0)
            {
                i++;
                string line = lines[i].Substring(1) + "\n";
                if (lines[i][0] != '+')
                    before += line;
                if (lines[i][0] != '-')
                    after += line;
            }
            string source = Path.GetFullPath(Path.Combine(ProductRoot, file)), text;
            if (!texts.TryGetValue(source, out text))
            {
                if (!File.Exists(source))
                {
                    Refuse(header, "there is no src/" + file);
                    continue;
                }
                text = File.ReadAllText(source);
            }
            int at = text.IndexOf(before, StringComparison.Ordinal);
            if (at < 0 || text.IndexOf(before, at + 1, StringComparison.Ordinal) >= 0)
                Refuse(header, "the lines of this defect are " + (at < 0 ? "not" : "more than once") + " in src/" + file
                    + ": fit the defect to what the code is now");
            else
                texts[source] = text.Substring(0, at) + after + text.Substring(at + before.Length);
        }
        var changed = new List<ITaskItem>();
        var replacements = new List<ITaskItem>();
        string root = Path.GetFullPath(ProductRoot);
        foreach (KeyValuePair<string, string> t in texts)
        {
            string target = Path.Combine(TargetRoot, t.Key.Substring(root.Length));
            Directory.CreateDirectory(Path.GetDirectoryName(target));
            if (!File.Exists(target) || File.ReadAllText(target) != t.Value)
                File.WriteAllText(target, t.Value);
            changed.Add(new TaskItem(t.Key));
            replacements.Add(new TaskItem(target));
        }
        Changed = changed.ToArray();
        Replacements = replacements.ToArray();
        return !Log.HasLoggedErrors;
    }

    private void Refuse(int line, string why) => Log.LogError(null, null, null, Patch, line + 1, 0, 0, 0, why);
}
