"""Quantization: packed here after loading, by a library while loading, or stored quantized."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from repl.core.errors import BadModel, MissingExtra
from repl.core.settings import Load
from repl.hub.weight_headers import Weights
from repl.models import packed_linear
from repl.models.imports import is_installed

PACKED_FORMS = ("int8", "int4")
SAME_NAMES = ("aqlm", "auto-round", "bitsandbytes", "compressed-tensors", "hqq", "quark", "torchao", "vptq")
PACKAGES = {form: (form.replace("-", "_"),) for form in SAME_NAMES} | {
    "awq": ("gptqmodel",),
    "bitsandbytes_4bit": ("bitsandbytes",),
    "bitsandbytes_8bit": ("bitsandbytes",),
    "eetq": ("kernels",),
    "fbgemm_fp8": ("fbgemm_gpu",),
    "gptq": ("optimum", "gptqmodel"),
    "quanto": ("optimum",),
    "spqr": ("spqr_quant",),
}
"""The packages that each stored quantization method needs, by their import names."""
EXTRA = "pip install 'hub-repl[quant]'"


def stored_form(folder: Path) -> str:
    """Return the quantization method of a folder's weights, such as `gptq`; empty where they are not quantized."""
    config: Any = {}
    with suppress(OSError, ValueError):
        config = json.loads((folder / "config.json").read_text("utf-8"))
    inner = config.get("text_config") if isinstance(config, dict) else None
    for part in (config, inner):
        found = part.get("quantization_config") if isinstance(part, dict) else None
        if isinstance(found, dict):
            bits = "bitsandbytes" if found.get("load_in_4bit") or found.get("load_in_8bit") else "an unnamed format"
            return str(found.get("quant_method") or bits)[:40]
    return ""


def require_packages(load: Load, form: str) -> None:
    """Raise `MissingExtra` for a missing package of a stored method, `BadModel` if it should be quantized again."""
    if not form:
        return
    if load.quantize != "none":
        raise BadModel(f"{load.model} is stored as {form} already and cannot be quantized again", "/quantize none")
    if missing := [name for name in PACKAGES.get(form, ()) if not is_installed(name)]:
        names = " ".join(name.replace("_", "-") for name in missing)
        raise MissingExtra(
            f"the weights of {load.model} are stored as {form}, which needs {' and '.join(missing)}",
            f"pip install {names}",
        )


def packs_after_load(load: Load) -> bool:
    """Tell whether the linear layers are packed after loading: int8 and int4 on the CPU."""
    return load.quantize in PACKED_FORMS and not goes_to_gpu(load)


def goes_to_gpu(load: Load) -> bool:
    """Tell whether some or all weights go to a GPU."""
    if load.device == "cpu":
        return False
    return load.device.startswith(("cuda", "mps")) or torch.cuda.is_available() or torch.backends.mps.is_available()


def can_quantize(load: Load) -> bool:
    """Tell whether this machine can quantize as a load asks."""
    try:
        if packs_after_load(load):
            packed_linear.require_kernel(load.quantize)
        else:
            quantization_config(load)
    except (MissingExtra, ImportError):
        return False
    return True


def best_form(bits: int, load: Load) -> str:
    """Return the `quantize` value for 8 or 4 bits that works on the device of a load, empty where none does."""
    ours, theirs = f"int{bits}", f"{bits}bit"
    order = (theirs, ours) if goes_to_gpu(load) else (ours, theirs)
    return next((form for form in order if can_quantize(replace(load, quantize=form))), "")


def load_dtype(load: Load) -> str:
    """Return the dtype to load in; packed layers compute in bfloat16, so `auto` means that."""
    return "bfloat16" if load.dtype == "auto" and packs_after_load(load) else load.dtype


def quantization_config(load: Load) -> Any:
    """Return transformers' `quantization_config` for a load, None for none; raises `MissingExtra`."""
    if load.quantize == "none" or packs_after_load(load):
        return None
    ours = load.quantize in PACKED_FORMS
    package = "torchao" if ours else "bitsandbytes"
    if not is_installed(package):
        here = f"/device cpu quantizes to {load.quantize} without it" if ours else f"/quantize int{load.quantize[0]}"
        where = "on a GPU" if goes_to_gpu(load) else "on the CPU"
        raise MissingExtra(f"{load.quantize} {where} needs the {package} package", EXTRA, here)
    if load.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    if load.quantize == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="bfloat16")
    import torchao.quantization as forms

    int8 = load.quantize == "int8"
    return TorchAoConfig(forms.Int8WeightOnlyConfig() if int8 else forms.Int4WeightOnlyConfig(group_size=32))


def quantization_remarks(load: Load, weights: Weights, packing: Any, size: int) -> list[str]:
    """Return notices about quantized layers and dequantized files; `size` is that of the model in memory (bytes)."""
    said = []
    if packing:
        eight = ", the head in 8 bits" if load.quantize == "int4" else ""
        kept = f", {packing.left} of other shapes not quantized" if packing.left else ""
        said.append(f"{packing.linears} linear layers quantized to {load.quantize}{eight}{kept}; prefill is not faster")
    if load.quantize != "none":
        said.append("/diverge quantize=none shows the effect")
    if weights.format == "gguf" and not packing:
        before, after = (f"{number / 2**20:.0f} MiB" for number in (weights.bytes, size))
        said.append(f"dequantized: {before} in the file, {after} in memory · /quantize int4 quantizes it again")
    return said
