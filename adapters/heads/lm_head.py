"""Rows of an LM head, and the check that they give the logits of their tokens.

What a causal LM does between hidden state and logits differs (scales, biases, soft caps, a transform).
It is not read off a list: the class's own forward runs on random states with a small vocabulary, no
weights of the model needed, and what it computes is fitted to `cap(scale * (W h + b))` or refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from vllm_cls.architecture import HeadRequest
from vllm_cls.checkpoint.name_rules import Reader
from vllm_cls.compat.transformers_calls import on_meta
from vllm_cls.errors import ModelError
from vllm_cls.pooler.heads import LenientOutput

_VOCABULARY = 32
_FAILURES = (
    RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, StopIteration,
    StrictDataclassError,
)  # fmt: skip
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configs call the soft cap of their logits."""


@dataclass(frozen=True)
class LmRows:
    """Rows as a linear head: `cap(weight @ state + bias)`; the LM's scale is already applied."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    softcap: float | None


@dataclass(frozen=True)
class Projection:
    """What a language model computes from the last hidden state to its logits: `cap(scale * (weight @ state + bias))`.

    Args:
        weight_name: of the LM head, in its class; `bias_name` likewise.
        input_name: of the input embeddings, which are the LM head's weight where it is `tied`.
    """

    weight_name: str
    input_name: str
    tied: bool
    has_bias: bool
    scale: float
    softcap: float | None


def read_rows(request: HeadRequest, ids: Sequence[int]) -> LmRows:
    """The rows of these token ids, read from the checkpoint's files alone.

    Raises:
        ModelError: the model has no LM head, or one that is not linear in the state.
    """
    projection = projection_of(request)
    name, bias_name = tensors_of(request, projection)
    weight = request.checkpoint.tensor(name, ids) * projection.scale
    bias = None
    if bias_name is not None:
        bias = request.checkpoint.tensor(bias_name)[list(ids)] * projection.scale
    return LmRows(weight, bias, projection.softcap)


def is_embeddings(request: HeadRequest, projection: Projection) -> bool:
    """Whether the LM head's weight is that of the input embeddings.

    A checkpoint may hold both though its config ties them; transformers ties them only where they are equal.
    """
    weight, inputs = stored_name(request, projection.weight_name), stored_name(request, projection.input_name)
    if not projection.tied or weight is None or weight == inputs:
        return projection.tied
    return inputs is None or request.checkpoint.same(weight, inputs)


def tensors_of(request: HeadRequest, projection: Projection) -> tuple[str, str | None]:
    """The names in the checkpoint of an LM head's weight and of its bias, where it has one.

    Raises:
        ModelError: it is not in the files.
    """
    name = stored_name(request, projection.weight_name)
    if name is None and projection.tied:
        name = stored_name(request, projection.input_name)
    if name is None:
        raise ModelError(
            f"{request.checkpoint.name} has no LM head ({projection.weight_name}); label tokens need the *ForCausalLM "
            "checkpoint. Use --head fit on a base model."
        )
    if not projection.has_bias:
        return name, None
    bias_name = stored_name(request, projection.weight_name.removesuffix("weight") + "bias")
    if bias_name is None:
        raise ModelError(f"{request.checkpoint.name}: its LM head has a bias, which is not in the files.")
    return name, bias_name


def stored_name(request: HeadRequest, name: str) -> str | None:
    """What the checkpoint calls a parameter of the LM's class; None where it does not have it.

    It is stored under its own name, or is the only one that ends in the same two parts (other prefixes on disk), or the
    one that transformers renames so when it loads (GPT-NeoX's `embed_out`).
    """
    names = request.checkpoint.locations
    if name in names:
        return name
    tail = "." + ".".join(name.split(".")[-2:])
    matches = [each for each in names if f".{each}".endswith(tail) and ".visual." not in f".{each}"]
    if len(matches) != 1:
        reader = Reader(_small_vocabulary(_lm_class(request), request.config))
        matches = [each for each in names if reader.target(each) == (name, False)]
    return matches[0] if len(matches) == 1 else None


def _lm_class(request: HeadRequest) -> type[PreTrainedModel]:
    import transformers

    named: type[PreTrainedModel] | None = getattr(
        transformers, next(iter(request.config.architectures or ()), ""), None
    )
    if named is not None and named.__name__.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return named
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(request.config), None)
    if found is None:
        raise ModelError(
            f"{request.checkpoint.name} ({request.config.model_type}) has no causal LM head; use --head fit."
        )
    first: type[PreTrainedModel] = found[0] if isinstance(found, (tuple, list)) else found
    return first


class _AnyPath(nn.Module):
    """Replaces the backbone under any attribute path that the LM uses; returns the given states.

    Args:
        numbers: of the backbone, which the LM may read (Falcon-H1's multiplier of the logits).
    """

    def __init__(self, config: PreTrainedConfig, states: torch.Tensor, numbers: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.states = states
        self.numbers = {name: value for name, value in numbers.items() if isinstance(value, int | float)}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):
                raise
            return self.__dict__.get("numbers", {}).get(name, self)

    def forward(self, *args: Any, **kwargs: Any) -> LenientOutput:
        return LenientOutput(last_hidden_state=self.states)


def projection_of(request: HeadRequest) -> Projection:
    lm_class = _lm_class(request)
    refused = f"{lm_class.__name__}: the way from its last state to its logits"
    try:
        model = _small_vocabulary(lm_class, request.config)
        output: Any = model.get_output_embeddings()
        inputs: Any = model.get_input_embeddings()
        paths = {id(module): name for name, module in model.named_modules()}
        if not isinstance(output, nn.Linear):
            raise ModelError(f"{refused} does not end in one linear layer; use --head fit.")
        states, weight, bias = _fill(output)
        weight_name, input_name = f"{paths[id(output)]}.weight", f"{paths[id(inputs)]}.weight"
        backbone = next(name for name in (model.base_model_prefix, "model") if hasattr(model, name))
        setattr(model, backbone, _AnyPath(model.config, states, vars(getattr(model, backbone))))
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.zeros(1, states.shape[1], dtype=torch.long)).logits[0].float()
        linear = states[0] @ weight.T + (0 if bias is None else bias)
        if logits.shape != linear.shape or logits.device != linear.device:
            raise ValueError(f"its logits are of shape {tuple(logits.shape)} on {logits.device}")
    except _FAILURES as error:
        raise ModelError(f"{refused} cannot be checked ({type(error).__name__}: {error}); use --head fit.") from error
    text = request.config.get_text_config()
    softcap = next((cap for name in _SOFTCAPS if (cap := getattr(text, name, None))), None)
    for cap in (None, softcap) if softcap else (None,):
        uncapped = logits if cap is None else torch.atanh((logits / cap).clamp(-0.999999, 0.999999)) * cap
        scale = float((uncapped * linear).sum() / (linear * linear).sum())
        if torch.allclose(uncapped, scale * linear, rtol=1e-4, atol=1e-4):
            exact = round(scale, 6) if abs(scale - round(scale, 6)) < 1e-6 else scale
            tied = bool(getattr(request.config.get_text_config(), "tie_word_embeddings", False))
            return Projection(weight_name, input_name, tied, bias is not None, exact, cap)
    raise ModelError(f"{refused} is more than a linear layer, a scale and a soft cap; use --head fit.")


def _small_vocabulary(lm_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The LM on the meta device, with so few tokens that its head costs nothing."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.vocab_size = _VOCABULARY
    for each in {id(config): config, id(text): text}.values():
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(each, name, None) is not None:  # some configs take no None in its place
                setattr(each, name, 0)
    return on_meta(lm_class, config)


def _fill(output: nn.Linear) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Set random weights of the LM head, small enough for a soft cap to be inverted; returns states for it."""
    generator = torch.Generator().manual_seed(0)
    width = output.in_features
    weight = torch.randn(output.out_features, width, generator=generator) / width**0.5
    output.weight = nn.Parameter(weight)
    bias = None
    if output.bias is not None:
        bias = torch.randn(output.out_features, generator=generator)
        output.bias = nn.Parameter(bias)
    return torch.randn(1, 4, width, generator=generator), weight, bias
