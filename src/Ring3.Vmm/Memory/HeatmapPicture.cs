using System.Globalization;
using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>Draws a <see cref="WorkingSetHistory"/>: time to the right; guest addresses upwards, coloured by heat; below, how much is resident and how much is
/// in use.</summary>
public static class HeatmapPicture
{
    private const int Width = 1120, Height = 800;
    private const double Left = 96, Right = 900, Top = 56, Bottom = 540, CurveTop = 590, CurveBottom = 730;
    private const uint Frame = 0x404040, Grid = 0xd8d8d8, UntouchedColour = 0xf2f2f2, ResidentColour = 0x1f77b4, ActiveColour = 0xd62728,
        LimitColour = 0x202020;

    /// <summary>Cold to hot: dark violet, magenta, orange, light yellow.</summary>
    private static readonly uint[] s_stops = [0x1b0c41, 0x4a0c6b, 0x781c6d, 0xa52c60, 0xcf4446, 0xed6925, 0xfb9b06, 0xf7d13d, 0xfcffa4];

    /// <exception cref="IOException">It cannot be written.</exception>
    public static void Save(WorkingSetHistory history, Stream output)
    {
        using var canvas = new PngCanvas(Width, Height);
        double seconds = Math.Max(history.Moments.Count == 0 ? 1 : history.Moments[^1].Seconds, 0.1);
        string limit = history.Limit is { } bytes ? $", resident limit {Size(bytes)}" : "";
        canvas.Text(Left, 32, $"Working set over time: guest memory {Size(history.MemoryBytes)}{limit}", 18, bold: true);
        DrawHeat(canvas, history, seconds);
        DrawCurves(canvas, history, seconds);
        DrawTime(canvas, seconds);
        DrawLegend(canvas, history);
        canvas.Save(output);
    }

    private static void DrawHeat(PngCanvas canvas, WorkingSetHistory history, double seconds)
    {
        canvas.Fill(Left, Top, Right - Left, Bottom - Top, UntouchedColour);
        double rowHeight = (Bottom - Top) / history.Rows;
        for (int i = 0; i < history.Moments.Count; i++)
        {
            double from = i == 0 ? Left : X(history.Moments[i - 1].Seconds, seconds), to = X(history.Moments[i].Seconds, seconds);
            byte[] heat = history.Moments[i].Heat;
            for (int row = 0; row < heat.Length;)
            {
                int end = row + 1;
                while (end < heat.Length && heat[end] == heat[row])
                    end++;
                if (heat[row] != WorkingSetHistory.Untouched)
                    canvas.Fill(Math.Floor(from), Math.Floor(Bottom - end * rowHeight), Math.Ceiling(to) - Math.Floor(from),
                        Math.Ceiling((end - row) * rowHeight) + 1, Colour(heat[row]));
                row = end;
            }
        }
        Box(canvas, Top, Bottom);
        canvas.Text(26, (Top + Bottom) / 2, "guest-physical address", 14, 0.5, vertical: true);
        for (int tick = 0; tick <= 8; tick++)
        {
            double y = Bottom - (Bottom - Top) * tick / 8;
            canvas.Line([(Left - 5, y), (Left, y)], Frame);
            ulong at = history.MemoryBytes / 8 * (ulong)tick;
            canvas.Text(Left - 9, y + 4, Size(at > history.LowRamEnd ? at - history.LowRamEnd + (4UL << 30) : at), 12, 1);
        }
    }

    private static void DrawCurves(PngCanvas canvas, WorkingSetHistory history, double seconds)
    {
        ulong most = history.Limit ?? 0;
        foreach (WorkingSetHistory.Moment m in history.Moments)
            most = Math.Max(most, m.Resident);
        double scale = (CurveBottom - CurveTop) / (1.1 * Math.Max(most, 1));
        for (int tick = 0; tick <= 4; tick++)
        {
            double y = CurveBottom - scale * most * tick / 4;
            canvas.Line([(Left, y), (Right, y)], Grid);
            canvas.Text(Left - 9, y + 4, Size(most / 4 * (ulong)tick), 12, 1);
        }
        canvas.Line([.. from m in history.Moments select (X(m.Seconds, seconds), CurveBottom - scale * m.Resident)], ResidentColour, 2);
        canvas.Line([.. from m in history.Moments select (X(m.Seconds, seconds), CurveBottom - scale * m.Active)], ActiveColour, 1.5);
        if (history.Limit is { } limit)
            canvas.Line([(Left, CurveBottom - scale * limit), (Right, CurveBottom - scale * limit)], LimitColour, 1.5, dashed: true);
        Box(canvas, CurveTop, CurveBottom);
        canvas.Text(26, (CurveTop + CurveBottom) / 2, "memory", 14, 0.5, vertical: true);
    }

