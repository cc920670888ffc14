"""The logit lens: the last layer is the model's own output, the others are what plain torch makes of them."""

from types import SimpleNamespace

import pytest
from conftest import Recorder
from driving import ask, bare, drawn, opened, run

from repl import analysis
from repl.commands.lens import Lens
from repl.commands.registry import COMMANDS, parse_arguments
from repl.core.errors import Cancelled, Failed, UsageError
from repl.terminal.screen import to_jsonable
from repl.terminal.token_colours import heat

IDS = [3, 14, 15, 9, 26]
SIZES = {
    "vocab_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "hidden_size": 32,
    "initializer_range": 0.3,
}
ROTARY = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
OPT = {**SIZES, "ffn_dim": 48}
OPT["init_std"] = OPT.pop("initializer_range")
FAMILIES = {
    "Llama": ("Llama", ROTARY, "model.norm"),
    "Qwen2": ("Qwen2", ROTARY, "model.norm"),
    "Qwen3": ("Qwen3", ROTARY, "model.norm"),
    "Mistral": ("Mistral", ROTARY, "model.norm"),
    "Gemma": ("Gemma", ROTARY, "model.norm"),
    "Gemma2": ("Gemma2", {**ROTARY, "final_logit_softcapping": 5.0}, "model.norm"),
    "Gemma3": ("Gemma3", {**ROTARY, "final_logit_softcapping": 5.0, "layer_types": None}, "model.norm"),
    "Phi3": ("Phi3", {**ROTARY, "pad_token_id": 0}, "model.norm"),
    "Phi": ("Phi", {**SIZES, "intermediate_size": 48}, "model.final_layernorm"),
    "GPTNeoX": ("GPTNeoX", {**SIZES, "intermediate_size": 48}, "gpt_neox.final_layer_norm"),
    "OPT": ("OPT", {**OPT, "word_embed_proj_dim": 32}, "model.decoder.final_layer_norm"),
    "OPT, projected": (
        "OPT",
        {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
        "model.decoder.project_out",
    ),
    "Cohere": ("Cohere", {**ROTARY, "logit_scale": 0.25}, "model.norm"),
    "Qwen3Moe": (
        "Qwen3Moe",
        {**ROTARY, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2},
        "model.norm",
    ),
    "GPT2": ("GPT2", {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4}, "transformer.ln_f"),
}


def made(family: str):
    """A random model of a family, and the name of what reads its hidden states first."""
    import torch
    import transformers

    name, values, norm = FAMILIES[family]
    config = getattr(transformers, "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config")(**{**values, **ENDS})
    kind = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return kind(config).eval(), norm


def resident(model, **facts):
    return SimpleNamespace(
        model=model,
        facts=SimpleNamespace(id="x", architecture=type(model).__name__, context=0, dtype="float32", **facts),
    )


def by_hand(model, norm: str, hidden):
    """Read hidden states by named parts: norm or projection, head, then the scale or the cap that the config names."""
    import torch

    config = model.config
    logits = model.get_output_embeddings()(model.get_submodule(norm)(hidden))
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits * getattr(config, "logit_scale", 1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_what_plain_torch_makes_of_it(family):
    """The library's own hidden states through named modules; the last row is the output."""
    import torch

    model, norm = made(family)
    found = analysis.logit_lens.layer_logits(resident(model), IDS, Recorder())
    with torch.no_grad():
        output = model(torch.tensor([IDS]), output_hidden_states=True)
        rows = [by_hand(model, norm, hidden[0, -1]) for hidden in output.hidden_states[:-1]]
    assert found.shape == (4, 64)
    assert torch.allclose(found[-1], output.logits[0, -1], atol=1e-5)
    for row, expected in zip(found, rows, strict=False):
        assert torch.allclose(row, expected, atol=1e-4, rtol=1e-4)
    assert not any(torch.allclose(row, found[-1], atol=1e-3) for row in rows)


def test_a_model_with_more_experts_than_layers_is_read_layer_by_layer():
    """The list of experts is longer than that of the layers."""
    import torch

    from repl.generation.measure.forward import decoder_blocks

    model, _ = made("Llama")
    model.model.layers[1].mlp.experts = torch.nn.ModuleList(torch.nn.Identity() for _ in range(9))
    assert decoder_blocks(model) == list(model.model.layers)
    assert analysis.logit_lens.layer_logits(resident(model), IDS, Recorder()).shape == (4, 64)


def test_a_recurrent_model_has_layers_too(recurrent_folder):
    import torch

    model, _ = bare(recurrent_folder)
    found = analysis.logit_lens.layer_logits(resident(model), IDS, Recorder())
    with torch.no_grad():
        output = model(torch.tensor([IDS]))
        hidden = model.backbone.layers[0](model.backbone.embeddings(torch.tensor([IDS])))
        middle = model.lm_head(model.backbone.norm_f(hidden[0, -1]))
    assert torch.allclose(found[-1], output.logits[0, -1], atol=1e-5)
    assert torch.allclose(found[1], middle, atol=1e-4)


def test_bfloat16_is_read_as_well():
    import torch

    model, _ = made("Llama")
    found = analysis.logit_lens.layer_logits(resident(model.to(torch.bfloat16)), IDS, Recorder())
    assert found.dtype == torch.float32


def unlisted(model) -> None:
    import torch

    class Loose(torch.nn.Module):
        """Layers that stand in no list."""

        def __init__(self, one):
            super().__init__()
            self.one = one

        def __iter__(self):
            return iter([self.one])

        def __getitem__(self, _):
            return [self.one]

    model.model.layers = Loose(model.model.layers[0])


def skipping(model) -> None:
    """The first layer's output is used once more after the last layer."""
    kept = []
    model.model.layers[0].register_forward_hook(lambda *found: kept.append(found[2]))
    model.model.norm.register_forward_pre_hook(lambda _, given: given[0] + 0 * kept[-1] + kept[-1].flip(-1))


def once_more(model) -> None:
    model.model.layers[2] = model.model.layers[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (unlisted, "has no list of decoder layers"),
        (skipping, "read like the others, does not give the model's logits"),
        (once_more, "not every one of its 3 layers runs once"),
    ],
)
def test_a_model_that_is_built_otherwise_is_refused_plainly(change, words):
    model, _ = made("Llama")
    change(model)
    with pytest.raises(Failed, match=words):
        analysis.logit_lens.layer_logits(resident(model), IDS, Recorder())


def test_no_hook_stays_behind():
    """Also not after a refusal or a cancel in the middle of the layers."""
    model, _ = made("Llama")
    cancelled = Recorder()
    cancelled.until = lambda event: event.done == 2
    with pytest.raises(Cancelled):
        analysis.logit_lens.layer_logits(resident(model), IDS, cancelled)
    analysis.logit_lens.layer_logits(resident(model), IDS, Recorder())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert [event.done for event in cancelled.events] == [1, 2]


# the command


@pytest.fixture(scope="module")
def chat(llama_folder):
    with opened(llama_folder, max_new_tokens=6) as session:
        ask(session, "hello there")
        yield session


def logits_after(session, ids):
    import torch

    with torch.no_grad():
        return session.store.current().model(torch.tensor([list(ids)])).logits[0, -1]


def test_without_a_text_it_is_the_least_certain_token_of_the_last_reply(chat):
    record = chat.last.record
    found = run(chat, "/lens")
    number = found.tokens - len(record.prompt_ids) + 1
    own = logits_after(chat, [*record.prompt_ids, *record.token_ids[: number - 1]]).log_softmax(-1)
    assert number == run(chat, "/why").number
    assert f"token {number} of exchange 1, the least certain" in drawn(found)
    assert found.answer.id == int(own.argmax())
    assert found.answer.logprob == pytest.approx(float(own.max()), abs=1e-4)
    assert [layer.number for layer in found.layers] == [0, 1, 2]


@pytest.mark.parametrize("at", [1, 3])
def test_at_looks_where_a_token_of_the_reply_was_made(chat, at):
    """Greedy, so the model's answer there is that token."""
    found = run(chat, f"/lens --at {at}")
    record = chat.last.record
    assert found.tokens == len(record.prompt_ids) + at - 1
    assert found.answer.id == record.token_ids[at - 1]
    assert {layer.word.id for layer in found.layers} == {record.token_ids[at - 1]}


def test_a_text_is_taken_without_the_template(chat):
    ids = chat.store.current().tokenizer("Once upon a")["input_ids"]
    found = run(chat, "/lens --top 7 Once upon a")
    logs = logits_after(chat, ids).log_softmax(-1)
    last = found.layers[-1]
    assert found.tokens == len(ids)
    assert [token.id for token in last.top] == logs.topk(7).indices.tolist()
    assert [token.probability for token in last.top] == pytest.approx(logs.topk(7).values.exp().tolist(), abs=1e-5)
    assert [token.rank for token in last.top] == [1, 2, 3, 4, 5, 6, 7]


def test_the_layer_from_which_the_answer_leads_is_the_first_of_the_last_run(chat):
    """Law: from there on it is the likeliest everywhere, one layer before it is not."""
    for text in ("Once upon a time", "The quick brown", "def count", "12.5", "Paris is the", "Once"):
        found = run(chat, f"/lens {text}")
        tops = [layer.top[0].id == found.answer.id for layer in found.layers]
        assert all(tops[found.leads :])
        assert not any(tops[found.leads - 1 : found.leads]) or found.leads == 0
        assert tops.index(True) == found.first
        assert [layer.answer.rank == 1 for layer in found.layers] == tops


def test_a_word_is_followed_by_its_first_token(chat):
    tokenizer = chat.store.current().tokenizer
    found = run(chat, '/lens --word " Paris" The capital of France is')
    (wanted, *_) = tokenizer(" Paris")["input_ids"]
    assert found.word == tokenizer.decode([wanted])
    for layer in found.layers:
        assert layer.word.id == wanted
    logs = logits_after(chat, tokenizer("The capital of France is")["input_ids"]).log_softmax(-1)
    assert found.layers[-1].word.rank == 1 + int((logs > logs[wanted]).sum())
    assert found.layers[-1].word.logprob == pytest.approx(float(logs[wanted]), abs=1e-4)


def test_without_quotes_the_likelier_spelling_of_a_word_is_followed(chat):
    tokenizer = chat.store.current().tokenizer
    logs = logits_after(chat, tokenizer("The capital of France is")["input_ids"])
    starts = [tokenizer(text)["input_ids"][0] for text in ("Paris", " Paris")]
    found = run(chat, "/lens --word Paris The capital of France is")
    assert found.layers[0].word.id == max(starts, key=lambda token: float(logs[token]))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/lens --at 9", "has 6 tokens, not 9"),
        ("/lens --at 2 some text", "counts the tokens of the last reply"),
        ("/lens --top 0 some text", "'0' is not a whole number"),
        ("/lens --top", "'' is not a whole number"),
    ],
)
def test_a_wrong_line_is_one_sentence(chat, line, words):
    with pytest.raises(UsageError, match=words):
        run(chat, line)


