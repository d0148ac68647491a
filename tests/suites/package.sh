# shellcheck shell=bash
# shellcheck disable=SC2154,SC2034 # set by ./test; read by tests/package/whole.sh
# What people install: sourced by ./test, which provides install, verdict, results, root and all. './test package' or RING3_PACKAGE_ALL=1: everything, with two builds of all packages
# and every Debian system. By default one build, and the part of the rest that has its turn with the day, or that RING3_PACKAGE_PART names.
package=$results/package
mkdir -p "$package"
whole=${RING3_PACKAGE_ALL:-}
[ -n "$all${RING3_PACKAGE_PART:-}" ] || whole=1
parts=(bookworm trixie bullseye ci guestfs image recipes samples refusals)
part=${RING3_PACKAGE_PART:-${parts[$(($(date +%s) / 86400 % ${#parts[@]}))]}}
case " ${parts[*]} " in *" $part "*) ;; *) echo "test: RING3_PACKAGE_PART is one of: ${parts[*]}" >&2; exit 2 ;; esac
package_version=$(sed -n 's:.*<Version>\(.*\)</Version>.*:\1:p' "$root/Directory.Build.props")

# The scripts themselves.
if install shellcheck shellcheck >"$package/install.log" 2>&1; then
    shellcheck "$root/package" "$root"/packaging/*.sh "$root"/packaging/ci/*.sh "$root"/tests/package/*.sh "$root/tests/suites/package.sh" >"$package/shellcheck.log" 2>&1
    verdict package-scripts $? "$(grep -m 1 SC "$package/shellcheck.log")"
else
    verdict package-scripts 4 "$(tail -n 1 "$package/install.log")"
fi

# The manifests: their YAML, then each by its own schema. A control is a file that has to be refused.
if install yamllint yamllint >"$package/install.log" 2>&1; then
    yamllint -s -c "$root/tests/package/manifests/yamllint.yml" "$root/action.yml" "$root"/packaging/pod.yaml "$root"/packaging/ci/*.yml >"$package/yamllint.log" 2>&1
    verdict package-yaml $? "$(grep -m 1 -E 'error|warning' "$package/yamllint.log")"
else
    verdict package-yaml 4 "$(tail -n 1 "$package/install.log")"
fi
# manifest NAME GOOD SED COMMAND...: COMMAND takes the file GOOD as manifest.yml, and not what sed's expression makes of it.
manifest() (
    name=$1 good=$2 change=$3
    shift 3
    rm -rf "$package/manifest"
    mkdir "$package/manifest"
    cd "$package/manifest" || exit
    git init -q . >/dev/null 2>&1
    cp "$good" "${manifest_as:-manifest.yml}"
    timeout 60 "$@" >"$package/manifest-$name.log" 2>&1 || exit
    sed "$change" "$good" >"${manifest_as:-manifest.yml}"
    ! cmp -s "$good" "${manifest_as:-manifest.yml}" && ! timeout 60 "$@" >"$package/manifest-$name-control.log" 2>&1
)
tools=$package/manifests
if ! command -v npm >/dev/null; then
    verdict package-manifests 4 "needs npm"
elif mkdir -p "$tools" && cp "$root"/tests/package/manifests/*.{json,mjs} "$tools" && ! npm install --prefix "$tools" --silent --no-fund --no-audit --ignore-scripts --no-package-lock >"$package/npm.log" 2>&1; then
    verdict package-manifests 4 "npm: $(tail -n 1 "$package/npm.log")"
else
    manifest_as=action.yml manifest action "$root/action.yml" 's/using: composite/using: composit/' "$tools/node_modules/.bin/action-validator" action.yml
    verdict package-manifest-action $? "$(head -n 1 "$package/manifest-action.log")"
    manifest_as=.gitlab-ci.yml manifest gitlab "$root/packaging/ci/gitlab.yml" 's/^\( *\)script:/\1skript:/' "$tools/node_modules/.bin/gitlab-ci-local" --list
    verdict package-manifest-gitlab $? "$(tail -n 1 "$package/manifest-gitlab.log")"
    manifest pod "$root/packaging/pod.yaml" 's/runAsUser: 10001/runAsUser: somebody/' node "$tools/pod.mjs" manifest.yml &&
        manifest pod "$root/packaging/pod.yaml" 's/allowPrivilegeEscalation: false/privileged: true/' node "$tools/pod.mjs" manifest.yml
    verdict package-manifest-pod $? "$(head -n 1 "$package/manifest-pod.log")"
fi

# A manual page for every command, which formatters have nothing to say about.
"$root/ring3" --version >"$package/version.log" 2>"$package/version.err"
status=$?
[ $status -eq 0 ] && [ "$(cat "$package/version.log")" = "$package_version" ]
verdict package-version $? "ring3 says '$(tail -n 1 "$package/version.log")', Directory.Build.props $package_version"
if install mandoc mandoc >"$package/install.log" 2>&1; then
    "$root/ring3" manual 2>/dev/null | sed -n 's/^\\fBring3\\-\([a-z]*\)\\fR(1).*/\1/p' >"$package/pages"
    for page in '' $(cat "$package/pages"); do
        # shellcheck disable=SC2086 # no word for the page of ring3 itself
        "$root/ring3" manual $page --date 2026-01-31 >"$package/ring3$page.1" 2>"$package/manual.log" &&
            mandoc -T lint -W warning "$package/ring3$page.1" >"$package/manual.log" 2>&1 &&
            { ! command -v groff >/dev/null || groff -man -T utf8 -ww "$package/ring3$page.1" 2>"$package/manual.log" >/dev/null; } && ! [ -s "$package/manual.log" ]
        verdict "package-manual${page:+-$page}" $? "$(head -n 1 "$package/manual.log")"
    done
    grep -q -- '\\-\\-resident' "$package/ring3boot.1" && grep -q 'RING3\\-\|RING3-BOOT' "$package/ring3boot.1" && [ "$("$root/ring3" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\) .*/\1/p')" = "$(cat "$package/pages")" ]
    verdict package-manual-options $? "ring3-boot(1) does not have the options of --help, or ring3(1) not its commands"
else
    verdict package-manual 4 "$(tail -n 1 "$package/install.log")"
fi

# Completions complete in their shells.
mkdir -p "$package/bin" "$package/fpath"
ln -sf "$root/ring3" "$package/bin/ring3"
for shell in bash zsh fish; do "$root/ring3" completion $shell >"$package/completion.$shell"; done
# shellcheck disable=SC2016 # the inner shell's own
PATH="$package/bin:$PATH" bash -c '. "$1"; COMP_LINE="ring3 boot --mem" COMP_POINT=16 COMP_WORDS=(ring3 boot --mem) COMP_CWORD=2; _ring3; echo "${COMPREPLY[@]}"' bash "$package/completion.bash" >"$package/completion.log" 2>&1
grep -qx -- '--memory' "$package/completion.log"
verdict package-completion-bash $? "$(head -n 1 "$package/completion.log")"
if command -v fish >/dev/null; then
    # shellcheck disable=SC2016 # the inner shell's own
    HOME=$package PATH="$package/bin:$PATH" fish --no-config -c 'source $argv[1]; complete -C "ring3 boot --mem"' "$package/completion.fish" >"$package/completion.log" 2>&1
    grep -q -- '^--memory' "$package/completion.log"
    verdict package-completion-fish $? "$(head -n 1 "$package/completion.log")"
else
    verdict package-completion-fish 4 "fish is not installed"
fi
if command -v zsh >/dev/null; then
    cp "$package/completion.zsh" "$package/fpath/_ring3"
    # compadd says what it is given: there is no line editor here.
    # shellcheck disable=SC2016 # the inner shell's own
    PATH="$package/bin:$PATH" zsh -fc 'fpath=($1 $fpath); autoload -U _ring3; compadd() { print -l -- ${(P)2} }; _files() { }; words=(ring3 boot --mem); BUFFER="ring3 boot --mem" CURSOR=16; _ring3' zsh "$package/fpath" >"$package/completion.log" 2>&1
    grep -qx -- '--memory' "$package/completion.log"
    verdict package-completion-zsh $? "$(head -n 1 "$package/completion.log")"
else
    verdict package-completion-zsh 4 "zsh is not installed"
fi

# Programs of the .NET runtime say it, too, when the processor is no x86-64-v3, or the runtime may not use what it has.
DOTNET_EnableAVX2=0 "$root/artifacts/bin/Ring3.Cli/release/ring3" boot --cold --exec true >"$package/lesser.log" 2>&1
status=$?
[ $status -eq 71 ] && [ "$(grep -v '^ring3: \(fetching\|downloading\|cached\) ' "$package/lesser.log")" = 'ring3: this processor does not have AVX2, BMI2 and FMA (x86-64-v3), which Ring3 needs' ]
verdict package-lesser-runtime $? "status $status: $(tail -n 1 "$package/lesser.log")"
! (DOTNET_EnableAVX2=0 "$root/artifacts/bin/HelloGuest/release/HelloGuest"; exit) >"$package/lesser.log" 2>&1 && grep -q 'PlatformNotSupportedException: this processor does not have AVX2' "$package/lesser.log" && ! grep -q "Hello from" "$package/lesser.log"
verdict package-lesser-library $? "$(head -n 1 "$package/lesser.log")"

# shellcheck source=/dev/null
. "$root/tests/package/whole.sh"
