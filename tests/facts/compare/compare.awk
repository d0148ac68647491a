# Lines of two runs of ioctls, joined by '|': tells each difference with its reason. After a difference the rest of its machine is passed over, unless the reason says that it touches nothing else.
# usage: paste -d'|' KERNEL RING3 | awk -f compare.awk -v explained=FILE
BEGIN {
    FS = "|"
    while ((getline line < explained) > 0) {
        if (line ~ /^#/ || line == "") continue
        split(line, f, "\t"); n++
        call[n] = "^(" f[1] ")$"; kernel[n] = f[2]; ring3[n] = f[3]; alone[n] = f[4] == "alone"; why[n] = f[5]
    }
}
$1 != $2 {
    split($1, words, " "); machine = words[1]; sub(/\..*/, "", machine)
    if (machine in ended) next
    left = $1; sub(/^[^ ]* /, "", left); k = left; sub(/.* /, "", k); sub(/ [^ ]*$/, "", left)
    r = $2; sub(/.* /, "", r)
    reason = "NOT EXPLAINED"; goes_on = 0
    for (i = 1; i <= n; i++)
        if (left ~ call[i] && k == kernel[i] && r == ring3[i]) { reason = why[i]; goes_on = alone[i]; break }
    if (!goes_on) ended[machine] = 1
    print $1 " here, " r " on Ring3: " reason
}
