"""Compile the step of a model: a process of its own, told what to do by a line of JSON on stdin, which stays open."""

import inspect
import json
import os
import select
import shutil
import signal
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from repl import libraries, library
from repl.compiled import LIBRARY, MARKS, REST, ROOM, deviation, digest, opened, signature, tensors
from repl.compiler import NEVER
from repl.errors import Failed, ReplError
from repl.loading import bring
from repl.settings import Load
from repl.worker import Emit, Job, aside

OPTIONS = {
    "aot_inductor.package_constants_in_so": False,  # the weights are lent by whoever runs the step
    "cpp.dynamic_threads": True,
}
SCRATCH = "scratch"


class Master(Job[None]):
    """The program that wants the step: its end is the end of this process, and of the compilers it started."""

    def check(self) -> None:
        """End at once when nobody is at the other end of stdin any more."""
        if select.select([0], [], [], 0)[0] and not os.read(0, 1):
            os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Do what stdin says; the last line of stderr tells what kept it from that."""
    os.nice(10)  # replies go first
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out this process ends, not the other
    order, master = json.loads(sys.stdin.buffer.readline()), Master(lambda _: None)
    part = Path(order["part"])
    os.environ |= {"TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(part / SCRATCH)}
    libraries.bring(master)
    try:
        aside(lambda: work(Load(**order["load"]), part, order["signature"], master), master)
    except ReplError as error:
        sys.exit(error.message)
    except Exception as error:
        sys.stderr.write(f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}\n")
        said = f"{type(error).__name__} {error}"
        passing = isinstance(error, OSError | MemoryError) or "CxxCompiler" in said or "CppCompile" in said
        sys.exit(1 if passing else NEVER)


def work(load: Load, part: Path, wanted: str, emit: Emit) -> None:
    """Load the model, compile its step and write it into a folder."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    get_cpp_compiler()  # raises where there is none, before anything is done
    model = bring(load, emit, True, lambda *_: None).model
    if signature(model) != wanted:
        raise Failed("the model in its files is no longer the one in memory")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")  # the usual one calls what a library of its own cannot
    program = exported(model)
    constants = {**program.state_dict, **program.constants}
    known = {identity(tensor): name for name, tensor in tensors(model).items()}
    with noted() as made:
        unpack(compiled(program, part / "step.pt2"), part / LIBRARY)
    stand = {name: known[identity(each)] for name, each in constants.items() if identity(each) in known}
    keep({name: each for name, each in made.items() if identity(each) not in known}, part / REST)
    marks = {"digests": [digest(part / LIBRARY), digest(part / REST)], "names": stand}
    (part / MARKS).write_text(json.dumps(marks), "utf-8")
    deviation(opened(part, model), model)  # here, where what it may say or break does not matter
    shutil.rmtree(part / SCRATCH, ignore_errors=True)


def exported(model: Any) -> Any:
    """Trace the step of a model with room for a number of tokens that is left open."""
    import torch

    cache = filled(model)
    keys, values = ([room(getattr(layer, name)) for layer in cache.layers] for name in ("keys", "values"))
    open_ = [{2: torch.export.Dim("room", min=8, max=2**24)} for _ in keys]
    shapes = {"ids": None, "place": None, "keys": open_, "values": open_}
    given = (torch.tensor([[1]]), torch.tensor([3]), keys, values)
    with torch.no_grad():
        return torch.export.export(module(model), given, dynamic_shapes=shapes, strict=False)


def filled(model: Any) -> Any:
    """Return the cache of a short text: it tells the shapes of each layer."""
    import torch
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([[1, 1, 1]]), **{library.cache_name(): cache}, use_cache=True)
    return cache


def room(held: Any) -> Any:
    """Return a tensor like one of a cache, shape (1, heads, tokens, width), with more tokens."""
    return held.new_zeros(1, held.shape[1], ROOM, held.shape[3])


def module(model: Any) -> Any:
    """Return what is compiled: one token and its place go in, with the cache, which is written; logits come out."""
    import torch
    from transformers.cache_utils import Cache, StaticLayer

    class Slot(StaticLayer):  # type: ignore[misc]  # untyped
        """A layer of the cache whose tensors are given."""

        def __init__(self, keys: Any, values: Any, place: Any) -> None:
            super().__init__(keys.shape[2])
            self.keys, self.values, self.cumulative_length = keys, values, place.clone()
            self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
            self.max_batch_size = self.batch_size = 1
            self.num_heads, self.k_head_dim, self.v_head_dim = keys.shape[1], keys.shape[3], values.shape[3]

    takes = inspect.signature(model.forward).parameters
    last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    name = library.cache_name()

    class Step(torch.nn.Module):  # type: ignore[misc]  # untyped
        """One pass for one token."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, place: Any, keys: list[Any], values: list[Any]) -> Any:
            cache = Cache(layers=[Slot(*pair, place) for pair in zip(keys, values, strict=True)])
            where = {"position_ids": place.view(1, 1)} if "position_ids" in takes else {}
            given = {name: cache, "use_cache": True, "return_dict": True, **where, **last}
            output = self.model(input_ids=ids, **given)
            return output.logits[:, -1].float()

    return Step()


def compiled(program: Any, target: Path) -> Path:
    """Compile what was traced; returns the package."""
    import torch._inductor

    torch._inductor.aoti_compile_and_package(program, package_path=str(target), inductor_configs=OPTIONS)
    return target


@contextmanager
def noted() -> Iterator[dict[str, Any]]:
    """Yield the constants of what is compiled meanwhile, by their names in it."""
    from torch._inductor.graph import GraphLowering

    made: dict[str, Any] = {}
    original = GraphLowering.add_tensor_constant

    def noting(graph: Any, data: Any, name: str | None = None) -> Any:
        constant = original(graph, data, name)
        made[constant.get_name()] = data
        return constant

    GraphLowering.add_tensor_constant = noting
    try:
        yield made
    finally:
        GraphLowering.add_tensor_constant = original


def identity(tensor: Any) -> tuple[Any, ...]:
    """Return what two names of one tensor have in common."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def keep(constants: dict[str, Any], file: Path) -> None:
    """Write down the constants that are no weights of the model: there are few, and they are small."""
    from safetensors.torch import save_file

    save_file({name: each.detach().clone().contiguous() for name, each in constants.items()}, file)


def unpack(package: Path, library: Path) -> None:
    """Take the library out of a package, which is removed."""
    with zipfile.ZipFile(package) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".so"))
        with archive.open(name) as packed, library.open("wb") as file:
            shutil.copyfileobj(packed, file)
    package.unlink()
