"""What a reply must be: JSON with some fields, a JSON Schema, a regular expression or a grammar."""

from typing import Annotated

from repl.commands.registry import command
from repl.core import settings
from repl.core.format import join_facts
from repl.core.reply_format import FORMAT_EXAMPLES, parse_format
from repl.core.values import RestOfLine
from repl.generation import decode
from repl.session.change_settings import apply
from repl.session.results import Message
from repl.session.session import Session


@command("settings", "/format name, age int", "/format /[0-9]{4}/", see="why next prefill continue")
def format_(
    session: Session, form: Annotated[str, RestOfLine(suggest=settings.setting_kind("format").complete)] = ""
) -> Message:
    """Hold replies to a form: JSON, fields, a schema, /regex/ or a grammar.

    /format name, age int, tags [string], kind: a|b|c, home {street, city} is JSON with these fields; types are string,
    int, number, bool. /format json is any object or list, /format FILE a JSON Schema or a grammar (Lark, GBNF).
    /format off ends it, /format alone shows it. At each token only what the form allows can come: /why shows what that
    took away, /next the odds under it, /probs which tokens were given and overruled. A /prefill that fits the form is
    its beginning.
    """
    if not form:
        now = session.settings.decode.format
        return Message(join_facts(f"format: {parse_format(now).title}", "/format off") if now else _off())
    text = "" if form in ("default", "none") else settings.read_setting("format", form)
    if text and session.remote is not None:
        session.remote.check_form(text, session.uses_template())
    elif text:
        decode.format_mask.build_grammar(parse_format(text))
    apply(session, [("format", form)])
    told = f"format: {parse_format(text).title}" if text else "format off"
    return Message(join_facts(told, "from the next reply on", "/format off" if text else ""))


def _off() -> str:
    return join_facts("replies have no form", FORMAT_EXAMPLES[0])
