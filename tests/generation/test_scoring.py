"""Scores of given ids: the numbers of a plain forward pass, in steps of any size, on every kind of model."""

import pytest
from driving import ask, bare, opened, refused, run

from repl.core.errors import Cancelled, Failed, UsageError
from repl.generation import measure

pytestmark = pytest.mark.library

TEXT = "The quick brown fox jumps over the lazy dog while seven wizards quietly box. Prices rose by 12.5 percent."


def plain(folder, ids):
    """Logits of one forward pass with nothing but the library, shape (tokens, vocab)."""
    import torch

    with torch.no_grad():
        return bare(folder)[0](torch.tensor([ids])).logits[0].float()


SHAPE = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "sliding_window": 8, "initializer_range": 0.3},
}


def windowed(folder, family, **more):
    """Write a tiny random model whose attention reaches over eight tokens."""
    import models
    import transformers

    tokenizer = models.byte_level(["<|end|>"], eos_token="<|end|>", bos_token="<|end|>")
    config = getattr(transformers, f"{family}Config")(**models.sizes(tokenizer), **SHAPE, **more)
    with models.seeded(0):
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    return models.save(model, tokenizer, folder)


@pytest.fixture(scope="module")
def sliding_folder(tmp_path_factory):
    """A Mistral."""
    return windowed(tmp_path_factory.mktemp("sliding"), "Mistral")


@pytest.fixture(scope="module")
def capped_folder(tmp_path_factory):
    """A Gemma 2, which caps what comes out of its head."""
    return windowed(tmp_path_factory.mktemp("capped"), "Gemma2", head_dim=8, final_logit_softcapping=2.0)


