"""Every family of transformers: what its base and language models save becomes its classifier, on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import logging
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto import modeling_auto as auto

from vllm_cls.adapters import as_seq_cls_model
from vllm_cls.adapters.writer.tensor_names import LoadOptions, plan_names
from vllm_cls.checkpoint.name_rules import Reader
from vllm_cls.compat.meta_loading import load_on_meta
from vllm_cls.errors import ModelError

NATIVE = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
SOURCES = (
    auto.MODEL_MAPPING, auto.MODEL_FOR_CAUSAL_LM_MAPPING, auto.MODEL_FOR_MASKED_LM_MAPPING,
    auto.MODEL_FOR_PRETRAINING_MAPPING, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
)  # fmt: skip
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers", "n_layers")
# Parts that a source may really lack: a masked LM has no pooler, the decoder of an encoder-decoder no encoder, that of a
# model for images is not the whole.
LACKING = (".pooler.", ".encoder.", "perceiver.decoder.", "language_model.", ".relative_bias.")


def first(found: Any) -> type:
    return found[0] if isinstance(found, (tuple, list)) else found


def small(config_class: type) -> Any:
    """A config with two layers where it can be made, else its default; None where it has none."""
    try:
        whole = config_class()
        return config_class(**{name: 2 for name in LAYERS if isinstance(getattr(whole, name, None), int)})
    except Exception:  # each config class refuses in its own way
        return None


def saved(model_class: type, config: Any) -> dict[str, torch.Tensor] | None:
    """Names and shapes that a model of this class saves; None where it cannot be made from a default config."""
    try:
        with torch.device("meta"):
            model = model_class(copy.deepcopy(config))
        tensors = {
            name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys
        }
        return revert_weight_conversion(model, tensors)
    except Exception:  # each model class refuses in its own way
        return None


def cases(config_class: type, target: type) -> Iterator[tuple[str, str | None]]:
    """For each class that a source may be saved from: its name, and why it was refused or None."""
    config = small(config_class)
    if config is None:
        return
    try:
        reader = Reader(load_on_meta(target, config, {}, torch.float32)[0])
    except (ModelError, AttributeError):
        return  # no model can be made from the default config
    head = {name: tensor for name, tensor in reader.parameters.items() if not name.startswith(reader.inside)}
    for source in {first(mapping[config_class]) for mapping in SOURCES if config_class in mapping}:
        tensors = saved(source, config)
        if tensors is None:
            continue
        opening = LoadOptions(target, config, torch.float32, source.__name__, [source.__name__])
        try:
            plan_names(opening, tensors, head)
            yield source.__name__, None
        except ModelError as error:
            yield source.__name__, str(error)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["native", "made here"])
def test_every_family_converts_or_is_refused_for_a_reason(kind: str) -> None:
    logging.set_verbosity_error()
    if kind == "native":
        targets = {config_class: first(NATIVE[config_class]) for config_class in NATIVE}
    else:
        others = [one for one in auto.MODEL_FOR_CAUSAL_LM_MAPPING if one in auto.MODEL_MAPPING and one not in NATIVE]
        targets = {one: as_seq_cls_model(first(auto.MODEL_MAPPING[one])) for one in others}
    results = [case for config_class, target in targets.items() for case in cases(config_class, target)]
    refused = {name: reason for name, reason in results if reason is not None}
    odd = {
        name: reason
        for name, reason in refused.items()
        if not (" lacks " in reason and any(part in reason for part in LACKING))
    }
    assert not odd
    assert len(results) > 150 and len(refused) < len(results) / 6
