# shellcheck shell=bash
# The protocols' models, checked exhaustively by spin: correct as they stand, and with a counter-example in each historical, broken variant. Sourced by ./test, which provides install, verdict, results and root.
if install spin spin; then
    for model in "$root"/models/*.pml; do
        name=$(basename "$model" .pml)
        work=$results/models/$name
        # The first word is the correct form, the others are listed in the model's own header.
        for variant in correct $(sed -n 's/^ \*   -D\([A-Z_]*\) .*/\1/p' "$model"); do
            mkdir -p "$work-$variant"
            log=$work-$variant/log
            define=
            [ "$variant" = correct ] || define=-D$variant
            # shellcheck disable=SC2086
            (cd "$work-$variant" && spin -a $define "$model" && gcc -O2 -DSAFETY -DMEMLIM=4000 -o pan pan.c && timeout 300 ./pan -m1000000) >"$log" 2>&1
            errors=$(sed -n 's/.*errors: \([0-9]*\)$/\1/p' "$log")
            incomplete=$(grep -c 'max search depth too small\|Search not completed\|out of memory' "$log")
            if [ "$variant" = correct ]; then
                [ "$errors" = 0 ] && [ "$incomplete" = 0 ]
                status=$?
                verdict "model $name: $(sed -n 's/ *\([0-9.e+]*\) states, stored.*/\1/p' "$log") states, no error" $status "see artifacts/test/models/$name-correct/log"
            else
                [ "${errors:-0}" -gt 0 ] 2>/dev/null
                verdict "model $name: spin finds the error of $variant" $? "it found none: artifacts/test/models/$name-$variant/log"
            fi
        done
    done
else
    verdict "models" 1 "spin is missing"
fi
