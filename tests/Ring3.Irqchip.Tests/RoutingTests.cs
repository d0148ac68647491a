using Ring3.Abi;

namespace Ring3.Irqchip.Tests;

public class RoutingTests
{
    private static kvm_irq_routing_entry ChipRoute(uint gsi, uint chip, uint pin) =>
        new() { gsi = gsi, type = KvmApi.KVM_IRQ_ROUTING_IRQCHIP, irqchip = new kvm_irq_routing_irqchip { irqchip = chip, pin = pin } };

    private static kvm_irq_routing_entry Msi(uint gsi, uint lo, uint data, uint hi = 0) =>
        new() { gsi = gsi, type = KvmApi.KVM_IRQ_ROUTING_MSI, msi = new kvm_irq_routing_msi { address_lo = lo, address_hi = hi, data = data } };

    [Fact]
    public void Default_ReachesPicAndIoapic()
    {
        var rig = new Rig();
        rig.Redirect(7, 0x37);
        rig.Redirect(20, 0x44);
        Assert.Equal(2, rig.Chip.SetIrq(0, 7, true));
        Assert.Equal(1u, rig.Requested(0x37));
        Assert.Equal(0x80, rig.Chip.Pic!.GetState(master: true).irr);
        Assert.Equal(1, rig.Chip.SetIrq(0, 20, true));
        Assert.Equal(-1, rig.Chip.SetIrq(0, 24, true));
        Assert.Equal(-1, rig.Chip.SetIrq(0, uint.MaxValue, true));
    }

    [Fact]
    public void PcWiring_PutsTheTimerOnPin2()
    {
        var rig = new Rig();
        Assert.Equal(0, rig.Chip.Routing.Set(IrqRouting.PcWiring()));
        rig.Redirect(0, 0x30);
        rig.Redirect(2, 0x32);
        _ = rig.Chip.SetIrq(VmIrqchip.PitSourceId, 0, true);
        Assert.Equal((0u, 1u), (rig.Requested(0x30), rig.Requested(0x32)));
        Assert.Equal(1, rig.Chip.Pic!.GetState(master: true).irr);
    }

    [Fact]
    public void Set_RejectsWhatKvmRejects()
    {
        var rig = new Rig();
        IrqRouting routing = rig.Chip.Routing;
        var withFlags = ChipRoute(0, 2, 0);
        withFlags.flags = 1;
        kvm_irq_routing_entry[][] bad =
        [
            [ChipRoute(4096, 2, 0)], [ChipRoute(0, 3, 0)], [ChipRoute(0, 2, 24)], [ChipRoute(0, 0, 8)], [ChipRoute(0, 1, 8)], [withFlags],
            [ChipRoute(0, 2, 0), ChipRoute(0, 2, 1)], [Msi(0, 0, 0), Msi(0, 0, 1)], [ChipRoute(0, 2, 0), Msi(0, 0, 1)],
            [new kvm_irq_routing_entry { type = 9 }], [new kvm_irq_routing_entry { type = KvmApi.KVM_IRQ_ROUTING_XEN_EVTCHN }],
            new kvm_irq_routing_entry[4097],
        ];
        foreach (kvm_irq_routing_entry[] entries in bad)
            Assert.Equal(-Errno.EINVAL, routing.Set(entries));
        Assert.Equal(1, routing.Generation);
        Assert.Equal(0, routing.Set([ChipRoute(4095, 2, 1), ChipRoute(4095, 0, 1), Msi(100, 0xfee0_0000, 0x41)]));
        rig.Redirect(1, 0x31);
        Assert.True(rig.Chip.SetIrq(0, 4095, true) > 0);
        Assert.Equal(1, rig.Chip.SetIrq(0, 100, true));
        Assert.Equal(-1, rig.Chip.SetIrq(0, 100, false));
        Assert.Equal(1u, rig.Requested(0x41));
        Assert.Equal(-1, rig.Chip.SetIrq(0, 4, true));
        Assert.Equal(-Errno.EINVAL, new Rig(split: true).Chip.Routing.Set([ChipRoute(0, 2, 0)]));
    }

