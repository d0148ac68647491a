using System.Runtime.InteropServices;
using System.Text;

namespace Ring3.Vmm;

/// <summary>A picture that is drawn by libcairo and saved as PNG. Coordinates are pixels from the top left corner.</summary>
/// <remarks>SAFETY: the two cairo objects are created by the constructor and destroyed once; strings are NUL-terminated copies.</remarks>
internal sealed partial class PngCanvas : IDisposable
{
    private const string C = "libcairo.so.2";
    private const int Argb32 = 0, AntialiasNone = 1, AntialiasDefault = 0, FontNormal = 0, FontBold = 1;

    [LibraryImport(C)] private static partial nint cairo_image_surface_create(int format, int width, int height);
    [LibraryImport(C)] private static partial int cairo_surface_status(nint surface);
    [LibraryImport(C)]
    private static unsafe partial int cairo_surface_write_to_png_stream(nint surface, delegate* unmanaged<nint, byte*, uint, int> write, nint closure);
    [LibraryImport(C)] private static unsafe partial byte* cairo_status_to_string(int status);
    [LibraryImport(C)] private static partial void cairo_surface_destroy(nint surface);
    [LibraryImport(C)] private static partial nint cairo_create(nint surface);
    [LibraryImport(C)] private static partial void cairo_destroy(nint cr);
    [LibraryImport(C)] private static partial void cairo_set_source_rgb(nint cr, double r, double g, double b);
    [LibraryImport(C)] private static partial void cairo_set_antialias(nint cr, int mode);
    [LibraryImport(C)] private static partial void cairo_set_line_width(nint cr, double width);
    [LibraryImport(C)] private static unsafe partial void cairo_set_dash(nint cr, double* dashes, int count, double offset);
    [LibraryImport(C)] private static partial void cairo_rectangle(nint cr, double x, double y, double width, double height);
    [LibraryImport(C)] private static partial void cairo_move_to(nint cr, double x, double y);
    [LibraryImport(C)] private static partial void cairo_line_to(nint cr, double x, double y);
    [LibraryImport(C)] private static partial void cairo_fill(nint cr);
    [LibraryImport(C)] private static partial void cairo_stroke(nint cr);
    [LibraryImport(C)] private static partial void cairo_save(nint cr);
    [LibraryImport(C)] private static partial void cairo_restore(nint cr);
    [LibraryImport(C)] private static partial void cairo_rotate(nint cr, double angle);
    [LibraryImport(C)] private static unsafe partial void cairo_select_font_face(nint cr, byte* family, int slant, int weight);
    [LibraryImport(C)] private static partial void cairo_set_font_size(nint cr, double size);
    [LibraryImport(C)] private static unsafe partial void cairo_show_text(nint cr, byte* text);
    [LibraryImport(C)] private static unsafe partial void cairo_text_extents(nint cr, byte* text, double* extents);

    private readonly nint _surface, _cairo;
    private bool _disposed;

    /// <summary>Whether the library is installed.</summary>
    public static bool IsAvailable { get; } = NativeLibrary.TryLoad(C, out _);

    /// <summary>A white picture.</summary>
    /// <exception cref="DllNotFoundException">The library is missing, see <see cref="IsAvailable"/>.</exception>
    /// <exception cref="IOException">The size is not possible.</exception>
    public PngCanvas(int width, int height)
    {
        _surface = cairo_image_surface_create(Argb32, width, height);
        Check(cairo_surface_status(_surface));
        _cairo = cairo_create(_surface);
        Fill(0, 0, width, height, 0xffffff);
    }

    /// <summary>Fills a rectangle. Colours are 0xRRGGBB.</summary>
    public void Fill(double x, double y, double width, double height, uint colour)
    {
        Source(colour);
        cairo_set_antialias(_cairo, AntialiasNone);
        cairo_rectangle(_cairo, x, y, width, height);
        cairo_fill(_cairo);
        cairo_set_antialias(_cairo, AntialiasDefault);
    }

    /// <summary>Draws a line through points.</summary>
    public unsafe void Line(ReadOnlySpan<(double X, double Y)> points, uint colour, double width = 1, bool dashed = false)
    {
        Source(colour);
        cairo_set_line_width(_cairo, width);
        double dash = 5;
        cairo_set_dash(_cairo, &dash, dashed ? 1 : 0, 0);
        for (int i = 0; i < points.Length; i++)
        {
            if (i == 0)
                cairo_move_to(_cairo, points[i].X, points[i].Y);
            else
                cairo_line_to(_cairo, points[i].X, points[i].Y);
        }
        cairo_stroke(_cairo);
    }

    /// <summary>
    /// Writes a line of text with its baseline at y; <paramref name="align"/>: 0 = starts at x, 0.5 = centred, 1 = ends there. Vertical text reads upwards.
    /// </summary>
    public unsafe void Text(double x, double y, string text, double size, double align = 0, bool bold = false, bool vertical = false, uint colour = 0x202020)
    {
        Source(colour);
        fixed (byte* family = "sans-serif\0"u8)
            cairo_select_font_face(_cairo, family, 0, bold ? FontBold : FontNormal);
        cairo_set_font_size(_cairo, size);
        double* extents = stackalloc double[6];
        fixed (byte* s = Encoding.UTF8.GetBytes(text + '\0'))
        {
            cairo_text_extents(_cairo, s, extents);
            double shift = -align * extents[4];
            cairo_save(_cairo);
            cairo_move_to(_cairo, vertical ? x : x + shift, vertical ? y - shift : y);
            if (vertical)
                cairo_rotate(_cairo, -Math.PI / 2);
            cairo_show_text(_cairo, s);
            cairo_restore(_cairo);
        }
    }

    /// <summary>Writes the picture.</summary>
    /// <exception cref="IOException">It cannot be written.</exception>
    /// <remarks>SAFETY: the handle is of an object that lives as long as the call, in which alone cairo passes it on.</remarks>
    public unsafe void Save(Stream output)
    {
        GCHandle handle = GCHandle.Alloc(output);
        try { Check(cairo_surface_write_to_png_stream(_surface, &Write, GCHandle.ToIntPtr(handle))); }
        finally { handle.Free(); }
    }

    [UnmanagedCallersOnly]
    private static unsafe int Write(nint output, byte* data, uint length)
    {
        const int Success = 0, WriteError = 11;
        try
        {
            ((Stream)GCHandle.FromIntPtr(output).Target!).Write(new ReadOnlySpan<byte>(data, (int)length));
            return Success;
        }
        catch (IOException) { return WriteError; }
    }

    private void Source(uint colour) => cairo_set_source_rgb(_cairo, (colour >> 16 & 255) / 255.0, (colour >> 8 & 255) / 255.0, (colour & 255) / 255.0);

    private static unsafe void Check(int status)
    {
        if (status != 0)
            throw new IOException(Marshal.PtrToStringUTF8((nint)cairo_status_to_string(status)));
    }

    public void Dispose()
    {
        if (_disposed)
            return;
        _disposed = true;
        cairo_destroy(_cairo);
        cairo_surface_destroy(_surface);
    }
}
