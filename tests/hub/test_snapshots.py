"""What counts as a model that is on this machine."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from repl.core.settings import Load
from repl.hub import cache as hub_cache
from repl.hub.cache import LocalModel, cached_models

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WHOLE = "config.json tokenizer.json model.safetensors"


def cached(*words: str, **options: Any) -> LocalModel | None:
    return hub_cache.find_cached(Load(*words, **options))


def keep(model: str, names: str, revision: str = "main", commit: str = COMMIT) -> Path:
    """Lay files into the cache as the Hub's library does."""
    storage = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}"
    folder = storage / "snapshots" / commit
    folder.mkdir(parents=True, exist_ok=True)
    for name in names.split():
        (folder / name).write_text("{}")
    (storage / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
    (storage / "refs" / revision).write_text(commit)
    return folder


def index(folder: Path, name: str, *files: str) -> None:
    (folder / name).write_text(
        json.dumps({"metadata": {}, "weight_map": {str(n): file for n, file in enumerate(files)}})
    )


def test_a_model_is_found_by_its_name_revision_or_commit():
    folder = keep("acme/tiny", WHOLE)
    assert cached("acme/tiny") == LocalModel("acme/tiny", folder, COMMIT, "")
    assert cached("acme/tiny", COMMIT) == cached("acme/tiny")
    assert cached("acme/tiny", "v2") is None
    assert cached("acme/other") is None
    keep("acme/tiny", WHOLE, "feature/v2", "f" * 40)
    assert cached("acme/tiny", "feature/v2").commit == "f" * 40


@pytest.mark.parametrize("missing", WHOLE.split())
def test_a_model_without_one_of_its_files_is_not_there(missing):
    keep("acme/tiny", WHOLE.replace(missing, ""))
    assert cached("acme/tiny") is None


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "qwen.tiktoken"])
def test_every_kind_of_tokenizer_counts(name):
    keep("acme/tiny", f"config.json model.safetensors {name}")
    assert cached("acme/tiny") is not None


def test_all_shards_have_to_be_there():
    folder = keep("acme/tiny", "config.json tokenizer.json a.safetensors")
    index(folder, "model.safetensors.index.json", "a.safetensors", "b.safetensors")
    assert cached("acme/tiny") is None
    (folder / "b.safetensors").touch()
    assert cached("acme/tiny") is not None


def test_pickles_count_only_where_they_are_allowed():
    keep("acme/one", "config.json tokenizer.json pytorch_model.bin")
    index(keep("acme/two", "config.json tokenizer.json a.bin"), "pytorch_model.bin.index.json", "a.bin")
    assert [cached(model) for model in ("acme/one", "acme/two")] == [None, None]
    assert all(cached(model, allow_pickle=True) for model in ("acme/one", "acme/two"))


def test_a_gguf_file_needs_nothing_beside_it():
    keep("acme/tiny", "tiny.gguf")
    assert cached("acme/tiny", gguf_file="tiny.gguf").gguf_file == "tiny.gguf"
    assert cached("acme/tiny", gguf_file="other.gguf") is None


@pytest.mark.parametrize(
    "auto_map",
    [{"AutoConfig": "mine.Config", "AutoTokenizer": ["mine.Slow", None]}, {"AutoModel": "acme/code--theirs.Model"}],
)
def test_code_counts_where_it_is_wanted(auto_map):
    """Code of another repository is not looked for here."""
    folder = keep("acme/tiny", WHOLE)
    (folder / "config.json").write_text(json.dumps({"auto_map": auto_map}))
    assert (cached("acme/tiny", trust_remote_code=True) is None) == ("mine.Config" in auto_map.values())
    (folder / "mine.py").touch()
    assert cached("acme/tiny", trust_remote_code=True) is not None


@pytest.mark.parametrize(
    "text", ["", "[]", "\x00", '{"metadata": {}, "weight_map": 1}', '{"weight_map": {"a": "gone.safetensors"}}']
)
def test_an_index_that_cannot_be_followed_is_not_complete(text):
    folder = keep("acme/tiny", "config.json tokenizer.json model.safetensors.index.json")
    (folder / "model.safetensors.index.json").write_text(text)
    assert cached("acme/tiny") is None


@pytest.mark.parametrize("revision", ["", ".", "../../..", "main/..", "\0", "0" * 40, "x" * 5000])
def test_an_odd_revision_is_not_there(revision):
    keep("acme/tiny", WHOLE)
    assert cached("acme/tiny", revision) is None


@pytest.mark.parametrize("model", ["", "..", "../..", "x" * 5000, "\0"])
def test_an_odd_name_is_not_there(model):
    assert cached(model) is None
    assert cached(model, COMMIT) is None


def test_a_link_whose_file_was_deleted_is_not_there(tmp_path):
    folder = keep("acme/tiny", WHOLE)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "gone")
    assert cached("acme/tiny") is None


def test_only_complete_models_are_listed():
    assert cached_models() == []
    for model in ("gpt9", "acme/tiny", "acme/other"):
        keep(model, WHOLE)
    keep("acme/partial", "config.json")
    keep("acme/branch", WHOLE, "v2")
    (Path(constants.HF_HUB_CACHE) / "datasets--acme--text").mkdir()
    assert cached_models() == ["acme/other", "acme/tiny", "gpt9"]
