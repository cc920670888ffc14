"""The tree of a beam search: its leaves are what was returned, its numbers what the model gives, token by token."""

import io

import pytest
from driving import ask, ask_until, bare, choose, listen, opened, run
from rich.console import Console
from test_beams import slowed

from repl.analysis.beam_tree import Node, grow
from repl.commands.beams import SearchTree
from repl.core.errors import UsageError
from repl.core.events import Beams
from repl.core.reply import BeamSearch, Sequence, decode_record, encode_record
from repl.terminal.screen import THEME, render, to_jsonable

PROMPT = "Once upon a time"


def walked(node: Node, before: tuple[Node, ...] = ()) -> list[tuple[Node, ...]]:
    """Return every way from the root to a node without branches, or to a sequence that ends in between."""
    way = (*before, node)
    here = [way] if node.sequence or not node.branches else []
    return [*here, *(found for branch in node.branches for found in walked(branch, way))]


def ids_of(way: tuple[Node, ...]) -> tuple[int, ...]:
    return tuple(token for node in way for token in node.token_ids)


def forced(model, prompt, ids) -> list[float]:
    """The log-probability of each of some ids after the prompt, in one pass."""
    import torch

    with torch.no_grad():
        logs = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return [float(row[token]) for row, token in zip(logs, ids, strict=True)]


def forced_row(model, prompt):
    """The log-probabilities of every token after the prompt."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([list(prompt)])).logits[0, -1].log_softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama", "recurrent"])
@pytest.mark.parametrize(("width", "penalty"), [(2, 1.0), (5, 0.0), (4, 2.0)])
def test_the_tree_is_what_the_model_says_of_each_sequence(kind, width, penalty, request):
    """Law: leaves are the returned sequences; every sum is that of teacher-forced log-probabilities."""
    folder = request.getfixturevalue(f"{kind}_folder")
    model, _ = bare(folder)
    with opened(folder) as session:
        run(session, f"/beams {width} length_penalty={penalty}", "/max 9")
        done = ask(session, PROMPT)
        tree = run(session, "/beams tree")
    ways = walked(tree.root)
    finished = {way[-1].sequence: way for way in ways if way[-1].sequence}
    assert sorted(finished) == list(range(1, width + 1))
    for number, way in finished.items():
        returned = done.sequences[number - 1]
        assert ids_of(way) == returned.token_ids
        total = sum(forced(model, done.prompt_ids, returned.token_ids))
        nats = sum(node.logprob for node in way)
        assert nats == pytest.approx(total, abs=2e-3)
        assert way[-1].score == returned.score
        assert nats / len(returned.token_ids) ** penalty == pytest.approx(returned.score, abs=1e-4)
    assert (tree.beams, tree.length_penalty, tree.chosen) == (width, penalty, 1)


def test_branches_part_at_different_tokens(gpt2_folder):
    with opened(gpt2_folder) as session:
        run(session, "/beams 6", "/max 12")
        ask(session, PROMPT)
        todo = [run(session, "/beams tree").root]
    while todo:
        node = todo.pop()
        first = [branch.token_ids[0] for branch in node.branches]
        assert len(set(first)) == len(first) != 1
        assert all(0 < branch.probability <= 1 for branch in node.branches)
        assert sum(branch.probability for branch in node.branches) <= 1 + 1e-6
        todo += node.branches


def test_the_margin_is_how_far_the_best_pruned_lay_behind(gpt2_folder):
    """Each step's margin is the gap between the last hypothesis kept and the best continuation that was not."""
    model, _ = bare(gpt2_folder)
    with opened(gpt2_folder) as session:
        choose(session, {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 2})
        run(session, "/set suppress_tokens none")
        with slowed(session):
            done, events = listen(session, PROMPT)
    shown = [event for event in events if isinstance(event, Beams)]
    assert [event.margin for event in shown] == list(done.search.margins)
    first = forced_row(model, done.prompt_ids).topk(5).values
    assert done.search.margins[0] == pytest.approx(float(first[2] - first[3]), abs=1e-4)


def test_the_texts_of_the_pieces_are_the_reply(llama_folder):
    with opened(llama_folder) as session:
        run(session, "/beams 4", "/max 9")
        done = ask(session, "hello")
    for found, pieces in zip(done.sequences, done.search.pieces, strict=True):
        assert len(pieces) == len(found.token_ids)
        assert "".join(pieces) == found.text


