"""One file of prompts answered in several ways: the table over all is what each way gives by itself."""

import json
from statistics import fmean

import pytest
from driving import drawn, finish, opened, run
from fakeserver import FakeServer, chat

from repl.commands import registry
from repl.core.errors import UsageError
from repl.core.events import Progress
from repl.session.session import ShownView
from repl.terminal.export import view_as_html, view_as_json

PROMPTS = ["The quick brown fox", "What is the capital", "Once upon a time there was", "Prices rose by", "x"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "in.jsonl"
    items = [{"prompt": text, "id": n, "answers": ["the", "a world"], "right": n % 2} for n, text in enumerate(PROMPTS)]
    path.write_text("".join(json.dumps(item) + "\n" for item in items) + "{no json\n")
    return path


@pytest.mark.slow
def test_the_table_over_all_prompts_is_that_of_single_runs(llama_folder, other_folder, file, tmp_path):
    """Equal answers, lengths, mean log-probability and the accuracy of /choose, for settings and for models."""
    with opened(llama_folder, max_new_tokens=8) as session:
        before = session.settings
        heard = []
        found = run(
            session,
            f"/compare --prompts {file} now {other_folder} repetition_penalty=1.3 seed=4,temperature=2",
            heard=heard.append,
        )
        assert session.settings == before
        assert not session.conversation.turns
        accuracy = run(session, f"/choose {file}")
    with opened(other_folder, max_new_tokens=8) as session, pytest.raises(Exception, match="1 failed"):
        run(session, f"/batch {file} {tmp_path / 'other.jsonl'}")
    other = {one["line"]: one for one in map(json.loads, (tmp_path / "other.jsonl").read_text().splitlines())}
    first, second, third, fourth = found.columns
    assert [row.line for row in found.rows] == [1, 2, 3, 4, 5, 6]
    assert [row.answers[1].text for row in found.rows[:5]] == [other[line]["raw"] for line in range(1, 6)]
    assert (first.answered, first.failed, first.same) == (5, 1, 5)
    assert second.same == sum(row.answers[0].text == row.answers[1].text for row in found.rows[:5])
    assert second.tokens == fmean(len(other[line]["token_ids"]) for line in range(1, 6))
    assert first.accuracy == accuracy.total
    assert first.logprob is not None
    assert third.logprob < first.logprob  # greedy is the likeliest, near enough
    assert fourth.same < 5
    assert "not JSON" in found.rows[5].answers[0].problem
    stages = [event for event in heard if isinstance(event, Progress) and event.unit == "prompts"]
    assert stages[-1].done == stages[-1].total == 6
    for said in ("same as 1", "accuracy", "4 answers missing, first line 6"):
        assert said in drawn(found)


def test_the_page_has_every_answer_and_runs_nothing(gpt2_folder, tmp_path):
    """Foreign text is escaped; what differs from the first answer is marked."""
    path = tmp_path / "in.txt"
    path.write_text("<script>alert(1)</script>\nThe quick\n")
    with opened(gpt2_folder, max_new_tokens=4) as session:
        run(session, "hi")
        line = f"/compare --prompts {path} now repetition_penalty=5"
        found = run(session, line)
        session.keep_view(ShownView(line, "compare", found))
        run(session, f"/export {tmp_path / 'grid.html'}", f"/export {tmp_path / 'talk.md'}", "hi")
        assert run(session, f"/export {tmp_path / 'talk.html'}").turns
    assert (tmp_path / "talk.md").read_text().startswith("# hi")
    assert (tmp_path / "grid.html").read_text().count("<tr>") == 3
    page = view_as_html(ShownView(line, "compare", found))
    assert page.count("<tr>") == 3
    assert "<script>" not in page
    assert 'class="other"' in page
    assert json.loads(view_as_json(ShownView(line, "compare", found)))["data"]["rows"][1]["prompt"] == "The quick"


def test_a_cancel_keeps_what_is_there(gpt2_folder, tmp_path, monkeypatch):
    """The table has the prompts that were answered by then."""
    monkeypatch.setattr("repl.analysis.batch.MAX_ROWS", 2)
    path = tmp_path / "in.txt"
    path.write_text("\n".join(PROMPTS * 3))
    with opened(gpt2_folder, max_new_tokens=8) as session:
        task = registry.parse_line(f"/compare --prompts {path} now temperature=1").run(session)
        found = finish(task, lambda event: task.job.cancel() if getattr(event, "done", 0) == 4 else None)
    assert not found.whole
    assert found.columns[0].answered >= 4
    assert "stopped early" in drawn(found)


def test_a_server_is_a_column_too(gpt2_folder, tmp_path):
    """Its answers stand beside those of the model here."""
    path = tmp_path / "in.txt"
    path.write_text("\n".join(PROMPTS))
    with opened(gpt2_folder, max_new_tokens=3) as session, FakeServer(chat("Hello")) as server:
        found = run(session, f"/compare --prompts {path} now {server.url}")
    assert [row.answers[1].text for row in found.rows] == ["Hello"] * 5
    assert found.columns[1].same == 0


def test_a_file_that_is_not_there_is_one_sentence(gpt2_folder):
    with opened(gpt2_folder) as session, pytest.raises(Exception, match="cannot read") as caught:
        run(session, "/compare --prompts none.jsonl now greedy")
    assert not isinstance(caught.value, UsageError)