KINDS = ["llama", "gpt2", "recurrent", "sliding", "capped"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("chunk", "first"), [(256, 1), (7, 1), (1, 1), (5, 9), (7, 20), (256, 12)])
def test_logits_in_steps_are_those_of_one_forward_pass(kind, chunk, first, request, emit):
    """Whatever the size of the steps and the place to begin at."""
    folder = request.getfixturevalue(f"{kind}_folder")
    with opened(folder) as session:
        resident = session.store.current()
        ids = resident.tokenizer(TEXT)["input_ids"]
        expected = plain(folder, ids)
        places = []
        for place, rows in measure.scoring.logits(resident, ids, emit, first, chunk):
            assert len(rows) <= chunk
            places += range(place, place + len(rows))
            assert (rows - expected[place - 1 : place - 1 + len(rows)]).abs().max() < 1e-4
    assert places == list(range(first, len(ids)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_plain_torch(kind, request, emit):
    """Logprob and entropy in nats within 1e-4, ranks and the likeliest tokens exact."""
    folder = request.getfixturevalue(f"{kind}_folder")
    with opened(folder) as session:
        resident = session.store.current()
        ids = resident.tokenizer(TEXT)["input_ids"]
        scored = list(measure.scoring.score(resident, ids, emit, top=3))
        logs = plain(folder, ids).log_softmax(-1)
        for one, row, token in zip(scored, logs[:-1], ids[1:], strict=True):
            assert one.id == token
            assert one.logprob == pytest.approx(row[token].item(), abs=1e-4)
            assert one.entropy == pytest.approx(-(row.exp() * row).sum().item(), abs=1e-4)
            assert one.rank == sorted(row.tolist(), reverse=True).index(row[token].item()) + 1
            assert [place for place, _, _ in one.top] == row.topk(3).indices.tolist()
            assert [text for _, text, _ in one.top] == [resident.tokenizer.decode([i]) for i, _, _ in one.top]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_is_the_last_row(kind, request, emit):
    folder = request.getfixturevalue(f"{kind}_folder")
    with opened(folder) as session:
        resident = session.store.current()
        ids = resident.tokenizer(TEXT)["input_ids"]
        assert (measure.scoring.next_logits(resident, ids, emit) - plain(folder, ids)[-1]).abs().max() < 1e-4
        assert (measure.scoring.next_logits(resident, ids[:1], emit) - plain(folder, ids[:1])[-1]).abs().max() < 1e-4


@pytest.mark.slow
def test_the_kept_cache_is_gone_on_from_and_stays_good(llama_folder, emit):
    """Scoring a reply reads little more than the reply, and the next message reuses what was kept."""
    with opened(llama_folder, max_new_tokens=12) as session, opened(llama_folder, max_new_tokens=12) as other:
        done = ask(session, "What is the capital of France?")
        ask(other, "What is the capital of France?")
        resident = session.store.current()
        ids, read = [*done.prompt_ids, *done.token_ids], []
        list(measure.scoring.score(resident, ids[:9], emit))  # the model is asked once how it reads
        hook = resident.model.model.register_forward_pre_hook(
            lambda _, __, given: read.append(given["input_ids"].shape[-1]), with_kwargs=True
        )
        scored = list(measure.scoring.score(resident, ids, emit, len(done.prompt_ids), shared=True))
        hook.remove()
        logs = plain(llama_folder, ids).log_softmax(-1)[len(done.prompt_ids) - 1 : -1]
        expected = [row[token].item() for row, token in zip(logs, done.token_ids, strict=True)]
        assert [one.logprob for one in scored] == pytest.approx(expected, abs=1e-4)
        assert sum(read) == len(done.token_ids)
        again, fresh = ask(session, "And of Spain?"), ask(other, "And of Spain?")
        assert again.token_ids == fresh.token_ids
        assert again.usage.reused >= len(done.prompt_ids)


def test_without_sharing_the_kept_cache_is_left_alone(llama_folder, emit):
    with opened(llama_folder, max_new_tokens=12) as session:
        ask(session, "What is the capital of France?")
        resident = session.store.current()
        list(measure.scoring.score(resident, resident.tokenizer(TEXT)["input_ids"], emit))
        assert ask(session, "And of Spain?").usage.reused > 10


def test_a_text_beyond_the_context_is_refused(gpt2_folder, emit):
    with opened(gpt2_folder) as session, pytest.raises(UsageError, match="context is 128"):
        list(measure.scoring.score(session.store.current(), [5] * 130, emit))


def test_the_whole_context_can_be_scored(gpt2_folder, emit):
    with opened(gpt2_folder) as session:
        assert len(list(measure.scoring.score(session.store.current(), [5] * 128, emit))) == 127


@pytest.mark.parametrize("ids", [[], [5]])
def test_a_text_of_fewer_than_two_tokens_has_no_scores(llama_folder, emit, ids):
    with opened(llama_folder) as session:
        assert list(measure.scoring.score(session.store.current(), ids, emit)) == []


@pytest.mark.parametrize("kind", ["llama", "recurrent"])
def test_a_cancel_breaks_a_pass_off_and_leaves_the_model_sound(kind, request, emit):
    folder = request.getfixturevalue(f"{kind}_folder")
    with opened(folder) as session:
        resident = session.store.current()
        ids = resident.tokenizer(TEXT)["input_ids"]
        emit.cancel()
        with pytest.raises(Cancelled):
            list(measure.scoring.score(resident, ids, emit))
        hooks = [module for module in resident.model.modules() if module._forward_pre_hooks or module._forward_hooks]
        assert hooks == []


def test_reading_may_be_left_early(llama_folder, emit):
    """A reader that stops in the middle takes the hooks away too."""
    with opened(llama_folder) as session:
        resident = session.store.current()
        reader = measure.scoring.logits(resident, list(range(5, 60)), emit, chunk=5)
        next(reader)
        reader.close()
        assert not [module for module in resident.model.modules() if module._forward_pre_hooks]


def test_numbers_that_are_none_are_refused_by_place(recurrent_folder, emit):
    """The fourth token is none: what comes after it, the fifth, has no numbers."""
    with opened(recurrent_folder) as session:
        resident = session.store.current()
        resident.model.backbone.embeddings.weight.data[7] = float("nan")
        with pytest.raises(Failed, match="NaN or infinite at token 5"):
            list(measure.scoring.score(resident, [5, 6, 8, 7, 9, 10], emit))


def test_ids_outside_the_vocabulary_fail_in_one_sentence(llama_folder, emit):
    with opened(llama_folder) as session, pytest.raises(Failed, match="the text cannot be read"):
        list(measure.scoring.score(session.store.current(), [5, 10**6, 7], emit))


def test_the_path_of_no_file_is_not_scored_as_a_text(llama_folder, tmp_path):
    """Nobody means the letters of a path; what only looks a little like one is a text."""
    with opened(llama_folder) as session:
        for path in (tmp_path / "gone.txt", "./gone", "~/gone.txt", "../gone/away"):
            refused(session, f"/score {path}", "there is no file")
        for text in ("and/or", "/usr and /bin", "..."):
            assert run(session, f"/score {text}").source == "text"


def test_narrow_numbers_are_measured_in_wide_ones(llama_folder, emit):
    """A bfloat16 model's logits come as float32."""
    with opened(llama_folder, dtype="bfloat16") as session:
        (_, rows), *_ = measure.scoring.logits(session.store.current(), [5, 6, 7], emit)
        assert str(rows.dtype) == "torch.float32"


@pytest.mark.slow
def test_the_builtin_model_scores_as_plain_torch_does(builtin_folder, emit):
    with opened(builtin_folder) as session:
        resident = session.store.current()
        ids = resident.tokenizer("The capital of France is Paris.")["input_ids"]
        logs = plain(builtin_folder, ids).log_softmax(-1)
        found = [one.logprob for one in measure.scoring.score(resident, ids, emit)]
        assert found == pytest.approx([row[token].item() for row, token in zip(logs, ids[1:], strict=False)], abs=1e-4)
