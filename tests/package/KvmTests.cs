// A unit test that opens /dev/kvm itself: added to a copy of samples/BootSectorTest for the recipe of docs/ci.md.

using System.Runtime.InteropServices;

public class KvmTests
{
    [DllImport("libc")]
    private static extern int open([MarshalAs(UnmanagedType.LPStr)] string path, int flags, int mode);

    [DllImport("libc")]
    private static extern int ioctl(int fd, ulong request, nint argument);

    [Fact]
    public void KvmIsThere()
    {
        int kvm = open("/dev/kvm", 2 | 0x80000, 0);
        Assert.Equal(12, ioctl(kvm, 0xae00, 0));
        Assert.True(ioctl(kvm, 0xae01, 0) > kvm);
    }
}
