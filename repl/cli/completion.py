"""Completion scripts for shells, made from the parser's options; no model is loaded."""

import argparse
from collections.abc import Callable

import shtab

from repl.core import settings

CACHED = (
    'ls "${HF_HUB_CACHE:-${HF_HOME:-$HOME/.cache/huggingface}/hub}" 2>/dev/null'
    " | sed -n 's/^models--\\([A-Za-z0-9._-]*\\)$/\\1/p' | sed 's|--|/|g'; echo builtin"
)
"""The command that lists cached models, only those with a valid name of the Hub: bash would run other names."""
MODELS = {
    "bash": "hub_repl_model_files",  # of a function with such a name bash takes the words as files, and quotes them
    "zsh": "hub_repl_models",
    "fish": "(hub_repl_models)",
}
PREAMBLE = {
    "bash": f'hub_repl_model_files() {{ compgen -W "$({CACHED})" -- "$1"; compgen -f -- "$1"; }}',
    "zsh": f'hub_repl_models() {{ compadd -- ${{(f)"$({CACHED})"}}; _files; }}',
    "fish": "function hub_repl_models; sh -c '"
    + CACHED.replace("\\", "\\\\").replace("'", "\\'")
    + "'; __fish_complete_path (commandline -ct); end",
}
COMPLETED_BY = {
    **dict.fromkeys(("model", "named", "set_assistant"), MODELS),
    **dict.fromkeys(("script", "prompts", "results", "template", "set_adapter", "set_offload_folder"), shtab.FILE),
}


def completion_script(
    shell: str, parser: Callable[[Callable[[argparse.Action], object]], argparse.ArgumentParser]
) -> str:
    """Return the script; `parser` makes the parser and calls its argument with each option."""
    return str(shtab.complete(parser(_offer), shell, preamble=PREAMBLE[shell]))


def _offer(action: argparse.Action) -> None:
    """Set the completions of an option; some options accept other values too."""
    if action.dest in COMPLETED_BY:
        action.complete = COMPLETED_BY[action.dest]  # type: ignore[attr-defined] # how shtab is told
    elif action.dest.startswith("set_"):
        words = settings.setting_kind(action.dest.removeprefix("set_")).complete()
        action.choices = [word for word in words if not word.isdigit()] or None