    [Theory]
    [InlineData(0xfee0_3000, 0, 0x0041, false, false, 3u)]
    [InlineData(0xfee0_3000, 0x100, 0x0041, false, false, 3u)]      // upper half ignored in the old format
    [InlineData(0xfee0_3000, 0x100, 0x0041, true, false, 0x103u)]
    [InlineData(0xfee0_3040, 0, 0x0041, false, true, 0x203u)]       // 15-bit id
    [InlineData(0xfee0_3fe0, 0, 0x0041, false, true, 0x7f03u)]
    public void Msi_DestinationFormats(uint lo, uint hi, uint data, bool x2, bool extended, uint dest)
    {
        var rig = new Rig();
        rig.Chip.Bus.X2ApicFormat = x2;
        rig.Chip.Bus.ExtendedDestinationId = extended;
        Assert.True(rig.Chip.Routing.TryDecodeMsi(lo, hi, data, out LapicInterrupt message));
        Assert.Equal(dest, message.Dest);
    }

    [Fact]
    public void Msi_FieldsAndDelivery()
    {
        var rig = new Rig(3);
        Assert.True(rig.Chip.Routing.TryDecodeMsi(0xfee0_200c, 0, 0xc1aa, out LapicInterrupt m));
        Assert.Equal((0xaa, DeliveryMode.LowestPriority, true, true, true), (m.Vector, m.Mode, m.Logical, m.RedirectionHint, m.Level));
        Assert.Equal(1, rig.Chip.SetMsi(new kvm_msi { address_lo = 0xfee0_2000, data = 0x61 }));
        Assert.Equal(0b100u, rig.Requested(0x61));
        Assert.Equal(0, rig.Chip.SetMsi(new kvm_msi { address_lo = 0xfee0_9000, data = 0x61 }));
        Assert.Equal(1, rig.Chip.SetMsi(new kvm_msi { address_lo = 0xfee0_1000, data = 0x400 }));
        Assert.Equal(1, rig.Vcpus[1].Nmis);
        Assert.Equal(-Errno.EINVAL, rig.Chip.SetMsi(new kvm_msi { flags = 2 }));
        rig.Chip.Bus.X2ApicFormat = true;
        Assert.Equal(-Errno.EINVAL, rig.Chip.SetMsi(new kvm_msi { address_lo = 0xfee0_0000, address_hi = 1, data = 0x61 }));
    }

    [Fact]
    public void Msi_BroadcastQuirk()
    {
        var rig = new Rig(2).UseX2Apic();
        Assert.Equal(2, rig.Chip.SetMsi(new kvm_msi { address_lo = 0xfeef_f000, data = 0x61 }));
        rig.Chip.Bus.BroadcastQuirkDisabled = true;
        Assert.Equal(0, rig.Chip.SetMsi(new kvm_msi { address_lo = 0xfeef_f000, data = 0x62 }));
    }

