"""Compiled steps make the tokens of the plain ones, never hold a reply up, and step aside where they are not right."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest
from driving import ask, ask_until, bare, finish, opened, run

from repl import compiled, library, registry
from repl.commands.fast import Fast
from repl.compiled import LIBRARY, MARKS, Slots, deviation, key, moving, unfit
from repl.compiler import MOST, PART, REFUSED, Steps, sweep
from repl.errors import UsageError
from repl.events import Notice, Token
from repl.screen import Said
from repl.session import Session
from repl.settings import Load

PATIENCE = 120.0  # seconds after which a compiler hangs
STORY = "Tell me a story about a whale."
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": "off"},
    "penalty": {"do_sample": "off", "repetition_penalty": 1.4},
    "no repeats": {"do_sample": "off", "no_repeat_ngram_size": 2},
    "sample": {"do_sample": "on", "temperature": 1.3, "top_k": 20, "seed": 5},
    "least length": {"do_sample": "off", "min_new_tokens": 40},
    "stop string": {"do_sample": "off", "stop": "e"},
    "past the room": {"do_sample": "off", "min_new_tokens": 150, "max_new_tokens": 150},
}
LONGROPE = {"longrope": {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}}
SHORT = [way for way in WAYS if way != "past the room"]  # the tiny GPT-2 reads 128 tokens
KINDS: dict[str, dict[str, Any]] = {"llama": {}, "packed": {"dtype": "bfloat16", "quantize": "int4"}}

pytestmark = pytest.mark.skipif(
    os.name != "posix" or not shutil.which("g++"), reason="compiled steps need a C++ compiler"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory, llama_folder) -> Path:
    """A folder with the compiled steps of the kinds, each made by the process that makes them."""
    root = tmp_path_factory.mktemp("compiled")
    for kind, words in KINDS.items():
        beside(root, kind, llama_folder, words)
    return root / "cache" / "compiled"


def beside(root: Path, kind: str, folder: Path, words: dict[str, Any]) -> None:
    """Have a step compiled: replies go on as they were meanwhile, and the first one after that takes it."""
    with pytest.MonkeyPatch.context() as patch, opened(folder, do_sample="off", max_new_tokens=8, **words) as session:
        patch.setenv("HUB_REPL_HOME", str(root))
        result, said = heard(session, "/fast compile")
        assert isinstance(result, Said)
        assert result.text == "compile on · replies take the step as soon as it is there"
        assert [text.split(",")[0] for text in said] == ["compiling beside the replies"]
        assert state(session) == "compiling"
        plain = ask(session, STORY)
        assert "step" not in plain.environment
        until(lambda: state(session) != "compiling", "the compiler hangs")
        assert state(session) == "compiled"
        session.store.current().kept.drop()
        run(session, "/clear")
        done, said = heard(session, STORY)
        assert said[0].startswith("steps are compiled: logits within")
        assert done.environment["step"] == "compiled"
        assert done.token_ids == plain.token_ids or kind == "packed"  # whose kernels round otherwise


@pytest.fixture
def kept(made, home) -> Path:
    """The cache of this test's home, with all that is compiled in it."""
    folder = home / "hub-repl" / "cache" / "compiled"
    shutil.copytree(made, folder)
    return folder


def heard(session: Session, line: str) -> tuple[Any, list[str]]:
    """Run a line; returns its result and the notices."""
    said: list[str] = []
    return run(session, line, heard=lambda event: said.append(event.text) if isinstance(event, Notice) else None), said


def state(session: Session) -> str:
    """Return what /fast says of compiling."""
    found = run(session, "/fast")
    assert isinstance(found, Fast)
    return next(mode.state for mode in found.modes if mode.name == "compile")


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


# the same tokens


@pytest.mark.parametrize("way", WAYS)
def test_compiled_steps_make_the_tokens_of_plain_ones(way, kept, llama_folder):
    """In float32, whatever chooses the tokens, over two turns of which the second reuses the cache of the first."""
    agrees(llama_folder, WAYS[way])


@pytest.mark.campaign
def test_another_family_makes_the_tokens_of_plain_ones(home, gpt2_folder):
    """With positions that are learnt, and a context of 128 tokens."""
    beside(home / "hub-repl", "gpt2", gpt2_folder, {})
    for way in SHORT:
        agrees(gpt2_folder, WAYS[way])


