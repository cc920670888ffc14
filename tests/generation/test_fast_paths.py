"""Every way of being faster says whether it is on, and none is off unnoticed."""

import shutil

import architectures
import pytest
from driving import ask, opened, run

from repl.commands import doctor
from repl.core.errors import NoModel

ALWAYS = {"decode loop", "KV reuse", "batched rows"}
CHOSEN = {
    "prompt_lookup": "/fast prompt_lookup turns it on",
    "assistant": "/assistant ID turns it on",
    "packed kernels": "/quantize int4 turns them on",
}


def states(session):
    """Return the ways that are on, and why the others are not."""
    found = {path.name: path for path in run(session, "/fast").paths}
    return {name for name, path in found.items() if path.on}, {name: path.why for name, path in found.items()}


@pytest.mark.slow
@pytest.mark.library
def test_each_way_is_on_for_the_built_in_model(builtin_folder):
    """A version of the libraries with which one falls back to the library's own fails here."""
    with opened(builtin_folder, max_new_tokens=4) as session:
        on, why = states(session)
        assert on == ALWAYS
        assert {name: why[name] for name in CHOSEN} == CHOSEN
        run(session, "/fast prompt_lookup")
        assert states(session)[0] == ALWAYS | {"prompt_lookup"}
        assert ask(session, "Say: one two three one two three").drafts is not None
        run(session, "/fast off", "/quantize int4")
        assert states(session)[0] == ALWAYS | {"packed kernels"}
        assert ask(session, "And then?").finish in ("length", "stop")
        assert ask(session, "And then?").usage.reused > 0


@pytest.mark.slow
@pytest.mark.library
def test_an_assistant_is_on_once_it_is_chosen(llama_folder, tmp_path):
    helper_folder = shutil.copytree(llama_folder, tmp_path / "helper")
    with opened(llama_folder, max_new_tokens=4) as session:
        run(session, f"/assistant {helper_folder}")
        assert "assistant" in states(session)[0]
        assert ask(session, "Once upon a time").drafts.by == "assistant"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "off"),
    [
        ("/reuse off", {"KV reuse"}),
        ("/beams 2", {"decode loop", "KV reuse", "batched rows"}),
        ("/set use_cache false", {"KV reuse", "batched rows"}),
    ],
)
def test_what_a_setting_turns_off_says_why(llama_folder, line, off):
    with opened(llama_folder) as session:
        before, _ = states(session)
        run(session, line)
        on, why = states(session)
        assert before - on == off
        assert all(why[name] for name in off)
        assert "this model" not in why["KV reuse"]


@pytest.mark.slow
def test_a_model_without_a_usual_cache_says_so(recurrent_folder):
    with opened(recurrent_folder) as session:
        on, why = states(session)
        assert "prompt_lookup" not in on
        assert why["prompt_lookup"] != "/fast prompt_lookup turns it on"
        assert "KV cache" in why["batched rows"]
        assert why["KV reuse"] == "this model needs a new KV cache for each reply"


@pytest.mark.slow
def test_reuse_is_off_once_a_trial_has_shown_that_the_model_does_not_go_on_from_a_cache(tmp_path):
    """CPM-Ant takes a cache and heeds it wrongly: the first prompt that is long enough shows it."""
    architectures.make("cpmant", tmp_path)
    with opened(tmp_path, max_new_tokens=4) as session:
        assert [ask(session, "Say something long to me, and more.").usage.reused for _ in range(2)] == [0, 0]
        on, why = states(session)
        assert "KV reuse" not in on
        assert why["KV reuse"] == "this model does not continue correctly from a kept KV cache"


@pytest.mark.slow
def test_the_doctor_tells_each_way_of_the_model_in_use(llama_folder):
    with opened(llama_folder) as session:
        found = run(session, "/doctor")
        assert found.paths == run(session, "/fast").paths
        assert ("KV reuse", "on") in doctor.findings(found)


@pytest.mark.slow
def test_without_a_model_there_are_none(llama_folder):
    with opened(llama_folder) as session:
        run(session, "/unload")
        with pytest.raises(NoModel):
            run(session, "/fast")


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"torch": "2.13.0+cpu", "transformers": "5.24.0"}, []),
        ({"torch": "2.14.1", "transformers": "5.24.0"}, ["torch 2.14.1"]),
        ({"torch": "2.10.0", "transformers": "5.22.1"}, ["transformers 5.22.1"]),
        ({"torch": "2.15.0", "transformers": "6.0.0"}, ["torch 2.15.0", "transformers 6.0.0"]),
    ],
)
def test_versions_outside_of_the_tested_ones_are_told(versions, said):
    hints = doctor.find_untested(versions)
    assert [" ".join(hint.split()[:2]) for hint in hints] == said
    assert all("outside the tested versions" in hint for hint in hints)
