"""Speed: how fast models read and write on this machine, in a table that can be kept."""

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from repl import bench, settings
from repl.bench import Bench, Entry, Memory, Plan, Spread
from repl.clean import clean_line
from repl.engine import versions
from repl.errors import UsageError
from repl.kinds import Choice, Kind, Whole
from repl.kinds import Text as Words
from repl.registry import command
from repl.screen import device, joined, mebibytes, plain, view
from repl.session import Session, Task
from repl.worker import Emit, Job
from repl.writing import write


@dataclass(frozen=True, slots=True)
class Several:
    """Some values of one kind, with commas between them."""

    one: Kind

    @property
    def phrase(self) -> str:
        """Name the kind."""
        return f"{self.one.phrase}, or several with commas between"

    def read(self, word: str) -> tuple[object, ...]:
        """Read each of them."""
        return tuple(self.one.read(part) for part in word.split(","))

    def show(self, value: tuple[object, ...]) -> str:
        """Join them."""
        return ",".join(self.one.show(part) for part in value)

    def complete(self) -> Collection[str]:
        """Offer what the kind offers."""
        return self.one.complete()


@dataclass(frozen=True, slots=True)
class Benched:
    """What was measured, with what decides it; `whole` is False where it was stopped before the end."""

    entries: list[Entry]
    memory: list[Memory]
    new_tokens: int
    repeats: int
    threads: int
    versions: dict[str, str]
    whole: bool
    file: str = ""


def measured(session: Session, plan: Plan, emit: Emit) -> Benched:
    """Run a plan; for the model thread."""
    import torch

    resident = session.store.current() if session.store.facts() else None
    runs = Bench(plan, resident, session.store.offline, emit)
    whole = runs.run()
    threads = torch.get_num_threads()
    return Benched(runs.entries, runs.memory, plan.new_tokens, plan.repeats, threads, versions(), whole)


@command("prove", name="bench", waits=True)
def bench_(
    session: Session,
    *,
    models: Annotated[tuple[str, ...], Several(Words("a model"))] = (),
    dtypes: Annotated[tuple[str, ...], Several(settings.kind("dtype"))] = (),
    prompt_tokens: Annotated[tuple[int, ...], Several(Whole(1))] = (32, 512),
    new_tokens: Annotated[int, Whole(2)] = 128,
    repeats: Annotated[int, Whole(1)] = 3,
    modes: Annotated[tuple[str, ...], Several(Choice(("generate", "loop", "prompt_lookup")))] = (),
    save: str = "",
    force: bool = False,
) -> Task[Benched]:
    """Measure how fast models read and write on this machine.

    /bench --models A,B --dtypes float32,bfloat16 --prompt-tokens 32,512 chooses what.
    Without --models, the one that is loaded. Each length of prompt is run once to warm up, then --repeats times, with
    --new-tokens made in turn by the library's bare generate, by the loop that makes replies and by what /fast has on
    (or --modes generate,prompt_lookup). Ctrl-C keeps what is done so far. --save FILE.json writes it down, --force in
    place of a file that is there. The model, the settings and the conversation stay as they are.
    """
    if save and not save.endswith(".json"):
        raise UsageError(f"{save!r} does not end in .json", "/bench --save bench.json")
    if save and not force and Path(save).expanduser().exists():  # said before the work, not after it
        raise UsageError(f"{save!r} exists", f"/bench --save {save} --force")
    if not models:
        session.facts()
    on = ("generate", "loop", *(["prompt_lookup"] if session.settings.decode.prompt_lookup else []))
    chosen = bench.loads(session.settings.load, models, dtypes)
    plan = Plan(chosen, prompt_tokens, new_tokens, repeats, tuple(dict.fromkeys(modes)) or on)

    def settle(job: Job[Benched]) -> Benched:
        found = job.result()
        if not save:
            return found
        content = json.dumps(plain(found), ensure_ascii=False, indent=1).encode("utf-8", "replace")
        path = write(save, content + b"\n", force, "/bench --save FILE.json --force")
        return replace(found, file=str(path))

    return session.start(lambda emit: measured(session, plan, emit), settle)


@view.register
def _(result: Benched) -> RenderableType:
    blocks = [block for entry in result.entries for block in _drawn(entry)]
    return Group(*blocks, Text(_foot(result), "quiet"))


def _drawn(entry: Entry) -> list[RenderableType]:
    path = Path(entry.model)
    facts = joined(
        entry.dtype,
        device(entry.device_map) if entry.device_map else "",
        f"weights {mebibytes(entry.weight_bytes)}" if entry.weight_bytes else "",
        f"process {mebibytes(entry.used_bytes)}" if entry.used_bytes else "",
        f"ready in {entry.load_s:.2f} s" if entry.load_s else "",
    )
    name = clean_line(path.name if path.is_absolute() else entry.model)
    blocks: list[RenderableType] = [Text.assemble((name, "accent"), (f" · {clean_line(facts)}", "quiet"))]
    blocks += [_table(entry)] if entry.speeds else []
    blocks += [Text(clean_line(entry.problem))] if entry.problem else []
    if entry.limit_tps and entry.speeds:
        each = f"a token needs {mebibytes(entry.read_bytes)} of weights"
        blocks.append(Text(f"limit: {each}, memory delivers {_short(entry.limit_tps)} times that a second", "quiet"))
    return [*blocks, Text()]


def _table(entry: Entry) -> Table:
    table = Table.grid(padding=(0, 2))
    for side in ("right", "left", "left", "left", "left", "right"):
        table.add_column(justify=side, overflow="fold")
    table.add_row(*(Text(word, "quiet") for word in ("prompt", "mode", "first token", "read", "written", "of limit")))
    for one in entry.speeds:
        scale, unit = (1.0, " s") if one.ttft_s.median >= 1 else (1000.0, " ms")
        limit = "" if one.limit is None else f"{one.limit:.0%}"
        cells = (_cell(one.ttft_s, scale, unit), _cell(one.prefill_tps), _cell(one.decode_tps))
        table.add_row(str(one.prompt_tokens), one.mode, *cells, limit)
    return table


def _cell(found: Spread, scale: float = 1.0, unit: str = "") -> Text:
    middle, least, most = (_short(value * scale) for value in (found.median, found.least, found.most))
    return Text.assemble(middle + unit, (f" {least}-{most}", "quiet"))


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _foot(result: Benched) -> str:
    if not result.entries:
        return "stopped before anything was measured"
    counted = "1 run" if result.repeats == 1 else f"{'' if result.whole else 'up to '}{result.repeats} runs"
    threads = "1 thread" if result.threads == 1 else f"{result.threads} threads"
    rates = [f"{one.device} reads {one.bytes_per_s / 1e9:.1f} GB/s" for one in result.memory]
    rows = [
        f"tokens/s read and written: median and range of {counted} of {result.new_tokens} tokens, after a warm-up",
        joined(threads, f"torch {result.versions['torch']}", *rates),
        "" if result.whole else "stopped: this is what was done by then",
        f"written to {clean_line(result.file)}" if result.file else "",
    ]
    return "\n".join(row for row in rows if row)
