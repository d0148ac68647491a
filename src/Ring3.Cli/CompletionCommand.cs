using System.CommandLine;

namespace Ring3.Cli;

/// <summary><c>ring3 completion SHELL</c>: prints a script that asks ring3's own parser ([suggest]) for completions.</summary>
internal static class CompletionCommand
{
    private const string Bash = """
        _ring3() {
            local IFS=$'\n'
            COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" "[suggest:${COMP_POINT}]" "${COMP_LINE}" 2>/dev/null)" -- "${COMP_WORDS[COMP_CWORD]}"))
        }
        complete -o default -F _ring3 ring3 ./ring3
        """;

    private const string Zsh = """
        #compdef ring3
        _ring3() {
            local completions=("${(@f)$("${words[1]}" "[suggest:${CURSOR}]" "${BUFFER}" 2>/dev/null)}")
            compadd -a completions
            _files
        }
        # As a file of $fpath this is the function's first call; sourced, it is a definition.
        if [ "$funcstack[1]" = _ring3 ]; then
            _ring3 "$@"
        else
            compdef _ring3 ring3 ./ring3
        fi
        """;

    private const string Fish = """
        function __ring3_complete
            set -l line (commandline -cp)
            ring3 "[suggest:"(string length -- "$line")"]" "$line" 2>/dev/null
        end
        complete -c ring3 -a '(__ring3_complete)'
        """;

    public static Command Build(RootCommand root)
    {
        var shell = new Argument<string>("shell") { Description = "bash, zsh or fish" };
        shell.AcceptOnlyFromAmong("bash", "zsh", "fish");
        var command = new Command("completion", "Print a completion script for a shell.") { shell };
        command.SetAction(r =>
        {
            Console.Out.WriteLine(r.GetValue(shell) switch { "zsh" => Zsh, "fish" => Fish, _ => Bash });
            return 0;
        });
        return command;
    }
}
