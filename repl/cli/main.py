"""The command line: options made from the settings; interactive, one shot, pipe, script, JSON."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from repl import __version__
from repl.core import paths, settings, streams
from repl.core.errors import Quit, ReplError, UsageError
from repl.core.sanitize import clean_line
from repl.core.settings import Settings
from repl.core.values import Choice, Integer, Number, did_you_mean

BATCH_OPTIONS = {
    "results": ("FILE", "where the results go, - for standard output; what is there already is not made again"),
    "template": ("FILE", "a text with {name} for the values of each line"),
    "parallel": ("N", "requests that a server gets at once"),
}
LETTERS = {"temperature": ("-t",)}  # options with one letter
SHELLS = ("bash", "zsh", "fish")


SHELL_EXAMPLES = """\
usage: hub-repl [MODEL] [PROMPT ...] [--SETTING VALUE ...]

  hub-repl                                    open a prompt, with a small model
  hub-repl gpt2                               with a model from the Hub
  hub-repl "What is the capital of France?"   answer once
  hub-repl gpt2 "Once upon a time" --max 50   answer once, with another model
  cat notes.txt | hub-repl "Summarize this:"  standard input comes first
  hub-repl gpt2 -c "/next 5 Once upon a"      run a command

"""
COMMON = {
    "-c LINE": "run a line first: a command or a message",
    "--script FILE": "run the lines of a file",
    "--prompts FILE": "answer every prompt of a file, as JSON lines",
    "--json": "write one JSON object per line",
    "--resume [SESSION]": "continue the last session, or SESSION",
    "--no-save": "do not save the session",
    "--offline": "never use the network",
    "--connect URL": "use a model on a server",
    **dict.fromkeys(("dtype", "quantize", "device", "adapter", "temp", "top_p", "max", "beams", "seed", "mode"), ""),
}
"""The options in `--help`, and the settings by their shortest names; those are described by their kind or help."""


def short_help() -> str:
    """Return usage, examples and the options used most, in 30 lines of 80 columns."""
    rows = [(option, said) if said else _setting_row(option) for option, said in COMMON.items()]
    listed = "".join(f"  {option:<19} {said}" + "\n" for option, said in rows)
    return f"{SHELL_EXAMPLES}{listed}\nhub-repl --help all lists every option, hub-repl guide explains them by topic.\n"


def _setting_row(short: str) -> tuple[str, str]:
    name = settings.SHORT_NAMES.get(short, short)
    kind = settings.setting_kind(name)
    takes = ", ".join(kind.options) if isinstance(kind, Choice) else settings.help_of(name).partition(";")[0]
    return f"--{short.replace('_', '-')} {'N' if isinstance(kind, Integer | Number) else 'NAME'}", takes


class ShowHelp(argparse.Action):
    """`--help`, and `--help all` for every option."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: object, values: object, option: object = "") -> None:
        """Write the help, and end."""
        sys.stdout.write(parser.format_help() if values == "all" else short_help())
        parser.exit()


class CommandLine(argparse.ArgumentParser):
    """A parser that writes usage errors on one line."""

    def error(self, message: str) -> NoReturn:
        """Write the error on one line and exit with 2."""
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        if message.startswith("unrecognized") and unknown.startswith("--"):
            message = self._unknown(unknown)
        self.exit(2, f"hub-repl: {clean_line(message)} · hub-repl --help\n")

    def _unknown(self, word: str) -> str:
        known = [word for word in self.format_help().replace(",", " ").split() if word.startswith("--")]
        return f"no option {word}{did_you_mean(word.partition('=')[0], known)}"


def parser(offer: Callable[[argparse.Action], object] = lambda action: None) -> CommandLine:
    """Return the parser: options of the run, then one for each setting; `offer` is called with each for completion."""
    line = CommandLine(
        prog="hub-repl",
        usage="hub-repl [MODEL | --connect URL] [PROMPT ...] [--SETTING VALUE ...] [-c LINE]... [--script FILE] "
        "[--json]",
        description="Explore language models from the Hugging Face Hub: load, prompt, change a setting, prompt again.",
        epilog="A PROMPT, or text on standard input, is answered once; without either, a prompt opens.",
        allow_abbrev=False,
        add_help=False,
    )
    line.add_argument("-h", "--help", action=ShowHelp, nargs="?", metavar="all", help="show examples; all: this list")
    what = "Hub id, id@revision, folder, .gguf file, or builtin"
    offer(line.add_argument("model", nargs="?", metavar="MODEL", help=what))
    line.add_argument("prompt", nargs="*", metavar="PROMPT", help="answer this and exit")
    line.add_argument("-c", dest="commands", action="append", default=[], metavar="LINE", help="run this line first")
    offer(line.add_argument("--script", metavar="FILE", help="run the lines of a file (- for standard input)"))
    offer(line.add_argument("--prompts", metavar="FILE", help="answer every prompt of a file (/help batch)"))
    for name, (takes, said) in BATCH_OPTIONS.items():
        offer(line.add_argument(f"--{name}", metavar=takes, help=f"with --prompts: {said}"))
    line.add_argument("--keep-going", action="store_true", help="continue after a line of a script that failed")
    line.add_argument("--json", action="store_true", help="one JSON object per line on standard output")
    line.add_argument("--resume", nargs="?", const="", metavar="SESSION", help="continue the last session, or SESSION")
    line.add_argument("--connect", metavar="URL", help="use a model on a server; all words are then the PROMPT")
    offer(
        line.add_argument(
            "--model", dest="named", metavar="MODEL", help="the MODEL, local or on the server of --connect"
        )
    )
    line.add_argument("--no-save", action="store_true", help="do not save this session")
    line.add_argument("--offline", action="store_true", help="never use the network")
    line.add_argument("--completion", choices=SHELLS, help="print a completion script for a shell")
    line.add_argument("--version", action="store_true", help="show the version and exit")
    for part in settings.SPECS:
        group = line.add_argument_group(f"{part} settings")
        for name in (name for name, home in settings.places().items() if home == part and name != "model"):
            short = [word for word, full in settings.SHORT_NAMES.items() if full == name]
            spellings = ("--" + name.replace("_", "-"), *(f"--{word}" for word in short), *LETTERS.get(name, ()))
            help_text = settings.help_of(name).replace("%", "%%")
            held = group.add_argument(*spellings, dest=f"set_{name}", metavar="VALUE", help=help_text)
            if "_" in name:
                group.add_argument(f"--{name}", dest=f"set_{name}", help=argparse.SUPPRESS)
            offer(held)
    return line


