"""What is refused, and what each refused class would need."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Collection
from typing import Any

# Of the entries that transformers cannot build small, or not run on texts alone.
NEEDS = {
    "bros": "the box of each token on its page, beside the token ids: prompts have no such field",
    "clvp": "a plugin for its text encoder: the whole model compares texts with speech",
    "dia": "a plugin for its encoder: the states of the whole model are its decoder's, which reads codes of sound",
    "dpr": "a plugin that names the BERT inside it: the classes of transformers give one vector a text, and no states of tokens",
    "evolla": "a plugin for its language model: the whole model reads a protein beside the text, and no Auto class makes it",
    "fastspeech2_conformer": "a plugin for its encoder of phonemes: the whole model gives spectrograms",
    "fastspeech2_conformer_with_hifigan": "a plugin for its encoder of phonemes: the whole model gives spectrograms",
    "fsmt": "a plugin that takes the decoder's states before its output layer, which the base model of transformers includes",
    "gemma3n": "Pillow and timm, of which its vision tower is made; gemma3n_text, its text model, needs neither and runs packed",
    "gemma4_assistant": "the keys and values of the model that it drafts for: it reads no text by itself",
    "gemma4_unified_assistant": "the keys and values of the model that it drafts for: it reads no text by itself",
    "higgs_audio_v2": "a plugin that names the language model inside it: what transformers has as its base model gives logits",
    "layoutlmv2": "detectron2, of which its vision tower is made, and the box of each token: prompts have no such field",
    "musicgen": "a plugin for the T5 that reads its texts: the decoder reads codes of sound",
    "musicgen_melody": "a plugin for the T5 that reads its texts: the decoder reads codes of sound",
    "pe_audio_video": "Pillow and timm, and inputs of sound and video: it compares them with texts",
    "vits": "a plugin for its encoder of phonemes: the whole model gives sound",
}  # fmt: skip
_NO_BASE = "a plugin whose `Architecture.classifier_class` names a class: transformers has no base model for it"
_PARTS = "a plugin that names one of its parts: it has no forward of its own"
_COMPARES = "a plugin for its text encoder: the model compares texts with {}, and reads none alone"
_LIBRARY = "a class that transformers {version} names and does not have"


def refused_types(but: Collection[str] = ()) -> dict[str, list[str]]:
    """Every model type that is refused before anything is built: what it would need → its model types.

    Args:
        but: model types left out.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    from vllm_cls.adapters.classifiers.families import base_class, text_class
    from vllm_cls.errors import ModelError

    bases = modeling_auto.MODEL_MAPPING_NAMES
    found = defaultdict(list)
    for model_type, config_class in transformers.CONFIG_MAPPING.items():
        if model_type in but or not config_class.__module__.startswith("transformers."):
            continue
        try:
            text_class(config_class)
        except ModelError:
            try:
                need = _need(base_class(config_class))
            except ModelError:
                need = _LIBRARY.format(version=transformers.__version__) if model_type in bases else _NO_BASE
            found[need].append(model_type)
    return {need: sorted(found[need]) for need in sorted(found, key=lambda need: (-len(found[need]), need))}


def _need(model_class: Any) -> str:
    from torch import nn

    from vllm_cls.adapters.classifiers.families import other_modalities

    if model_class.forward is nn.Module.forward:
        return _PARTS
    others = other_modalities(model_class) or "something else"
    if "return_loss" in inspect.signature(model_class.forward).parameters:
        return _COMPARES.format(others)
    return f"inputs that are no texts: {others}"
