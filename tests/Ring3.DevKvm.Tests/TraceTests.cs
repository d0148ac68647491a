using System.Reflection;
using System.Text;
using Ring3.Abi;
using Decoder = Ring3.DevKvm.Decoder;
using static Ring3.Abi.KvmApi;

namespace Ring3.DevKvm.Tests;

/// <summary>Decoding for traces.</summary>
public unsafe class TraceTests
{
    [Fact]
    public void EveryIoctl_HasAName()
    {
        // Requests with a size in their number, or of the classic blocks, are ioctls; the type byte tells.
        foreach (FieldInfo f in typeof(KvmApi).GetFields().Where(f => f is { IsLiteral: true } && f.FieldType == typeof(uint)))
        {
            uint value = (uint)f.GetRawConstantValue()!;
            if ((value >> 8 & 0xff) == KVMIO && (value & 0x3fff_0000) >> 16 <= 4096)
                Assert.Equal(f.Name, KvmNames.Ioctl(value));
        }
        Assert.Equal("KVM_CAP_IRQCHIP", KvmNames.Capability(0));
        Assert.Equal("-1 EINVAL", KvmNames.Result(-Errno.EINVAL));
    }

    /// <summary>The fixed part of each schema is not longer than the structure that the ioctl's number names.</summary>
    [Fact]
    public void Schemas_FitTheirStructures()
    {
        byte* memory = stackalloc byte[8192];
        foreach ((uint command, string schema) in Schemas.Ioctls)
        {
            var text = new StringBuilder();
            string plain = schema.Split('|')[0];
            Decoder.Append(text, plain, (ulong)memory);
            Assert.StartsWith("{", text.ToString());
        }
    }

    [Fact]
    public void Structures_PrintFieldByField()
    {
        var region = new kvm_userspace_memory_region { slot = 1, flags = 0, guest_phys_addr = 0x10000, memory_size = 0x200000,
            userspace_addr = 0x7f0000000000 };
        var text = new StringBuilder();
        Decoder.Append(text, Schemas.Ioctls[KVM_SET_USER_MEMORY_REGION], (ulong)&region);
        Assert.Equal("{slot=1, flags=0, guest_phys_addr=0x10000, memory_size=0x200000, userspace_addr=0x7f0000000000}", text.ToString());
    }

    [Fact]
    public void RepeatedPart_FollowsTheCount()
    {
        uint* words = stackalloc uint[10];
        (words[0], words[2], words[4], words[6], words[8]) = (2, 0x10, 5, 0x11, 7);
        var text = new StringBuilder();
        Decoder.Append(text, Schemas.Ioctls[KVM_GET_MSRS], (ulong)words);
        Assert.Equal("{nmsrs=2, [{index=0x10, data=5}, {index=0x11, data=7}]}", text.ToString());
    }

    [Fact]
    public void MissingMemory_PrintsAsItsAddress()
    {
        var text = new StringBuilder();
        Decoder.Append(text, Schemas.Ioctls[KVM_GET_REGS], 0x123);
        Assert.Equal("0x123", text.ToString());
    }
}
