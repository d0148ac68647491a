using System.Text;
using Ring3.Host;

namespace Ring3.DevKvm;

/// <summary>Prints memory by a schema (see <see cref="Schemas"/>). Memory that is not there prints as its address.</summary>
internal static class Decoder
{
    private const int MaxRepeated = 256;

    /// <summary>Appends <c>{name=value, ...}</c> for the structure at an address.</summary>
    public static void Append(StringBuilder text, string schema, ulong address)
    {
        int bar = schema.IndexOf('|');
        int mark = text.Length;
        ulong at = address;
        text.Append('{');
        bool ok = Fields(text, bar < 0 ? schema : schema[..bar], ref at);
        if (ok && bar >= 0)
            ok = Repeated(text, schema[(bar + 1)..], address, at);
        text.Append('}');
        if (ok)
            return;
        text.Length = mark;
        text.Append($"0x{address:x}");
    }

    private static bool Repeated(StringBuilder text, string schema, ulong header, ulong at)
    {
        if (!UserCopy.TryRead4(header, out uint count))
            return false;
        text.Append(", [");
        for (uint i = 0; i < Math.Min(count, MaxRepeated); i++)
        {
            text.Append(i == 0 ? "{" : ", {");
            if (!Fields(text, schema, ref at))
                return false;
            text.Append('}');
        }
        text.Append(count > MaxRepeated ? ", ...]" : "]");
        return true;
    }

    private static bool Fields(StringBuilder text, string schema, ref ulong at)
    {
        bool first = true;
        foreach (string field in schema.Split(' '))
        {
            if (field[0] == '_')
            {
                at += ulong.Parse(field.AsSpan(1));
                continue;
            }
            if (!first)
                text.Append(", ");
            first = false;
            int colon = field.IndexOf(':');
            text.Append(field, 0, colon).Append('=');
            if (!Value(text, field[(colon + 1)..], ref at))
                return false;
        }
        return true;
    }

    private static bool Value(StringBuilder text, string type, ref ulong at)
    {
        if (type[0] == '@')
        {
            text.Append('{');
            bool ok = Fields(text, Schemas.Structures[type[1..]], ref at);
            text.Append('}');
            return ok;
        }
        int count = 1, bracket = type.IndexOf('[');
        if (bracket >= 0)
        {
            count = int.Parse(type.AsSpan(bracket + 1, type.Length - bracket - 2));
            text.Append('[');
        }
        for (int i = 0; i < count; i++)
        {
            if (i != 0)
                text.Append(", ");
            if (!Number(text, type[0], type[1] - '0', at))
                return false;
            at += (ulong)(type[1] - '0');
        }
        if (bracket >= 0)
            text.Append(']');
        return true;
    }

    private static bool Number(StringBuilder text, char letter, int size, ulong at)
    {
        ulong value = 0;
        for (int i = 0; i < size; i++)
        {
            if (!UserCopy.TryRead1(at + (ulong)i, out byte b))
                return false;
            value |= (ulong)b << 8 * i;
        }
        switch (letter)
        {
            case 'x' when value > 9:
                text.Append($"0x{value:x}");
                break;
            case 'i':
                text.Append((long)(value << 64 - 8 * size) >> 64 - 8 * size);
                break;
            default:
                text.Append(value);
                break;
        }
        return true;
    }
}