    private static void DrawTime(PngCanvas canvas, double seconds)
    {
        double step = Step(seconds / 8);
        for (double t = 0; t <= seconds * 1.0001; t += step)
        {
            double x = X(t, seconds);
            canvas.Line([(x, CurveBottom), (x, CurveBottom + 5)], Frame);
            canvas.Line([(x, Bottom), (x, Bottom + 5)], Frame);
            canvas.Text(x, CurveBottom + 20, t.ToString("0.###", CultureInfo.InvariantCulture), 12, 0.5);
        }
        canvas.Text((Left + Right) / 2, CurveBottom + 44, "seconds", 14, 0.5);
    }

    private static void DrawLegend(PngCanvas canvas, WorkingSetHistory history)
    {
        const double X0 = 924, Bar = 24, BarTop = 110, BarBottom = 390;
        canvas.Text(X0, 74, "mean heat of the", 13, bold: true);
        canvas.Text(X0, 91, "memory in a row", 13, bold: true);
        for (int i = 0; i < BarBottom - BarTop; i++)
            canvas.Fill(X0, BarBottom - 1 - i, Bar, 1, Colour((byte)(1 + 254 * i / (BarBottom - BarTop))));
        canvas.Text(X0 + Bar + 8, BarTop + 6, "youngest generation", 12);
        canvas.Text(X0 + Bar + 8, (BarTop + BarBottom) / 2, "half of it evicted,", 12);
        canvas.Text(X0 + Bar + 8, (BarTop + BarBottom) / 2 + 15, "or half as young", 12);
        canvas.Text(X0 + Bar + 8, BarBottom, "all evicted", 12);
        canvas.Fill(X0, BarBottom + 20, Bar, 16, UntouchedColour);
        canvas.Line([(X0, BarBottom + 20), (X0 + Bar, BarBottom + 20), (X0 + Bar, BarBottom + 36), (X0, BarBottom + 36), (X0, BarBottom + 20)], Grid);
        canvas.Text(X0 + Bar + 8, BarBottom + 33, "never used", 12);

        (uint Colour, string Text, bool Dashed)[] curves =
            [(ResidentColour, "resident", false), (ActiveColour, "used lately", false), (LimitColour, "resident limit", true)];
        double y = CurveTop + 14;
        foreach ((uint colour, string text, bool dashed) in curves[..(history.Limit is null ? 2 : 3)])
        {
            canvas.Line([(X0, y - 4), (X0 + Bar, y - 4)], colour, 2, dashed);
            canvas.Text(X0 + Bar + 8, y, text, 12);
            y += 22;
        }
        if (history.Moments.Count == 0)
            return;
        canvas.Text(X0, y + 12, "pages read back:", 12);
        canvas.Text(X0, y + 29, history.Moments[^1].Refaults.ToString("N0", CultureInfo.InvariantCulture), 12, bold: true);
    }

    private static void Box(PngCanvas canvas, double top, double bottom) =>
        canvas.Line([(Left, top), (Right, top), (Right, bottom), (Left, bottom), (Left, top)], Frame);

    private static double X(double t, double seconds) => Left + (Right - Left) * t / seconds;

    /// <summary>1, 2 or 5 times a power of ten, at least the given value.</summary>
    private static double Step(double least)
    {
        double power = Math.Pow(10, Math.Floor(Math.Log10(least)));
        foreach (double factor in (double[])[1, 2, 5])
            if (factor * power >= least)
                return factor * power;
        return 10 * power;
    }

    private static string Size(ulong bytes) => bytes switch
    {
        0 => "0",
        >= 1UL << 30 when bytes % (1UL << 26) == 0 => string.Create(CultureInfo.InvariantCulture, $"{bytes / (double)(1UL << 30):0.####} GiB"),
        >= 1UL << 20 => string.Create(CultureInfo.InvariantCulture, $"{bytes / (double)(1UL << 20):0.#} MiB"),
        _ => $"{bytes >> 10} KiB",
    };

    private static uint Colour(byte heat)
    {
        double at = (heat - WorkingSetHistory.Coldest) / (double)(WorkingSetHistory.Hottest - WorkingSetHistory.Coldest) * (s_stops.Length - 1);
        int i = Math.Min((int)at, s_stops.Length - 2);
        uint Mix(int shift) => (uint)Math.Round((s_stops[i] >> shift & 255) * (1 - (at - i)) + (s_stops[i + 1] >> shift & 255) * (at - i)) << shift;
        return Mix(16) | Mix(8) | Mix(0);
    }
}