def test_before_anything_was_said_it_says_what_to_type(gpt2_folder):
    with opened(gpt2_folder, max_new_tokens=5) as session:
        with pytest.raises(UsageError, match="there is no text yet") as caught:
            run(session, "/lens")
        done = ask(session, caught.value.hints[0].removeprefix("/lens "))
        assert run(session, "/lens").tokens >= len(done.prompt_ids)


def test_a_reply_of_another_model_is_read_from_its_text(llama_folder, gpt2_folder, metaspace_folder):
    with opened(gpt2_folder, max_new_tokens=5) as session:
        done = ask(session, "Once upon a time")
        run(session, f"/model {metaspace_folder}", "/dtype float32")
        tokenizer = session.store.current().tokenizer
        assert run(session, "/lens").tokens == len(tokenizer("Once upon a time" + done.text)["input_ids"])
        with pytest.raises(UsageError, match="is loaded"):
            run(session, "/lens --at 1")


def test_more_tokens_than_the_context_holds_are_refused(gpt2_folder):
    with opened(gpt2_folder) as session, pytest.raises(UsageError, match="context is 128"):
        run(session, "/lens " + "one two three " * 90)


@pytest.mark.parametrize(
    ("line", "words", "named"),
    [
        ("--word a --top 5 the  text", ["the  text"], {"word": "a", "top": 5}),
        ("--top=5 --word ' b c' text", ["text"], {"word": " b c", "top": 5}),
        ("the --top 5 text", ["the --top 5 text"], {}),
        ("--other 5", ["--other 5"], {}),
        ("--top 5", [""], {"top": 5}),
    ],
)
def test_flags_stand_before_the_text_which_is_taken_as_it_is(line, words, named):
    assert parse_arguments(COMMANDS["lens"], line) == (words, named)


