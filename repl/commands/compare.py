"""Compare: one message answered by several models or under several settings, in columns; /pick takes one."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Annotated

from rich.console import Group, RenderableType
from rich.text import Text

from repl.analysis import compare as comparison
from repl.analysis import variants
from repl.analysis.answerers import Answer
from repl.analysis.compare import Answers, Column, Compared, side_by_side
from repl.analysis.prompt_file import PromptFile, check_files
from repl.analysis.prompt_grid import GridColumn, GridRow, PromptGrid, compare_prompts
from repl.analysis.variants import NOW, Variant
from repl.commands.registry import command
from repl.core import texts
from repl.core.errors import Cancelled, UsageError
from repl.core.format import amount, counted, join_facts, shortened
from repl.core.jobs import Job
from repl.core.parts import Parts
from repl.core.reply import Reply
from repl.core.sanitize import ascii_only, clean, clean_line
from repl.core.values import AnyText, RestOfLine
from repl.generation.measure.token_text import quote
from repl.remote.engine import Remote
from repl.session.change_settings import adopt
from repl.session.position import Question, question, split_prompt
from repl.session.replies import add_answer
from repl.session.results import Message
from repl.session.session import Session, Task
from repl.terminal.columns import Block, Blocks
from repl.terminal.export import html_table, page_body, said
from repl.terminal.reply import fold_parts
from repl.terminal.screen import render
from repl.terminal.tables import First, grid

COLUMN = RestOfLine("a text", variants.complete_words, variants.complete_words)


@command(
    "compare",
    "/compare greedy temperature=0.9",
    "/compare now dtype=bfloat16 -- What is a star?",
    see="diverge sweep replay pick",
    needs_model=True,
)
def compare(
    session: Session,
    *columns: Annotated[str, COLUMN],
    prompts: Annotated[str, AnyText("a file of prompts")] = "",
    template: Annotated[str, AnyText("a file")] = "",
) -> Task[PromptGrid] | Task[None]:
    """Compare the answers of models or settings, side by side.

    Each word is a column: a model, a change to the current settings (beams=4; temperature=0.7 also samples), or
    several joined by commas as in gpt2,dtype=bfloat16; in quotes, spaces join them. Other words are now (the
    current settings), greedy and sample. Without -- PROMPT the last message is asked again. Sampled columns share a
    seed unless they set one. The first token that differs from the first column is marked. /pick N makes an answer
    part of the conversation and its settings yours; until then nothing changes. --prompts FILE answers every prompt of
    a file (/help batch) in each way and gives one table; /export grid.html then writes all answers.
    """
    typed, prompt = split_prompt(" ".join(columns))
    if not typed:
        raise UsageError("/compare needs models or settings: /compare A B [-- PROMPT]", "/help compare")
    ways = [variants.read_way(session, word) for word in ([NOW] if len(typed) == 1 else []) + typed]
    if prompts:

        def restore(job: Job[PromptGrid]) -> PromptGrid:
            session.restore()
            return job.result()

        check_files(prompts, os.devnull)
        filled = texts.read_text(template) if template else ""
        file = PromptFile(prompts, session.settings, session.base(), filled, session.conversation.system)
        compared = partial(compare_prompts, session.store, ways, file)
        return session.run_on_model(compared, restore)
    asked = question(session, prompt, "/compare A B -- PROMPT")
    made: dict[int, Answer] = {}

    def settle(job: Job[None]) -> Compared:
        session.restore()
        with suppress(Cancelled):  # finished answers are kept
            job.result()
        if not (done := tuple(made[column] for column in sorted(made))):
            raise Cancelled
        session.set_pick(lambda number: take_answer(session, done, asked, number))
        whole = len(done) == len(ways) and not any(one.cut for one in done)
        columns, shown = side_by_side(done), session.settings.view.thinking
        return Compared(asked.text, asked.turn.exchange if asked.turn else None, columns, shown, whole)

    return session.run_on_model(lambda emit: comparison.answer_all(session.store, ways, asked, emit, made), settle)


def take_answer(session: Session, made: Sequence[Answer], asked: Question, number: int) -> object:
    """Make an answer part of the conversation, and use its model and settings from now on."""
    if number > len(made):
        raise UsageError(f"there {'is 1 answer' if len(made) == 1 else f'are {len(made)} answers'}, not {number}")
    one = made[number - 1]
    if one.done is None or one.problem is not None:
        raise UsageError(f"column {number} has no answer")
    again = replace(asked, turn=add_answer(session, asked, one.chats, one.done))
    session.set_pick(lambda other: take_answer(session, made, again, other))
    said = Message(join_facts(f"answer {number} selected", one.variant.title if one.variant.title != NOW else ""))
    connect_variant(session, one.variant)
    return adopt(session, one.variant.settings, said)


def connect_variant(session: Session, chosen: Variant) -> None:
    """Connect the server that gave an answer, or disconnect if a local model did."""
    if (server := chosen.server) is None:
        session.connect(None)
    elif session.remote is not None and session.remote.where == server.where:
        session.remote.choose(server.model)
    else:
        session.connect(Remote(server.where, server.model, server.listing))


@render.register
def _(result: Compared) -> RenderableType:
    said = "" if result.whole else "stopped early: results so far\n"
    picks = [("/pick N", "accent"), (" continues with that answer and its settings", "quiet")]
    good = any(column.done and not column.problem for column in result.columns)
    return Group(_draw(result), Text.assemble((said, "quiet"), *(picks if good else [])))


@render.register
def _draw(result: Answers) -> RenderableType:
    asked = [] if result.exchange is None else [Text(f"{result.exchange} {shortened(result.prompt, 70)}", "quiet")]
    return Group(*asked, Blocks([_block(number, column, result) for number, column in enumerate(result.columns, 1)]))


def _block(number: int, column: Column, result: Answers) -> Block:
    text = _said(column, result.shown)
    if column.problem:
        text.append(clean("\n" * bool(text) + join_facts(column.problem.message, *column.problem.hints)))
    return Block(f"{number} {column.title}", text, _foot(number, column, result))


def _said(column: Column, shown: str) -> Text:
    """Return the parts of an answer, thoughts as a setting says, with the first different token marked."""
    done, found, whole = column.done, column.difference, column.text
    if done is None:
        return Text(clean(whole))
    mark = found.text if found else ""
    start = len(whole) - len(done.raw) + (found.start if found else 0)
    parts = done.parts
    if not parts.thinking and not parts.tool_calls:
        return _marked(whole, mark, start)
    thought = Text(fold_parts(parts, shown).thinking)
    if shown == "show":
        thought = _marked(parts.thinking, mark, start - whole.find(parts.thinking))
    answer = _marked(parts.answer, mark, start - whole.rfind(parts.answer))
    thought.style = "quiet"
    told = [thought, answer, said(Parts(tool_calls=parts.tool_calls))]
    return Text("\n\n").join(one for one in told if one)


def _marked(text: str, mark: str, start: int) -> Text:
    """Mark a word at a place of a text, if it is there."""
    end = start + len(mark)
    if start < 0 or text[start:end] != mark:
        return Text(clean(text))
    marked = (clean(mark.replace("\n", "↵\n")), "accent reverse")
    return Text.assemble(clean(text[:start]), marked, clean(text[end:]))


def _foot(number: int, column: Column, result: Answers) -> str:
    """Return the figures of an answer, one per row; those that no answer has are left out."""
    if column.done is None:
        return ""
    known = [_figures(each, each.done) for each in result.columns if each.done]
    own, none = _figures(column, column.done), "-" if ascii_only() else "–"
    names = [name for name in own if any(each[name] for each in known)]
    cells = max(map(len, names))
    rows = [f"{name:<{cells}}  {own[name] or none}" for name in names]
    return "\n".join(row for row in (*rows, _parted(number, column, result)) if row)


def _figures(column: Column, done: Reply) -> dict[str, str]:
    """Return the figures of an answer by name, empty if unknown."""
    mean, bits, ttft, speed = column.mean_logprob, column.bits_per_byte, done.timing.ttft_s, done.timing.decode_tps
    ended = {"cancelled": "stopped", "length": "cut"}.get(done.finish, "")
    return {
        "tokens": join_facts(f"{done.usage.completion:,}", ended),
        "first token": "" if ttft is None else f"{ttft:.2f} s",
        "tokens/s": f"{speed:.3g}" if speed else "",
        "memory": amount(column.bytes) if column.bytes else "",
        "mean log-probability": "" if mean is None else f"{mean:.3f}",
        "bits per byte": "" if bits is None else f"{bits:.3f}",
        "seed": "" if done.seed is None else str(done.seed),
    }


def _parted(number: int, column: Column, result: Answers) -> str:
    """Return where an answer differs from the first, in words."""
    good = [place for place, each in enumerate(result.columns, 1) if each.done]
    if (found := column.difference) is None:
        done = column.done
        end = " as far as it went" if done and done.finish == "cancelled" else ""
        return "" if number == good[0] or column.problem else f"same as {good[0]}{end}"
    where = f"token {found.token}\n  {quote(found.text) if found.text else 'the end'}"  # on a row of its own
    return f"diverges at {where}" if number == good[0] else f"differs from {good[0]} at {where}"


@render.register
def _(result: PromptGrid) -> RenderableType:
    heads = ["", "", "answered", "same as 1", "tokens", "log-prob", "tokens/s", "accuracy"]
    keep = len(heads) if any(one.accuracy for one in result.columns) else len(heads) - 1
    rows = [_over_all(number, one)[:keep] for number, one in enumerate(result.columns, 1)]
    problems = [(row.line, one.problem) for row in result.rows for one in row.answers if one and one.problem]
    line, problem = min(problems, default=(0, ""))
    said = join_facts(
        counted(len(result.rows), "prompt"),
        f"{counted(len(problems), 'answer')} missing, first line {line}: {problem}" if problems else "",
        "" if result.whole else "stopped early: results so far",
    )
    hint = Text.assemble(("/export grid.html", "accent"), (" writes every answer", "quiet"))
    table = First(*(grid("rlrrrrrr"[:keep], rows, heads[:keep], gap) for gap in (2, 1)))
    return Group(table, Text(clean_line(said), "quiet"), hint)


def _over_all(number: int, one: GridColumn) -> list[str | Text]:
    """Return the figures of one column over all prompts."""
    none, found = "-" if ascii_only() else "–", one.accuracy
    return [
        str(number),
        Text(clean_line(one.title), "accent"),
        f"{one.answered:,}",
        f"{one.same:,}" if number > 1 else none,
        none if one.tokens is None else f"{one.tokens:.1f}",
        none if one.logprob is None else f"{one.logprob:.3f}",
        none if one.tokens_per_s is None else f"{one.tokens_per_s:.0f}",
        none if found is None else f"{found.share:.1%} ({found.low:.1%} to {found.high:.1%})",
    ]


@page_body.register
def _(result: PromptGrid) -> str:
    titles = (join_facts(f"{number} {one.title}", one.model) for number, one in enumerate(result.columns, 1))
    return html_table(["prompt", *titles], [[(row.prompt, "prompt"), *_answers(row)] for row in result.rows])


def _answers(row: GridRow) -> Iterator[tuple[str, str]]:
    """Yield each answer with its style on a page: another one if it differs from the first."""
    first = row.answers[0].text if row.answers[0] else ""
    for one in row.answers:
        said = (one.problem or one.text) if one else ""
        yield said, "quiet" if one and one.problem else "other" if one and one.text != first else ""