def agrees(folder: Path, words: dict[str, Any]) -> None:
    """Make two turns plainly and with compiled steps, and hold all that is recorded of them side by side."""
    with opened(folder, **{"max_new_tokens": 40, **words}) as session:
        plain = [ask(session, text) for text in (STORY, "And then?")]
        session.store.current().kept.drop()
        run(session, "/clear", "/fast compile")
        ours = [ask(session, text) for text in (STORY, "And then?")]
        assert [one.environment.get("step") for one in plain + ours] == [None, None, "compiled", "compiled"]
        assert [one.token_ids for one in ours] == [one.token_ids for one in plain]
        assert [one.usage for one in ours] == [one.usage for one in plain]
        for one, other in zip(ours, plain, strict=True):
            assert one.finish == other.finish
            assert one.measures.ranks == other.measures.ranks
            assert one.measures.logprobs == pytest.approx(other.measures.logprobs, abs=1e-4)


def test_what_a_compiled_reply_leaves_behind_is_the_text(kept, llama_folder):
    """Keys and values after a reply, whole or stopped, are those that one pass over the same text gives."""
    import torch
    from transformers import DynamicCache

    with opened(llama_folder, max_new_tokens=300, min_new_tokens=300, compile="on") as session:
        for stop in (None, 5, 270):
            places = count(1)
            record = ask_until(session, STORY, lambda event: isinstance(event, Token) and next(places) == stop)  # noqa: B023
            assert record.environment["step"] == "compiled"
            assert record.finish == ("cancelled" if stop else "length")
            resident = session.store.current()
            cache, ids = resident.kept._cache, resident.kept._ids
            assert len(ids) >= len(record.prompt_ids) + len(record.token_ids) - 1
            assert ids == [*record.prompt_ids, *record.token_ids][: len(ids)]
            fresh = DynamicCache(config=resident.model.config)
            with torch.no_grad():
                resident.model(torch.tensor([ids]), **{library.cache_name(): fresh})
            for one, other in zip(cache.layers, fresh.layers, strict=True):
                assert one.keys.shape == other.keys.shape
                torch.testing.assert_close(one.keys, other.keys, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(one.values, other.values, atol=1e-4, rtol=1e-4)
            run(session, "/clear")


def test_packed_weights_are_lent_too(kept, llama_folder):
    """An int4 step has the logits of the uncompiled kernels, up to the roundings of bfloat16; nothing is copied."""
    import torch

    with opened(llama_folder, **KINDS["packed"]) as session:
        model = session.store.current().model
        native = compiled.opened(kept / key(model), model)
        _, share, allowed = deviation(native, model)
        assert share <= allowed
        with torch.no_grad():
            model.lm_head.scales.zero_()  # seen by both, for there is one of it
        assert deviation(native, model)[0] == 0.0


def test_room_grows_and_is_given_back(kept, llama_folder):
    """A step behind any length of text gives the logits of a pass over the whole, at the edges of the room too."""
    import torch
    from transformers import DynamicCache

    model, _ = bare(llama_folder)
    native = compiled.opened(kept / key(model), model)
    for length in (1, 2, 223, 224, 255, 256, 257, 511, 512):
        ids = torch.randint(0, model.config.vocab_size, (1, length + 2))
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(ids[:, :length], **{library.cache_name(): cache})
            with Slots(native, model, cache).taken() as step:
                ours = [step(None, ids[:, length + place]).logits[0, -1] for place in range(2)]
            theirs = model(ids, use_cache=False).logits[0, -2:]
        torch.testing.assert_close(torch.stack(ours), theirs, atol=1e-4, rtol=1e-4)
        assert cache.get_seq_length() == length + 2


# beside the replies


def test_a_later_program_finds_the_step(kept, llama_folder):
    """It is opened, not compiled, by the first reply."""
    with opened(llama_folder, do_sample="off", max_new_tokens=8, compile="on") as session:
        done, said = heard(session, STORY)
        assert [text.split(":")[0] for text in said] == ["steps are compiled"]
        assert done.environment["step"] == "compiled"
        assert not compilers()
        assert not [each for each in kept.iterdir() if each.name.startswith(PART)]


def compilers() -> list[psutil.Process]:
    """Return the processes under this one that compile."""
    return [each for each in psutil.Process().children(recursive=True) if "repl.compiling" in " ".join(each.cmdline())]


def test_a_model_that_goes_takes_its_compiler_along(home, llama_folder, gpt2_folder):
    """Nothing of it is left, neither a process nor a file."""
    with opened(llama_folder, keep_models=1) as session:
        run(session, "/fast compile")
        (child,) = compilers()
        run(session, f"/model {gpt2_folder}", "/mode complete")
        finish(session.loading) if session.loading else None
        until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the compiler lives on")
        assert not list((home / "hub-repl" / "cache" / "compiled").iterdir())


def test_a_program_that_is_killed_takes_its_compiler_along(home, llama_folder):
    """Even where it has no chance to say so."""
    long = ["--min-new-tokens", "9000", "--max-new-tokens", "9000", "-c", "/fast compile", "-c", STORY]
    words = [sys.executable, "-m", "repl", "--no-save", str(llama_folder), *long]
    program = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parent = psutil.Process(program.pid)

    def found() -> list[psutil.Process]:
        return [each for each in parent.children(recursive=True) if "repl.compiling" in " ".join(each.cmdline())]

    try:
        until(lambda: bool(found()), "no compiler was started")
        (child,) = found()
        time.sleep(2.0)
        program.send_signal(signal.SIGKILL)
        until(lambda: not child.is_running(), "the compiler lives on")
    finally:
        program.kill()
        program.wait()


# where it is not right


def test_a_step_that_computes_something_else_is_refused(kept, llama_folder):
    """A layer that was given the weights of another: the logits tell, the reply is plain, and the file is gone."""
    with opened(llama_folder, do_sample="off", max_new_tokens=8) as session:
        plain = ask(session, STORY)
        place = kept / key(session.store.current().model)
        marks = json.loads((place / MARKS).read_text())
        names = marks["names"]
        one, other = (f"model.model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
        names[one], names[other] = names[other], names[one]
        (place / MARKS).write_text(json.dumps(marks))
        run(session, "/clear", "/compile on")
        done, said = heard(session, STORY)
        assert len(said) == 1
        assert said[0].startswith("compile rests: its logits were up to ")
        assert "step" not in done.environment
        assert done.token_ids == plain.token_ids
        assert not place.exists()
        assert state(session) == said[0].replace("compile rests", "rests")
        assert heard(session, "And then?")[1] == []  # once is enough


@pytest.mark.parametrize("damage", ["cut", "missing", "names"])
def test_a_file_that_is_damaged_is_refused(damage, kept, llama_folder):
    """The reply is plain, and the reason is said."""
    with opened(llama_folder, do_sample="off", max_new_tokens=8, compile="on") as session:
        place = kept / key(session.store.current().model)
        if damage == "cut":
            (place / LIBRARY).write_bytes((place / LIBRARY).read_bytes()[:4096])
        elif damage == "missing":
            (place / LIBRARY).unlink()
        else:
            (place / MARKS).write_text("{}")
        done, said = heard(session, STORY)
        assert said[0].startswith("compile rests: what was compiled cannot be used")
        assert done.finish == "length"
        assert not place.exists()


def test_what_was_compiled_when_the_program_ends_is_kept(home, kept, llama_folder):
    """A process that had ended by then has not worked in vain; the folder it wrote in is gone."""
    with opened(llama_folder) as session:
        place = kept / key(session.store.current().model)
        part = kept / "part-x"
        place.rename(part)
        steps = session.store.current().steps
        steps._child = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
        steps._child.wait()
        steps._part, steps._place = part, place
        assert session.compiling() == ("", "")
        assert steps.state == ("compiled", "")
    assert (place / MARKS).is_file()
    assert not part.exists()


def test_what_will_never_go_is_not_tried_again(home, llama_folder):
    """The reason is kept beside the steps."""
    with opened(llama_folder, do_sample="off", max_new_tokens=4, compile="on") as session:
        place = home / "hub-repl" / "cache" / "compiled" / key(session.store.current().model)
        place.mkdir(parents=True)
        (place / REFUSED).write_text("it could not be compiled (too strange)")
        _, said = heard(session, STORY)
        assert said == ["compile rests: it could not be compiled (too strange)"]
        assert not compilers()


def test_steps_that_others_could_have_written_are_not_run(kept, llama_folder):
    """Native code is taken from folders of one's own only."""
    with opened(llama_folder, do_sample="off", max_new_tokens=4, compile="on") as session:
        place = kept / key(session.store.current().model)
        place.chmod(0o777)
        done, said = heard(session, STORY)
        assert "can be written by others" in said[0]
        assert done.finish == "length"


def test_models_and_replies_leave_no_memory_behind(kept, llama_folder):
    """Neither the weights that were lent nor what steps return outlives them."""
    import gc
    import weakref

    import torch

    model, _ = bare(llama_folder)
    native = compiled.opened(kept / key(model), model)
    storages = [weakref.ref(each.untyped_storage()) for each in compiled.tensors(model).values()]
    size = model.lm_head.weight.untyped_storage()
    counts = [torch._C._storage_Use_Count(size._cdata)]
    deviation(native, model)
    counts.append(torch._C._storage_Use_Count(size._cdata))
    assert counts[0] == counts[1]
    gone = weakref.ref(model.lm_head.weight)
    del model, native, size
    gc.collect()
    assert gone() is None
    assert storages


def test_adapters_of_another_scale_have_steps_of_their_own(llama_folder):
    """The scale is a number in the step, not a weight."""
    from peft import LoraConfig, get_peft_model

    keys = [
        key(get_peft_model(bare(llama_folder)[0], LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj"])))
        for alpha in (8, 16, 8)
    ]
    assert keys[0] == keys[2] != keys[1]


def test_without_a_compiler_the_reason_is_said(home, llama_folder, monkeypatch):
    """The process fails, and the reply after that says why."""
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with opened(llama_folder, do_sample="off", max_new_tokens=4) as session:
        run(session, "/fast compile")
        until(lambda: state(session) != "compiling", "the compiler hangs")
        _, said = heard(session, STORY)
        assert said[0].startswith("compile rests: it could not be compiled (")
        assert not list((home / "hub-repl" / "cache" / "compiled").iterdir())


def test_models_that_keep_something_else_are_refused(recurrent_folder, llama_folder):
    """With the reason; a model that is left alone is not."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    assert "something else than the keys and values" in unfit(bare(recurrent_folder)[0])
    model, _ = bare(llama_folder)
    assert unfit(model) == ""
    assert "on meta" in unfit(model.to("meta"))
    model, _ = bare(llama_folder)
    add_hook_to_module(model, ModelHook())
    assert "moved" in unfit(model)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "yarn", "linear"])
def test_positions_that_change_with_the_length_are_refused(kind):
    """What a step has fixed would be wrong beyond the length it was traced at."""
    from transformers import LlamaConfig

    scaled = {"rope_type": kind, "factor": 2.0, "original_max_position_embeddings": 64}
    config = LlamaConfig(rope_parameters={"rope_theta": 10000.0, **scaled, **LONGROPE.get(kind, {})})
    assert moving(config) == (kind in ("dynamic", "longrope"))


def test_old_steps_make_room_for_new_ones(tmp_path):
    """Those used last stay; what is being made stays for a day."""
    now = time.time()
    for place in range(MOST + 3):
        (tmp_path / f"step{place}").mkdir()
        os.utime(tmp_path / f"step{place}", (now - place, now - place))
    for name, age in (("part-new", 60), ("part-old", 90000)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (now - age, now - age))
    sweep(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"part-new", *(f"step{place}" for place in range(MOST))}


def test_a_cache_that_cannot_be_written_is_said(home, llama_folder):
    """The reply is plain."""
    (home / "hub-repl" / "cache").mkdir(parents=True)
    (home / "hub-repl" / "cache" / "compiled").write_text("in the way")
    with opened(llama_folder, do_sample="off", max_new_tokens=4, compile="on") as session:
        done, said = heard(session, STORY)
        assert said[0].startswith("compile rests: it could not be compiled (")
        assert done.finish == "length"


def test_it_excludes_reading_ahead_and_several_sequences(llama_folder):
    """One way to be fast at a time; beams go their own way."""
    with opened(llama_folder, prompt_lookup=5) as session:
        run(session, "/compile on")
        with pytest.raises(UsageError, match="nothing is read ahead"):
            ask(session, STORY)
        task = registry.read("/fast compile").run(session)
        finish(task)
        assert (session.settings.decode.prompt_lookup, session.settings.decode.compile) == (0, True)
        run(session, "/fast prompt_lookup")
        assert (session.settings.decode.prompt_lookup > 0, session.settings.decode.compile) == (True, False)
        run(session, "/fast off", "/beams 2")
        assert "compile has no effect while several sequences" in str(run(session, "/compile on"))


def test_the_key_tells_steps_apart(llama_folder, gpt2_folder):
    """Weights do not count; shapes, formats, the attention and the layers do."""
    import torch

    model, _ = bare(llama_folder)
    first = key(model)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert key(model) == first
    others = [key(bare(gpt2_folder)[0]), key(bare(llama_folder, "bfloat16")[0])]
    model.config._attn_implementation = "eager"
    others.append(key(model))
    model.config.rope_theta = 5.0
    others.append(key(model))
    assert len({first, *others}) == 5


def test_the_state_is_told_without_a_model_or_where_it_is_off(llama_folder):
    """Nothing to say is said with nothing."""
    assert Steps().state == ("", "")
    assert Load().model == "builtin"
    with opened(llama_folder) as session:
        assert session.compiling() == ("", "")
