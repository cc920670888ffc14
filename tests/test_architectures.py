"""A telling dozen of the library's architectures: each answers with the ids of a bare `generate`, in every way."""

import architectures
import pytest
from examine import examine

KINDS = {
    "bert": "score",  # made for whole texts
    "cpmant": "lens score",  # a prompt of its own stands before the text
    "deepseek_v3": "",  # latent attention, experts
    "gemma4": "",  # values that differ from layer to layer, a vision tower
    "git": "",  # a vision tower as deep as the decoder
    "kosmos-2": "lens score",  # hands a text over to a part of itself
    "lfm2": "",  # convolutions
    "llava": "",  # loaded as an image-text model
    "mamba": "",  # recurrent
    "mixtral": "",  # experts
    "moshi": "",  # leaves its sliding window to the cache
    "openai-gpt": "",  # no cache
    "opt": "",  # learned positions
    "qwen3_next": "",  # recurrent and attention
    "qwen3_vl": "",  # positions in three dimensions
    "reformer": "lens",  # two streams through its layers
    "xlnet": "lens score",  # no limit on the context, a memory instead of a cache
    "zamba2": "",  # recurrent, with blocks that layers share
}
"""Types, each with the views that it refuses in a sentence."""


@pytest.mark.slow
@pytest.mark.library
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # what the library warns of in models this small
def test_an_architecture_answers_as_generate_does(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HUB_REPL_HOME", str(tmp_path / "home"))
    found: dict[str, str] = {}
    architectures.make(kind, tmp_path)
    examine(tmp_path, found)
    wrong = {view: word for view, word in found.items() if not word.startswith("ok")}
    if found["bare"].startswith("RAISES"):  # kosmos-2 in transformers 5.23: refused, as the library fails too
        assert found["load"].startswith("says: ")
        return
    assert " ".join(sorted(wrong)) == KINDS[kind], wrong
    assert all(word.startswith("says: ") for word in wrong.values()), wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "why"),
    [("blip", "needs an image"), ("diffusion_gemma", "token by token"), ("prophetnet", "generate() fails")],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_answer_text_alone_is_refused_at_the_load(kind, why, tmp_path):
    found: dict[str, str] = {}
    architectures.make(kind, tmp_path)
    examine(tmp_path, found)
    assert found["load"].startswith("says: ")
    assert why in found["load"]
