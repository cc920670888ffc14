"""Quantizing through libraries, weights that are stored quantized, and GGUF files."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from driving import ask, opened, run

from repl import models
from repl.core.errors import BadModel, MissingExtra
from repl.core.settings import Load


@pytest.fixture
def stored(llama_folder: Path, tmp_path: Path) -> Any:
    """Copy the tiny Llama with a `quantization_config` in its config."""

    def copy(**values: Any) -> Path:
        folder = Path(shutil.copytree(llama_folder, tmp_path / "stored"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": values}))
        return folder

    return copy


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq"}, "awq"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"bits": 4}, "an unnamed format"),
    ],
)
def test_the_form_that_weights_are_stored_in_is_read_from_the_config(stored, values, form):
    assert models.quantization.stored_form(stored(**values)) == form


def test_plain_weights_have_no_form(llama_folder, tmp_path):
    assert models.quantization.stored_form(llama_folder) == ""
    assert models.quantization.stored_form(tmp_path) == ""


@pytest.mark.slow
@pytest.mark.parametrize(("form", "package"), [("gptq", "gptqmodel"), ("awq", "gptqmodel"), ("aqlm", "aqlm")])
def test_a_stored_form_names_the_package_it_needs(llama_folder, stored, form, package):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    folder = stored(quant_method=form, bits=4)
    with opened(llama_folder) as session:
        with pytest.raises(MissingExtra, match=package) as caught:
            run(session, f"/model {folder}")
        assert form in caught.value.message
        assert package in caught.value.hints[0]
        assert session.facts().id == str(llama_folder)


def test_what_is_stored_quantized_is_not_quantized_again(llama_folder, stored):
    folder = stored(quant_method="gptq", bits=4)
    with opened(llama_folder, quantize="int4") as session, pytest.raises(BadModel, match="stored as gptq already"):
        run(session, f"/model {folder}")


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_bitsandbytes_works_or_is_named(llama_folder, quantize):
    with opened(llama_folder, dtype="auto", max_new_tokens=4) as session:
        if importlib.util.find_spec("bitsandbytes") is None:
            with pytest.raises(MissingExtra, match="needs the bitsandbytes package") as caught:
                run(session, f"/quantize {quantize}")
            assert "pip install 'hub-repl[quant]'" in caught.value.hints
            return
        before = session.facts().bytes
        run(session, f"/quantize {quantize}")
        assert session.facts().quantization == quantize
        assert session.facts().bytes < before
        assert ask(session, "Hello").token_ids


def test_int4_on_a_gpu_names_torchao_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(models.quantization, "is_installed", lambda package: False)
    with pytest.raises(MissingExtra, match="int4 on a GPU needs the torchao package"):
        models.quantization.quantization_config(Load(quantize="int4", device="cuda:0"))
    assert models.quantization.quantization_config(Load(quantize="int4", device="cpu")) is None


def test_packed_layers_compute_in_bfloat16_unless_you_say_otherwise():
    assert models.quantization.load_dtype(Load(quantize="int4", device="cpu")) == "bfloat16"
    assert models.quantization.load_dtype(Load(quantize="int8", device="cpu", dtype="float32")) == "float32"
    assert models.quantization.load_dtype(Load(device="cpu")) == "auto"
