"""What is read from a model's files: a tokenizer that does not load names its file and the cause."""

import shutil
from pathlib import Path

import pytest
from conftest import Recorder

from repl import models
from repl.core.errors import BadModel
from repl.core.settings import Load

BROKEN = {
    b'{"model": {"type": "BPE",\n': "tokenizer.json is not JSON (line 2, column 1)",
    b"\xff\xfe": "tokenizer.json is not JSON",
    b"[1]": "tokenizer.json is not a JSON object",
    b"{}": "tokenizer.json contains no tokenizer model",
}


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_tokenizer_names_its_file(content: bytes, llama_folder: Path, tmp_path: Path, emit: Recorder) -> None:
    shutil.copytree(llama_folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(BadModel) as caught:
        models.loader.load_tokenizer_alone(Load(str(tmp_path)), emit)
    assert caught.value.message == BROKEN[content]
