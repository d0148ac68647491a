// A KVM client in C# that knows nothing of Ring3: it opens /dev/kvm through the C library, as on a machine that has one.
// Under `ring3 exec` it runs on Ring3. The guest prints "hello" through port 0x3f8; a thread interrupts its endless loop with a signal.

using System.Runtime.InteropServices;
using System.Text;
using static Libc;

[assembly: System.Runtime.Versioning.SupportedOSPlatform("linux")]

const uint GetApiVersion = 0xae00, CreateVm = 0xae01, GetVcpuMmapSize = 0xae04, CreateVcpu = 0xae41, SetUserMemoryRegion = 0x4020ae46, Run = 0xae80;
const uint GetRegs = 0x8090ae81, SetRegs = 0x4090ae82, GetSregs = 0x8138ae83, SetSregs = 0x4138ae84;
const int Eintr = 4, ExitIo = 2, ExitIntr = 10;

// mov si, text; again: lodsb; test al, al; jz loop; mov dx, 0x3f8; out dx, al; jmp again; loop: jmp loop; text: "hello"
byte[] code = [0xbe, 0x10, 0x10, 0xac, 0x84, 0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5, 0xeb, 0xfe, .. "hello"u8, 0];

unsafe
{
    int kvm = Check(open("/dev/kvm", 2 | 0x80000, 0), "open /dev/kvm");
    if (Check(ioctl(kvm, GetApiVersion, 0), "KVM_GET_API_VERSION") != 12)
        throw new InvalidOperationException("this is no KVM");
    int vm = Check(ioctl(kvm, CreateVm, 0), "KVM_CREATE_VM");
    byte* memory = (byte*)mmap(0, 0x10000, 3, 0x22, -1, 0);
    code.CopyTo(new Span<byte>(memory + 0x1000, code.Length));
    ulong* region = stackalloc ulong[] { 0, 0, 0x10000, (ulong)memory };
    Check(ioctl(vm, SetUserMemoryRegion, (nint)region), "KVM_SET_USER_MEMORY_REGION");
    int vcpu = Check(ioctl(vm, CreateVcpu, 0), "KVM_CREATE_VCPU");
    byte* run = (byte*)mmap(0, (nuint)ioctl(kvm, GetVcpuMmapSize, 0), 3, 1, vcpu, 0);

    byte* sregs = stackalloc byte[312];
    Check(ioctl(vcpu, GetSregs, (nint)sregs), "KVM_GET_SREGS");
    *(ulong*)sregs = 0;          // cs.base
    *(ushort*)(sregs + 12) = 0;  // cs.selector
    Check(ioctl(vcpu, SetSregs, (nint)sregs), "KVM_SET_SREGS");
    ulong* regs = stackalloc ulong[18];
    regs[16] = 0x1000;           // rip
    regs[17] = 2;                // rflags
    Check(ioctl(vcpu, SetRegs, (nint)regs), "KVM_SET_REGS");

    // A signal of this process's own runtime must reach it, too: a collection stops the thread, which is in a system call.
    using PosixSignalRegistration registration = PosixSignalRegistration.Create(PosixSignal.SIGWINCH, _ => { });
    int self = gettid();
    StringBuilder text = new();
    for (int i = 0; i < 5; i++)
    {
        Check(ioctl(vcpu, Run, 0), "KVM_RUN");
        if (*(int*)(run + 8) != ExitIo || *(ushort*)(run + 34) != 0x3f8)
            throw new InvalidOperationException($"exit {*(int*)(run + 8)} is not the port write");
        text.Append((char)run[*(ulong*)(run + 40)]);
        GC.Collect();
    }
    Thread kicker = new(() =>
    {
        GC.Collect();
        // Until the signal has come: it may be sent before the guest runs, and is then the handler's alone.
        while (Volatile.Read(ref Kick.Done) == 0)
        {
            tgkill(Environment.ProcessId, self, 28);
            Thread.Yield();
        }
    });
    kicker.Start();
    int result = ioctl(vcpu, Run, 0);
    int error = Marshal.GetLastPInvokeError();
    Volatile.Write(ref Kick.Done, 1);
    kicker.Join();
    if (result != -1 || error != Eintr || *(int*)(run + 8) != ExitIntr)
        throw new InvalidOperationException($"a signal does not interrupt the guest: {result}, errno {error}");
    Check(ioctl(vcpu, GetRegs, (nint)regs), "KVM_GET_REGS");
    if (regs[16] != 0x100e)
        throw new InvalidOperationException($"the guest is at {regs[16]:x}");
    close(vcpu);
    close(vm);
    close(kvm);
    Console.WriteLine(text);
}

static int Check(int result, string call) => result >= 0 ? result : throw new InvalidOperationException($"{call}: errno {Marshal.GetLastPInvokeError()}");

internal static class Kick
{
    internal static int Done;
}

/// <summary>The C library, by the name that .NET programs use.</summary>
internal static class Libc
{
#pragma warning disable SYSLIB1054, CA2101 // the oldest form: looked up by name in the library's handle
    [DllImport("libc", SetLastError = true)]
    internal static extern int open(string path, int flags, int mode);

    [DllImport("libc", SetLastError = true)]
    internal static extern int ioctl(int fd, nuint request, nint argument);

    [DllImport("libc", SetLastError = true)]
    internal static extern nint mmap(nint at, nuint length, int protection, int flags, int fd, nint offset);

    [DllImport("libc", SetLastError = true)]
    internal static extern int close(int fd);

    [DllImport("libc")]
    internal static extern int gettid();

    [DllImport("libc")]
    internal static extern int tgkill(int process, int thread, int signal);
}