def split_model(asked: argparse.Namespace) -> argparse.Namespace:
    """Separate the model from the prompt: the first word is the model, unless --model or --connect is given.

    A single word with a space or a question mark that is no file or folder is a prompt for the default model.
    """
    sentence = bool(asked.model) and not asked.prompt and any(sign in asked.model for sign in " \n?")
    if asked.model is not None and (asked.named or asked.connect or (sentence and not os.path.exists(asked.model))):
        asked.prompt = [asked.model, *asked.prompt]
        asked.model = None
    asked.model = asked.named or asked.model
    return asked


def accessible_value(words: Sequence[str]) -> list[str]:
    """Give `--accessible` the value `on` if the next word is not a value."""
    kind, found = settings.setting_kind("accessible"), list(words)
    for place, word in enumerate(words):
        try:
            kind.read("".join(words[place + 1 : place + 2]))
        except UsageError:
            found[place] = "--accessible=on" if word == "--accessible" else word
    return found


def choose_settings(asked: argparse.Namespace, found: Settings) -> Settings:
    """Return the settings of the config file with those of the command line over them; raises `UsageError`."""
    given = {name: word for name in settings.places() if (word := getattr(asked, f"set_{name}", None)) is not None}
    if {"max_new_tokens", "max_length"} <= set(given):
        raise UsageError("max_new_tokens and max_length cannot be combined: give one")
    if asked.prompts is None and any(getattr(asked, name) is not None for name in BATCH_OPTIONS):
        raise UsageError("--results, --template and --parallel go with --prompts FILE")
    if asked.prompts is not None and asked.prompt:
        raise UsageError("a PROMPT and --prompts cannot be combined: --template FILE puts words around each prompt")
    if asked.model and not asked.connect:
        given |= {name: word for name, word in settings.address(asked.model) if word != "default"}
    if os.environ.get("ACCESSIBLE"):
        found = found.put("accessible", True, "ACCESSIBLE")
    for name, word in given.items():
        found = found.put(name, settings.read_setting(name, word), "you")
    return found


def main() -> NoReturn:
    """Run the program and end with its exit code."""
    if not streams.set_up():
        sys.stderr.write("hub-repl: standard output is closed\n")
        leave(1)
    code = 0
    try:
        code = _exit_code()
        sys.stdout.flush()
    except OSError as error:
        if not streams.is_lost(error):
            raise
        code = code or streams.explain_end(error)
    leave(code)


def run_program() -> int:
    """Read the command line and the config file, and run the program; returns the exit code."""
    asked = split_model(parser().parse_intermixed_args(accessible_value(sys.argv[1:])))
    if asked.version:
        sys.stdout.write(f"hub-repl {__version__}\n")
        return 0
    if asked.completion:
        from repl.cli import completion

        sys.stdout.write(completion.completion_script(asked.completion, parser))
        return 0
    if asked.model == "guide" and not asked.named and not Path("guide").exists():
        return show_guide(asked)
    from repl.cli.program import Program
    from repl.session import config_file

    found = config_file.read_config_file(paths.config_folder() / "config.toml")
    return Program(asked, found, choose_settings(asked, found.settings)).run()


def show_guide(asked: argparse.Namespace) -> int:
    """Write the list of guide pages, or one page; no model is loaded."""
    from repl.commands import guide
    from repl.terminal.screen import Screen

    name = " ".join(asked.prompt)
    Screen(asked.json, sys.stdout.isatty()).show("guide", guide.guide_page(name))
    return 0


def _exit_code() -> int:
    try:
        return run_program()
    except ReplError as error:
        said = " · ".join([error.message, *map(settings.in_shell, error.hints)])
        sys.stderr.write(f"hub-repl: {clean_line(said)}\n")
        return 2
    except Quit:  # in lines of the command line or of a script
        return 0
    except KeyboardInterrupt:
        return 130
    except SystemExit as death:  # from a signal or from the parser
        return int(death.code or 0)


def leave(code: int) -> NoReturn:
    """Exit at once: a thread that is still inside a library could crash the interpreter's shutdown."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code)
