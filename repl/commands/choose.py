"""Choose: a question with given answers, how probable each is; or a file of them, how often the right one wins."""

from pathlib import Path
from typing import Annotated

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl.analysis.choose import CHOOSE_EXAMPLE, Accuracy, AnswerOdds, HitRate, check_options, choose, choose_all
from repl.analysis.prompt_file import PromptFile
from repl.commands.registry import command
from repl.core.errors import UsageError
from repl.core.format import counted, join_facts, shortened
from repl.core.sanitize import clean_line
from repl.core.values import RestOfLine
from repl.session.position import PROMPT, question
from repl.session.session import Session, Task
from repl.terminal.screen import render
from repl.terminal.tables import First, fact_line, grid
from repl.terminal.token_colours import BAR_WIDTHS, bar, percent

MAX_WRONG_SHOWN = 20  # items of the table; --json has all
SHOWN_CHARS = 60  # characters of a prompt in a table, and of an answer


@command(
    "inspect",
    "/choose yes | no -- Is a whale a fish?",
    "/choose questions.jsonl",
    see="score next",
    needs_model=True,
)
def choose_(
    session: Session,
    text: Annotated[str, RestOfLine("answers with | between them, or a file")],
    *,
    letters: bool = False,
    end: bool = False,
) -> Task[AnswerOdds] | Task[Accuracy]:
    """Compare the probabilities of given answers to a question.

    Without -- PROMPT the last message is asked. The bar is the probability among the answers; beside it are the total
    log-probability, and that per token and per byte, in nats. If the prompt has a lettered list (A. ... B. ...) and
    the answers are its letters, the list is reversed and asked again; --letters makes such a list of the answers.
    --end includes the token that ends an answer, for answers that begin like others. /choose FILE.jsonl reads lines
    with prompt, answers and right, and shows the accuracy with its 95 % interval. The conversation does not change.
    """
    facts, chosen = session.facts(), session.settings
    mark = PROMPT.search(text)
    if mark is None and "|" not in text:
        file = PromptFile(_file(text), chosen, session.base(), system=session.conversation.system)
        return session.run_on_model(lambda emit: choose_all(session.store.current(), file, emit, end))
    answers = check_options([part.strip() for part in (text[: mark.start()] if mark else text).split("|")])
    asked = question(session, text[mark.end() :].strip("\n") if mark else None, CHOOSE_EXAMPLE)
    request = asked.request(chosen, facts.chats)
    return session.run_on_model(lambda emit: choose(session.store.current(), request, answers, emit, letters, end))


def _file(text: str) -> str:
    """Return the file that a text names; raises `UsageError` where it is none."""
    path = text.strip().strip("\"'")
    if not path:
        raise UsageError("/choose needs answers, with | between them", CHOOSE_EXAMPLE)
    if Path(path).suffix.lower() not in (".jsonl", ".csv", ".tsv"):
        raise UsageError("a choice needs at least two answers, with | between them, or a .jsonl file", CHOOSE_EXAMPLE)
    return path


@render.register
def _(result: AnswerOdds) -> RenderableType:
    table = First(*(_table(result, cells) for cells in BAR_WIDTHS[2:]))
    said = [Text(clean_line(line), "quiet") for line in (_bias(result), _others(result), result.remark) if line]
    return Group(Text(f"answer to: {shortened(result.prompt, SHOWN_CHARS)}", "quiet"), table, *said)


def _table(result: AnswerOdds, cells: int) -> Table:
    """Draw the answers, each with a bar of so many cells at most."""
    best, turned = result.best(), result.first_place is not None
    heads = ["answer", "", "", "nats", "by token", "by byte", *(["reversed"] if turned else [])]
    rows: list[list[str | Text]] = [
        [
            Text(shortened(one.answer, SHOWN_CHARS), "accent" if place == best else ""),
            Text(bar(one.probability, cells).ljust(cells), "accent"),
            percent(one.probability),
            f"{one.logprob:.2f}",
            f"{one.by_token:.2f}",
            f"{one.by_byte:.2f}",
            *([percent(one.turned)] if one.turned is not None else []),
        ]
        for place, one in enumerate(result.options)
    ]
    return grid("llrrrrr"[: len(heads)], rows, heads)


def _bias(result: AnswerOdds) -> str:
    """Say what the order of the list changes."""
    if result.first_place is None:
        return ""
    again = max(result.options, key=lambda one: one.turned or 0.0).answer
    now = result.options[result.best()].answer
    ends = f"it stays {now}" if again == now else f"{now} becomes {again}"
    return f"list reversed: {ends} · standing first rather than last changes a probability by {result.first_place:+.3f}"


def _others(result: AnswerOdds) -> str:
    """Say which answer wins where lengths are taken out, if it is another."""
    best = result.best()
    ways = {"by token": result.best("by_token"), "by byte": result.best("by_byte")}
    return join_facts(
        *(f"{way} {result.options[place].answer!r} leads" for way, place in ways.items() if place != best)
    )


@render.register
def _(result: Accuracy) -> RenderableType:
    scores = {"log-probability": result.total, "by token": result.by_token, "by byte": result.by_byte}
    table = grid("lrrl", [_row(name, one) for name, one in scores.items()], ["", "right", "accuracy", "95 % interval"])
    parts: list[RenderableType] = [table]
    if result.answers:
        rows = [_row(shortened(name, SHOWN_CHARS), one) for name, one in result.answers.items() if one.items]
        parts.append(grid("lrrl", rows, ["right answer", "right", "accuracy", "95 % interval"]))
    if result.wrong:
        wrong = [
            [
                str(one.line),
                shortened(one.prompt, SHOWN_CHARS),
                *(shortened(name, SHOWN_CHARS // 2) for name in (one.right, one.given)),
                f"{one.margin:.2f}",
            ]
            for one in result.wrong[:MAX_WRONG_SHOWN]
        ]
        parts.append(grid("rlllr", wrong, ["line", "wrong item", "right answer", "given", "ahead by, nats"]))
    parts += [Text(clean_line(f"line {line}: {said}"), "error") for line, said in result.failed[:MAX_WRONG_SHOWN]]
    more = len(result.wrong) - MAX_WRONG_SHOWN
    said = join_facts(
        counted(result.total.items, "item"),
        f"{more:,} more wrong ones with --json" if more > 0 else "",
        f"{len(result.failed):,} lines without an answer" if result.failed else "",
        "" if result.whole else "stopped by you",
    )
    return Group(*parts, fact_line(said))


def _row(name: str, score: HitRate) -> list[str]:
    right = f"{score.right:,} of {score.items:,}"
    return [clean_line(name), right, f"{100 * score.share:.1f} %", f"{100 * score.low:.1f} to {100 * score.high:.1f} %"]
