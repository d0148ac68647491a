using System.Diagnostics.CodeAnalysis;
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>Confines the process to what it has open, for good.</summary>
public static class Sandbox
{
    /// <summary>Also Landlock takes from the process what it can take; else the filter of system calls alone.</summary>
    public static bool HasLandlock => Landlock.Version > 0;

    /// <summary>Confines all threads of the process, and those to come.</summary>
    /// <param name="helpers">Children that it ends by a signal.</param>
    /// <exception cref="BootException">The kernel does not do it; the process may have lost some of its rights.</exception>
    public static void Enter(IReadOnlyList<int> helpers)
    {
        LoadAll();
        int error = Landlock.RestrictAllThreads();
        if (error is not (0 or -NoSuchCall or -NotSupported))
            throw Failure($"Landlock: {Marshal.GetPInvokeErrorMessage(-error)}");
        int result = SandboxPolicy.Create(Environment.ProcessId, helpers).Install();
        if (result != 0)
            throw Failure(result < 0 ? $"seccomp: {Marshal.GetPInvokeErrorMessage(-result)}" : $"seccomp: thread {result} has a filter of its own");
    }

    private const int NoSuchCall = 38, NotSupported = 95;

    private static BootException Failure(string why) =>
        new(ExitStatus.Resources, $"this system does not let ring3 confine itself ({why}); --no-sandbox runs the guest without");

    /// <summary>
    /// What the runtime loads when it is first used, it can load now only: assemblies. A program that was compiled ahead of time is whole.
    /// </summary>
    private static void LoadAll()
    {
        if (!RuntimeFeature.IsDynamicCodeSupported || Assembly.GetEntryAssembly() is not { } entry)
            return;
        var known = new HashSet<string>();
        var open = new Queue<Assembly>([entry]);
        while (open.TryDequeue(out Assembly? assembly))
        {
            foreach (AssemblyName name in References(assembly))
            {
                if (!known.Add(name.FullName))
                    continue;
                try { open.Enqueue(Assembly.Load(name)); }
                catch (FileNotFoundException) { }
            }
        }
    }

    [UnconditionalSuppressMessage("Trimming", "IL2026", Justification = "Not reached in a program that was trimmed: that is compiled ahead of time")]
    private static AssemblyName[] References(Assembly assembly) => assembly.GetReferencedAssemblies();
}