    [Fact]
    public void Split_LevelMsiEoiGoesToTheClient()
    {
        var rig = new Rig(2, split: true);
        Assert.Null(rig.Chip.Ioapic);
        Assert.Equal(0, rig.Chip.Routing.Set([Msi(4, 0xfee0_1000, 0xc055), Msi(5, 0xfee0_1000, 0x0056), Msi(30, 0xfee0_1000, 0xc057)]));
        foreach (uint gsi in (uint[])[4, 5, 30])
        {
            Assert.Equal(1, rig.Chip.SetIrq(0, gsi, true));
            Assert.True(rig.Apics[1].AckInterrupt() > 0);
            rig.Apics[1].SetEoi();
        }
        Assert.Equal([0x55], rig.Vcpus[1].ClientEois);
        Assert.Empty(rig.Vcpus[0].ClientEois);
        Assert.Equal(0, rig.Chip.Routing.Set([]));
        _ = rig.Chip.SetMsi(new kvm_msi { address_lo = 0xfee0_1000, data = 0xc055 });
        _ = rig.Apics[1].AckInterrupt();
        rig.Apics[1].SetEoi();
        Assert.Single(rig.Vcpus[1].ClientEois);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Split_EoiReachesTheClientAfterThePinMovedToAnotherCpu(bool x2apic)
    {
        var rig = new Rig(2, split: true);
        if (x2apic)
            rig.UseX2Apic();
        Assert.Equal(0, rig.Chip.Routing.Set([Msi(4, 0xfee0_1000, 0xc055)]));
        Assert.Equal(1, rig.Chip.SetIrq(0, 4, true));
        Assert.Equal(0x55, rig.Apics[1].AckInterrupt());
        Assert.Equal(0, rig.Chip.Routing.Set([Msi(4, 0xfee0_0000, 0xc055)]));
        rig.Apics[1].SetEoi();
        Assert.Equal([0x55], rig.Vcpus[1].ClientEois);
        Assert.Empty(rig.Vcpus[0].ClientEois);

        Assert.Equal(1, rig.Chip.SetIrq(0, 4, true));
        Assert.Equal(0x55, rig.Apics[0].AckInterrupt());
        rig.Apics[0].SetEoi();
        Assert.Equal([0x55], rig.Vcpus[0].ClientEois);
    }

    private sealed class Recorder : IRouteExtension
    {
        internal readonly List<(uint, bool)> Fired = [];
        public int Validate(in kvm_irq_routing_entry entry) => entry.xen_evtchn.priority == KvmApi.KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL ? 0 : -Errno.EINVAL;

        public int Fire(in kvm_irq_routing_entry entry, bool level)
        {
            Fired.Add((entry.xen_evtchn.port, level));
            return level ? 1 : -1;
        }

        internal readonly List<uint> Messages = [];

        public bool TryMessage(uint addressLow, uint addressHigh, uint data, out int result)
        {
            Messages.Add(addressLow);
            result = 1;
            return addressLow == 0xfee1_0000;
        }
    }

    [Fact]
    public void Extension_ReceivesItsRoutes()
    {
        var rig = new Rig();
        var recorder = new Recorder();
        rig.Chip.Routing.Extension = recorder;
        var entry = new kvm_irq_routing_entry { gsi = 40, type = KvmApi.KVM_IRQ_ROUTING_XEN_EVTCHN, xen_evtchn = new kvm_irq_routing_xen_evtchn { port = 7,
            vcpu = 0, priority = uint.MaxValue } };
        Assert.Equal(0, rig.Chip.Routing.Set([entry]));
        Assert.Equal(1, rig.Chip.SetIrq(0, 40, true));
        Assert.Equal([(7u, true)], recorder.Fired);
    }

    [Fact]
    public void Extension_IsOfferedMessagesThatNoLocalApicUnderstands()
    {
        var rig = new Rig();
        var recorder = new Recorder();
        rig.Chip.Routing.Extension = recorder;
        // Vector 0 by ExtINT, directly and behind a route; another vector and another mode are a local APIC's.
        Assert.Equal(1, rig.Chip.SetMsi(new kvm_msi { address_lo = 0xfee1_0000, data = 7 << 8 }));
        Assert.Equal(0, rig.Chip.Routing.Set([new kvm_irq_routing_entry { gsi = 40, type = KvmApi.KVM_IRQ_ROUTING_MSI,
            msi = new kvm_irq_routing_msi { address_lo = 0xfee1_0000, data = 7 << 8 } }]));
        Assert.Equal(1, rig.Chip.SetIrq(0, 40, true));
        Assert.Equal(-1, rig.Chip.SetIrq(0, 40, false));
        Assert.Equal([0xfee1_0000u, 0xfee1_0000u], recorder.Messages);
        Assert.Equal(1, rig.Chip.SetMsi(new kvm_msi { address_lo = 0xfee0_0000, data = 0x55 }));
        _ = rig.Chip.SetMsi(new kvm_msi { address_lo = 0xfee1_0000, data = 7 << 8 | 0x55 });
        Assert.Equal(2, recorder.Messages.Count);
    }
}

public class DumpTests
{
    [Fact]
    public void Dump_ShowsWhatIsPending()
    {
        var rig = new Rig(2);
        _ = rig.Chip.CreatePit(true);
        rig.Redirect(11, 0x5b | 1 << 15, 1);
        _ = rig.Chip.SetIrq(0, 11, true);
        var text = new StringWriter();
        rig.Chip.Dump(text);
        string dump = text.ToString();
        Assert.Contains("lapic 1: id=1 mode=XApic", dump);
        Assert.Contains("irr=5b isr=-", dump);
        Assert.Contains("ioapic pin 11: vector=0x5b Fixed level remote-irr pending dest=0x1 physical", dump);
        Assert.Contains("pic1: irr=08", dump);
    }
}
