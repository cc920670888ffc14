"""Cost per token of drawing Markdown at a hundred tokens a second, against `rich.Live` with the whole answer."""

import io
import sys
from itertools import islice
from statistics import mean
from time import perf_counter

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown

from repl.terminal.markdown import Markdown as Reader
from repl.terminal.redraw import Stream

AT, LENGTH, SPAN = (100, 1000, 4000), 4000, 200
WIDTH, HEIGHT = 100, 40

MIXED = """## A section about {0}

Here is an **idea** with `code`, a [link](https://example.org/{0}) and *emphasis*, which goes on for long enough to need
more than one line on the screen, as answers do; then it says something else, and something more.

- first item of {0}
- second item, with **bold** words and a tail that is a little longer
  1. nested

```python
def step_{0}(values: list[int]) -> int:
    total = sum(value * {0} for value in values)  # a comment
    return total
```

| name | value | note |
|---|--:|---|
| {0} | 12 | short |
| other | 3.5 | a longer note here |

> Quoted words, and a few more of them.

"""
SENTENCE = "The quick brown fox jumps over the lazy dog, then **sleeps** under a `tree` until {0} comes again. "
LINE = "    value_{0} = compute(value, key='name', factor={0} * 3.5)  # line {0}\n"


def main() -> int:
    """Print the table; exit code 1 when a mean is above 0.5 ms, token 4000 above twice token 100, or rich is close."""
    answers = {
        "mixed answer": "".join(MIXED.format(n) for n in range(100)),
        "one paragraph": "".join(SENTENCE.format(n) for n in range(1000)),
        "one code block": "```python\n" + "".join(LINE.format(n) for n in range(1000)),
        "one open mark": "**" + "word " * 5000,
        "one table": "| a | b |\n|---|---|\n" + "".join(f"| row {n} | value **{n}** here |\n" for n in range(1000)),
        "one list": "".join(f"- item {n} says `something` here\n" for n in range(1000)),
        "one Chinese line": "你好世界，这是一个句子。" * 2000,
    }
    ours(pieces(answers["mixed answer"])[:400])  # what is imported, is imported
    print(f"{'us per token':<18}" + "".join(f"{'@' + str(at):>8}" for at in AT) + f"{'mean':>8}{'B/token':>9}")
    failed = False
    for name, text in answers.items():
        costs, written = ours(pieces(text))
        near = [mean(costs[max(0, at - SPAN) : at]) * 1e6 for at in AT]
        whole = mean(costs) * 1e6
        print(f"{name:<18}" + "".join(f"{cost:>8.0f}" for cost in near) + f"{whole:>8.0f}{written:>9.0f}")
        failed |= whole > 500 or (name in list(answers)[:3] and near[-1] > 2 * near[0])
    tokens = pieces(answers["mixed answer"])
    theirs = [rich(tokens, at) for at in AT]
    print(f"{'rich.Live, mixed':<18}" + "".join(f"{cost * 1e6:>8.0f}" for cost in theirs))
    ratio = mean(ours(tokens)[0]) / mean(theirs)
    print(f"mean of ours against the mean of rich at {AT}: {ratio:.4f}")
    return int(failed or ratio > 0.05)


def pieces(text: str) -> list[str]:
    """Cut a text into tokens of about four characters."""
    return list(islice((text[at : at + 4] for at in range(0, len(text), 4)), LENGTH))


def ours(tokens: list[str]) -> tuple[list[float], float]:
    """Return seconds for each token, a new one every 10 ms, and bytes per token."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=WIDTH, height=HEIGHT, color_system="standard")
    costs: list[float] = []
    stream = Stream(console, Reader(console), lambda: perf_counter() + 0.01 * len(costs))
    for token in tokens:
        began = perf_counter()
        stream.feed(token)
        costs.append(perf_counter() - began)
    stream.end()
    return costs, len(file.getvalue().encode()) / len(tokens)


def rich(tokens: list[str], at: int, rounds: int = 5) -> float:
    """Return seconds for drawing the whole answer anew at a token."""
    console = Console(file=io.StringIO(), force_terminal=True, width=WIDTH, height=HEIGHT, color_system="standard")
    with Live(console=console, auto_refresh=False) as live:
        began = perf_counter()
        for number in range(rounds):
            live.update(Markdown("".join(tokens[: at - rounds + number])), refresh=True)
        return (perf_counter() - began) / rounds


if __name__ == "__main__":
    sys.exit(main())
