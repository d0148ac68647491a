namespace Ring3.Cpu;

// Which of the host's units hold guest state while translated code runs. Callbacks have stored them; what CpuState.Units says is loaded before translated
// code goes on.
// SAFETY: reads and writes fields of the state; the host's units are loaded by code that knows their images' places in it.
internal sealed unsafe partial class Translator
{
    /// <summary>Makes the units the guest's when the guest may use them now. False: the interpreter is to find out what happens instead.</summary>
    private static bool MakeLive(CpuState* c, Units need)
    {
        Units units = (Units)c->Units;
        if (SseGate.IsOpen(c))
            units |= need & Units.Sse;
        if (AvxGate.IsOpen(c))
            units |= need & Units.Avx;
        if ((need & Units.Mxcsr) != 0 && MxcsrUnit.FitsHost(c->Mxcsr))
        {
            MxcsrUnit.Park(c);
            units |= Units.Mxcsr;
        }
        if ((need & Units.X87) != 0 && MakeX87Live(c))
            units |= Units.X87;
        if ((units & need) != need)
            return false;
        c->Units = (byte)units;
        return true;
    }

    /// <summary>False: the unit is not available, or does not mask every exception.</summary>
    private static bool MakeX87Live(CpuState* c)
    {
        if (!X87Handlers.IsOpen(c))
            return false;
        if (c->X87Live == X87Unit.Parked)
            X87Unit.Enter(c);
        return c->X87Live == X87Unit.Live;
    }

    /// <summary>After a handler, which may have parked the x87 unit: whether translated code that relies on the units may go on.</summary>
    private static bool AreUnitsValid(CpuState* c)
    {
        Units units = (Units)c->Units;
        if ((units & Units.Sse) != 0 && !SseGate.IsOpen(c) || (units & Units.Avx) != 0 && !AvxGate.IsOpen(c))
            return false;
        if ((units & Units.X87) != 0 && !MakeX87Live(c))
            return false;
        if ((units & Units.Mxcsr) == 0)
            return true;
        MxcsrUnit.Park(c);
        return MxcsrUnit.FitsHost(c->Mxcsr);
    }
}
