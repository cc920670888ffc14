"""What is imported only when it is needed, and tensors without numbers."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest

from repl import hollow

TALK = """
import sys
from conftest import Recorder
from repl import later, libraries, loading
from repl.settings import Load

emit = Recorder()
resident = loading.bring(Load(sys.argv[1]), emit, True, lambda *_: None)
import torch
ids = resident.model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False)
"""


def alone(lines: str, *words: str) -> str:
    """Run lines in an interpreter of their own behind a load and a reply; returns what they print."""
    surroundings = [str(Path(__file__).parent), *filter(None, sys.path)]
    lines = f"import sys\nsys.path[:0] = {surroundings!r}\n{TALK}\n{lines}"
    done = subprocess.run([sys.executable, "-c", lines, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_reply_needs_neither_the_compiler_nor_what_comes_with_it(llama_folder: Path) -> None:
    """A thousand modules stay away: memory and most of the time of a first load."""
    line = "print(*(name in sys.modules for name in ('sympy', 'torch._dynamo.utils', 'torch.distributed.tensor')))"
    assert alone(line, str(llama_folder)) == "False False False"


@pytest.mark.parametrize(
    "use",
    [
        "torch._dynamo.reset()",
        "import torch._dynamo.utils as part; assert part.counters is not None",
        "from torch._dynamo.eval_frame import OptimizedModule",
        "from transformers import masking_utils; assert masking_utils.TransformGetItemToIndex().__enter__()",
        "later.bring()",
    ],
)
def test_the_compiler_is_there_once_something_asks_for_it(llama_folder: Path, use: str) -> None:
    """However it is asked for first, each of its modules is imported once, and it compiles."""
    lines = f"""
spared = sys.modules["torch._dynamo"]
again = torch.compiler.disable(lambda x: x + 1)
{use}
compiled = torch.compile(lambda x: again(x * 2), backend="eager")
assert compiled(torch.ones(2)).tolist() == [3, 3]
from torch._dynamo import utils
assert sys.modules["torch._dynamo"] is torch._dynamo is not spared
assert torch._dynamo.utils is utils is sys.modules["torch._dynamo.utils"]
assert getattr(again.__wrapped__, "_torchdynamo_disable", False)
assert not [each for each in sys.meta_path if isinstance(each, later.Finder)]
assert resident.model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, do_sample=False).equal(ids)
print("good")
"""
    assert alone(lines, str(llama_folder)) == "good"


def test_what_others_take_to_be_imported_is_there(llama_folder: Path) -> None:
    """As peft does of what torch shares work with."""
    lines = """
import peft
assert not hasattr(torch.distributed, "nothing")
tuned = peft.get_peft_model(resident.model, peft.LoraConfig(target_modules=["q_proj"]))
assert torch.distributed.tensor.DTensor is sys.modules["torch.distributed.tensor"].DTensor
print(type(tuned(ids).logits).__name__)
"""
    assert alone(lines, str(llama_folder)) == "Tensor"


def test_the_first_model_goes_as_wholly_as_any_other(llama_folder: Path) -> None:
    """The imports before it leave nothing behind that holds what the load came to hold."""
    line = "import gc, weakref; seen = weakref.ref(resident.model); del resident; gc.collect(); print(seen())"
    assert alone(line, str(llama_folder)) == "None"


@pytest.mark.parametrize("make", [models.llama, models.gpt2, models.recurrent, models.metaspace])
def test_a_load_without_numbers_on_the_way_ends_in_the_same_model(tmp_path: Path, make: Callable[..., Path]) -> None:
    """Every parameter and every buffer is what the library alone makes of the files."""
    from transformers import AutoModelForCausalLM

    folder = make(tmp_path / "model")
    bare = AutoModelForCausalLM.from_pretrained(folder)
    with hollow.made():
        ours = AutoModelForCausalLM.from_pretrained(folder)
    assert parts(ours) == parts(bare)


def parts(model: Any) -> dict[str, tuple[Any, ...]]:
    """Return what each tensor of a model is, with its numbers."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: (part.dtype, part.device.type, part.stride(), part.tolist()) for name, part in tensors}


def test_shapes_and_formats_are_those_of_torch() -> None:
    """What is answered for torch on the meta device is what torch answers."""
    import torch

    def made() -> list[Any]:
        with torch.device("meta"):
            counts, halves = torch.arange(0, 64, 2), torch.arange(0, 9, 2.0, dtype=torch.bfloat16)
            steps = torch.arange(0, 64, 2, dtype=torch.float)
            matrix = torch.nn.Linear(4, 3).weight
            tensors = [counts, halves, counts / 64, 2**halves, 1.0 / (10000.0 ** (steps / 64)), counts * 2, matrix * 2]
            alike = [torch.empty_like(matrix.T), torch.empty_like(steps, dtype=torch.half)]
            return [*tensors, *alike, torch.empty_like(steps, device="cpu"), torch.nn.Embedding(5, 4).weight]

    with hollow.made():
        ours = made()
    seen = [[(part.dtype, part.shape, part.stride(), part.device) for part in each] for each in (ours, made())]
    assert seen[0] == seen[1]


def test_numbers_are_left_alone() -> None:
    """Tensors that have numbers are filled and counted as ever."""
    import torch

    with hollow.made():
        assert torch.nn.init.ones_(torch.empty(2)).tolist() == [1, 1]
        assert (2 ** torch.arange(3)).tolist() == [1, 2, 4]
        assert torch.nn.init.constant_(tensor=torch.empty(2), val=3).tolist() == [3, 3]
