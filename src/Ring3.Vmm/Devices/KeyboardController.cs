using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

/// <summary>
/// i8042 without keyboard or mouse: self-tests pass, both ports report that nothing is attached, and command 0xfe (pulse output line 0) resets the machine.
/// </summary>
public sealed class KeyboardController(IMachineControl machine)
{
    public const ushort DataPort = 0x60, CommandPort = 0x64;
    private const byte OutputFull = 1, SystemFlag = 4, Unlocked = 0x10, AuxData = 0x20;
    private const byte AuxTestFailed = 3, InputPort = 0xb0, A20 = 2;
    private readonly RankedLock _lock = new(LockRank.KeyboardController);
    private readonly Queue<(byte Value, bool Aux)> _output = new();
    private byte _config = 0x34, _pendingCommand, _outputPort = 3;

    /// <summary>The data register, port 0x60.</summary>
    public IBusDevice Data => new Register(this, false);
    /// <summary>The command and status register, port 0x64.</summary>
    public IBusDevice Command => new Register(this, true);

    /// <summary>Registers and answers of a snapshot.</summary>
    public void Transfer(StateTransfer state)
    {
        using (_lock.Enter())
        {
            state.Section("keyboard");
            state.Value(ref _config);
            state.Value(ref _pendingCommand);
            state.Value(ref _outputPort);
            byte[] answers = state.Block([.. _output.SelectMany(o => (byte[])[o.Value, o.Aux ? (byte)1 : (byte)0])]);
            for (int i = 0; i + 1 < answers.Length; i += 2)
                _output.Enqueue((answers[i], answers[i + 1] != 0));
        }
    }

    private byte ReadPort(bool status)
    {
        using (_lock.Enter())
        {
            if (!status)
                return _output.TryDequeue(out var next) ? next.Value : (byte)0;
            byte full = _output.TryPeek(out var head) ? (byte)(OutputFull | (head.Aux ? AuxData : 0)) : (byte)0;
            return (byte)(SystemFlag | Unlocked | full);
        }
    }

    private void WritePort(bool command, byte value)
    {
        using (_lock.Enter())
        {
            if (command)
                Execute(value);
            else
                TakeData(value);
        }
    }

    private void Execute(byte command)
    {
        _pendingCommand = 0;
        switch (command)
        {
            case 0x20: Reply(_config); break;
            case 0xaa: Reply(0x55); break;
            case 0xab: Reply(0); break;
            case 0xa9: Reply(AuxTestFailed); break;
            case 0xc0: Reply(InputPort); break;
            case 0xdd: _outputPort &= 0xfd; break;
            case 0xdf: _outputPort |= A20; break;
            case 0xa7: _config |= 0x20; break;
            case 0xa8: _config &= 0xdf; break;
            case 0xad: _config |= 0x10; break;
            case 0xae: _config &= 0xef; break;
            case 0xd0: Reply(_outputPort); break;
            case 0x60 or 0xd1 or 0xd2 or 0xd3 or 0xd4: _pendingCommand = command; break;
            case >= 0xf0 when (command & 1) == 0: machine.End(MachineEnd.Reset, detail: "keyboard controller"); break;
        }
    }

    private void TakeData(byte value)
    {
        byte command = _pendingCommand;
        _pendingCommand = 0;
        switch (command)
        {
            case 0x60: _config = value; break;
            case 0xd1:
                _outputPort = value;
                if ((value & 1) == 0)
                    machine.End(MachineEnd.Reset, detail: "keyboard controller");
                break;
            case 0xd2: Reply(value); break;
            case 0xd3: Reply(value); break; // without the AUX flag: drivers take that for "no mouse port"
            default: Reply(0xfe, aux: command == 0xd4); break; // nobody on the line: "resend"
        }
    }

    private void Reply(byte value, bool aux = false)
    {
        if (_output.Count < 16)
            _output.Enqueue((value, aux));
    }

    private sealed class Register(KeyboardController owner, bool status) : IBusDevice
    {
        public void Read(ulong offset, Span<byte> data)
        {
            data.Fill(0xff);
            data[0] = owner.ReadPort(status);
        }

        public void Write(ulong offset, ReadOnlySpan<byte> data) => owner.WritePort(status, data[0]);
    }
}
