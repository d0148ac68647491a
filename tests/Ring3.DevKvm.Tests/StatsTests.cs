using System.Text;
using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.DevKvm.Tests;

/// <summary>KVM_GET_STATS_FD: the layout of api.rst, KVM's names, and numbers that move.</summary>
[Collection("devkvm")]
public unsafe class StatsTests
{
    private static readonly byte[] s_outHlt = [0xe6, 0xe9, 0xf4];

    private static byte[] ReadAll(Descriptor d)
    {
        var bytes = new byte[16384];
        fixed (byte* p = bytes)
        {
            long n = KvmDevice.Read(d.Handle, p, (ulong)bytes.Length, 0);
            Assert.InRange(n, 100, bytes.Length);
            return bytes[..(int)n];
        }
    }

    private static string Text(byte[] bytes, uint at, uint max) => Encoding.ASCII.GetString(bytes, (int)at, (int)max).TrimEnd('\0');

    private static Dictionary<string, ulong> Parse(byte[] bytes, out string id)
    {
        kvm_stats_header h;
        fixed (byte* p = bytes)
            h = *(kvm_stats_header*)p;
        id = Text(bytes, h.id_offset, h.name_size);
        var values = new Dictionary<string, ulong>();
        uint end = 0;
        for (uint i = 0; i < h.num_desc; i++)
        {
            uint at = h.desc_offset + i * ((uint)sizeof(kvm_stats_desc) + h.name_size);
            kvm_stats_desc d;
            fixed (byte* p = bytes)
                d = *(kvm_stats_desc*)(p + at);
            Assert.Equal(end, d.offset);
            end += d.size * 8u;
            values.Add(Text(bytes, at + (uint)sizeof(kvm_stats_desc), h.name_size), BitConverter.ToUInt64(bytes, (int)(h.data_offset + d.offset)));
        }
        Assert.Equal(bytes.Length, (int)(h.data_offset + end));
        return values;
    }

    /// <summary>QEMU and libvirt tell statistics apart by their names alone.</summary>
    [Fact]
    public void Names_AreUniqueOverVmAndVcpu()
    {
        using Client c = new(s_outHlt);
        using Descriptor vm = c.Vm.Make(KVM_GET_STATS_FD), vcpu = c.Vcpu.Make(KVM_GET_STATS_FD);
        Assert.Empty(Parse(ReadAll(vm), out _).Keys.Intersect(Parse(ReadAll(vcpu), out _).Keys));
    }

    [Fact]
    public void Vcpu_CountsExits()
    {
        using Client c = new(s_outHlt);
        using Descriptor stats = c.Vcpu.Make(KVM_GET_STATS_FD);
        Assert.Equal(0ul, Parse(ReadAll(stats), out string id)["io_exits"]);
        Assert.Equal($"kvm-{Environment.ProcessId}/vcpu-0", id);
        Assert.Equal(0, c.Vcpu.Ioctl(KVM_RUN));
        Dictionary<string, ulong> after = Parse(ReadAll(stats), out _);
        Assert.Equal(1ul, after["io_exits"]);
        Assert.True(after["exits"] >= 1);
        Assert.Contains("halt_wait_hist", after.Keys);
    }

    [Fact]
    public void Vm_HasKvmsNames_AndOutlivesItsDescriptor()
    {
        Client c = new(s_outHlt);
        Descriptor stats = c.Vm.Make(KVM_GET_STATS_FD);
        c.Dispose();
        Dictionary<string, ulong> values = Parse(ReadAll(stats), out string id);
        Assert.Equal($"kvm-{Environment.ProcessId}", id);
        Assert.Contains("remote_tlb_flush", values.Keys);
        Assert.Contains("pages_4k", values.Keys);
        stats.Dispose();
        byte b;
        Assert.Equal(-Errno.EBADF, KvmDevice.Read(stats.Handle, &b, 1, 0));
    }

    [Fact]
    public void Read_HonoursOffsetAndLength()
    {
        using Client c = new();
        using Descriptor stats = c.Vm.Make(KVM_GET_STATS_FD);
        byte[] all = ReadAll(stats);
        byte* b = stackalloc byte[10];
        Assert.Equal(10, KvmDevice.Read(stats.Handle, b, 10, 20));
        Assert.Equal(all[20..30], new ReadOnlySpan<byte>(b, 10).ToArray());
        Assert.Equal(0, KvmDevice.Read(stats.Handle, b, 10, all.Length));
        Assert.Equal(-Errno.EFAULT, KvmDevice.Read(stats.Handle, (byte*)8, 10, 0));
        Assert.Equal(-Errno.ENOTTY, stats.Ioctl(KVM_RUN));
    }
}