def test_a_sequence_that_ends_early_is_a_leaf_too(scripted_folder):
    with opened(scripted_folder(b"hello there")) as session:
        choose(session, {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 30, "early_stopping": True})
        done = ask(session, "hi")
        tree = run(session, "/beams tree")
    finished = {way[-1].sequence: ids_of(way) for way in walked(tree.root) if way[-1].sequence}
    assert finished == {number: found.token_ids for number, found in enumerate(done.sequences, 1)}


def test_sampled_beams_have_a_tree_without_numbers(gpt2_folder):
    with opened(gpt2_folder) as session:
        choose(session, {"num_beams": 3, "num_return_sequences": 3, "do_sample": True, "seed": 3, "max_new_tokens": 6})
        ask(session, PROMPT)
        tree = run(session, "/beams tree")
    ways = walked(tree.root)
    assert sorted(way[-1].sequence for way in ways) == [1, 2, 3]
    assert {node.logprob for way in ways for node in way} == {None}


@pytest.mark.slow
def test_a_cancelled_search_has_a_tree_of_its_best(gpt2_folder):
    with opened(gpt2_folder) as session:
        choose(session, {"num_beams": 3, "max_new_tokens": 40})
        run(session, "/set suppress_tokens [0]")
        with slowed(session):
            done = ask_until(session, PROMPT, lambda event: isinstance(event, Beams) and event.step >= 5)
        tree = run(session, "/beams tree")
    assert done.finish == "cancelled"
    (way,) = [way for way in walked(tree.root) if way[-1].sequence]
    assert ids_of(way) == done.token_ids


def test_pick_moves_the_mark_and_keeps_the_tree(llama_folder):
    with opened(llama_folder) as session:
        run(session, "/beams 3", "/max 6")
        ask(session, "hello")
        before = run(session, "/beams tree")
        run(session, "/pick 3")
        after = run(session, "/beams tree")
    assert (before.chosen, after.chosen) == (1, 3)
    assert after.root == before.root


@pytest.mark.slow
def test_the_record_keeps_the_search(gpt2_folder):
    """Written and read again as the archive does it, and drawn after another model was loaded."""
    from repl.core.reply import Reply

    with opened(gpt2_folder) as session:
        run(session, "/beams 3", "/max 6")
        done = ask(session, PROMPT)
        before = run(session, "/beams tree")
        run(session, "/unload")
        assert run(session, "/beams tree") == before
    assert decode_record(Reply, encode_record(done)) == done
    assert len(encode_record(done)) < 20_000


@pytest.mark.slow
@pytest.mark.parametrize("lines", [[], ["/greedy", "hello"], ["/sample", "/num_return_sequences 3", "hello"]])
def test_without_a_search_there_is_no_tree(llama_folder, lines):
    with opened(llama_folder, max_new_tokens=4) as session:
        run(session, *lines)
        with pytest.raises(UsageError, match="not made by a beam search") as caught:
            run(session, "/beams tree")
    assert caught.value.hints == ("/beams 4",)


@pytest.mark.slow
@pytest.mark.parametrize("line", ["/beams many", "/beams 0", "/beams 1001"])
def test_neither_a_number_nor_the_tree_is_refused(llama_folder, line):
    with opened(llama_folder) as session, pytest.raises(UsageError, match="from 1 to 1000, or tree"):
        run(session, line)


# drawn


def rows(result, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None, theme=THEME)
    console.print(render(result))
    return [row.rstrip() for row in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 100, 140])
def test_every_leaf_has_a_row_and_none_is_too_wide(gpt2_folder, width):
    with opened(gpt2_folder) as session:
        run(session, "/beams 5", "/max 12")
        done = ask(session, PROMPT)
        tree = run(session, "/beams tree")
    drawn = rows(tree, width)
    assert max(map(len, drawn)) <= width
    for number, found in enumerate(done.sequences, 1):
        assert len([row for row in drawn if row.endswith(f"{number:3}{found.score:8.3f}")]) == 1
    assert to_jsonable(tree)["root"]["branches"]


def test_the_parts_stand_below_what_they_share():
    found = [Sequence("the cat", (1, 2), -0.5), Sequence("the dog\x1b", (1, 3), -0.7)]
    logs = ((-0.1, -0.9), (-0.1, -1.3))
    root = grow(found, BeamSearch((("the", " cat"), ("the", " dog\x1b")), logs, (0.7,)))
    assert rows(SearchTree(2, 2, 1.0, 1, root, (0.7,)), 40) == [
        "2 beams · mean log-probability",
        "closest call 0.7 nats",
        "the",
        "├──  40.66 %  cat".ljust(29) + "  1  -0.500",
        "└──  27.25 %  dog␛".ljust(29) + "  2  -0.700",
        "/pick N selects another answer",
    ]
