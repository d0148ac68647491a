# shellcheck shell=bash
# Sizes of the sources, for the reader of a test run: nothing depends on them. Sourced by ./test.
printf '%-22s %6s %7s %9s %8s  %s\n' project files lines comments longest 'largest file'
for project in "$root"/src/*/; do
    find "$project" -name '*.cs' -print0 | xargs -0 awk -v project="$(basename "$project")" '
        FNR == 1 { files++ }
        /^[ \t]*$/ { next }
        { lines++; here[FILENAME]++; if (length($0) > longest) longest = length($0) }
        /^[ \t]*\/\// { comments++ }
        END {
            for (f in here) if (here[f] > most) { most = here[f]; name = f }
            sub(/.*\//, "", name)
            printf "%-22s %6d %7d %8d%% %8d  %s (%d)\n", project, files, lines, 100 * comments / lines, longest, name, most
        }'
done
