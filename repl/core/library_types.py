"""Types of the libraries for annotations; no library is imported for them at run time.

They inform readers and editors. `mypy` treats them as `Any`: it does not follow the libraries
(`follow_imports = "skip"` in pyproject.toml).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor as Tensor
    from torch.nn import Linear as Linear
    from torch.nn import Module as Module
    from transformers import Cache as Cache
    from transformers import GenerationConfig as GenerationConfig
    from transformers import LogitsProcessor as LogitsProcessor
    from transformers import LogitsProcessorList as LogitsProcessorList
    from transformers import PreTrainedConfig as PreTrainedConfig
    from transformers import PreTrainedModel as PreTrainedModel
    from transformers import PreTrainedTokenizerBase as PreTrainedTokenizerBase
    from transformers import StoppingCriteriaList as StoppingCriteriaList
    from transformers.cache_utils import CacheLayerMixin as CacheLayerMixin
    from transformers.generation.streamers import BaseStreamer as BaseStreamer
    from transformers.utils import ModelOutput as ModelOutput
else:
    Tensor = Linear = Module = Cache = CacheLayerMixin = ModelOutput = BaseStreamer = Any
    GenerationConfig = LogitsProcessor = LogitsProcessorList = StoppingCriteriaList = Any
    PreTrainedConfig = PreTrainedModel = PreTrainedTokenizerBase = Any
