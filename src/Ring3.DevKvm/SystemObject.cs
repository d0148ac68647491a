namespace Ring3.DevKvm;

/// <summary>An open /dev/kvm. Stateless: every open has one of its own only so that closes balance.</summary>
internal sealed partial class SystemObject : KvmObject
{
    public override ObjectKind Kind => ObjectKind.System;
    public override string Name => "kvm";

    public override void Close()
    {
    }
}