def drawn_rows(found: Lens, width: int) -> list[str]:
    return [row.rstrip() for row in drawn(found, width).splitlines()]


@pytest.mark.parametrize("width", [60, 100, 140])
@pytest.mark.parametrize("line", ["/lens --top 9 Once upon", "/lens --word time --top 9 Once upon a"])
def test_a_row_for_each_layer_and_none_is_too_wide(chat, width, line):
    found = run(chat, line)
    rows = drawn_rows(found, width)
    assert max(map(len, rows)) <= width
    layers = [row for row in rows if row.strip("▸ ").split()[0] in ("embedding", "1", "2")]
    assert len(layers) == 3
    assert [row.startswith("▸") for row in layers] == [layer.answer.rank == 1 for layer in found.layers]
    assert all(row[13:16] == 3 * heat(one.answer.probability) for row, one in zip(layers, found.layers, strict=True))
    assert width > 60 or found.word or layers[-1].count("%") == 2


def test_what_a_model_says_cannot_act_on_the_screen(chat):
    found = run(chat, "/lens Once")
    hostile = [to_jsonable(found)]
    assert hostile[0]["layers"][0]["top"][0].keys() == {"id", "text", "probability", "logprob", "rank"}
    rows = drawn_rows(run(chat, "/lens \x1b[31mred\r"), 80)
    assert not any("\x1b" in row or "\r" in row for row in rows)
