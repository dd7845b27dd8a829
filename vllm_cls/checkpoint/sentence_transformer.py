"""Reads a Sentence Transformers folder: how token states are pooled, and the modules after that.

`modules.json` lists the modules: the transformer, a pooling, then any of dense layers, layer norms and a normalisation.
What would be computed otherwise than by Sentence Transformers is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .files import Checkpoint

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from .embedding_modules import Stage

_MODULES, _SETTINGS = "modules.json", "config_sentence_transformers.json"
_TRANSFORMER_FILES = [
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
# Their names, in the order in which old files' several poolings are joined → ours.
_POOLINGS = {
    "cls": "CLS",
    "max": "MAX",
    "mean": "MEAN",
    "mean_sqrt_len_tokens": "MEAN_SQRT_LEN",
    "weightedmean": "WEIGHTED_MEAN",
    "lasttoken": "LAST",
}
_OLD_NAMES = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_PLAIN = {"method": "forward", "method_output_name": "last_hidden_state"}
# Settings of the transformer module that change its states, with the values that do not.
_CHANGES = {
    "transformer_task": (None, "feature-extraction"),
    "module_output_name": (None, "token_embeddings"),
    "processing_kwargs": (None, {}),
    "tokenizer_name_or_path": (None,),
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None,),
}
_ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
_HARMLESS = ("trust_remote_code", "torch_dtype", "dtype", "attn_implementation", "device_map", "padding_side")


@dataclass(frozen=True)
class Embedder:
    """How a Sentence Transformers folder makes embeddings from its model's hidden states.

    Args:
        pooling: a pooling method, or several joined by "+", whose results are concatenated.
        stages: the modules after the pooling, `(hidden,)` → `(dimensions,)`, in float32.
        normalizes: the embedding has unit length, unless a request says otherwise.
        prompt: prepended to every text, "" for none.
        description: all of it in one line, for `vcls inspect`.
    """

    pooling: str
    stages: Sequence[Stage]
    normalizes: bool
    prompt: str
    description: str

    def embed(self, pooled: torch.Tensor) -> torch.Tensor:
        """A pooled state `(hidden,)` → the embedding `(dimensions,)`, not normalised."""
        for stage in self.stages:
            pooled = stage(pooled)
        return pooled


def read_embedder(checkpoint: Checkpoint, *, is_encoder_decoder: bool, allow_pickle: bool = False) -> Embedder | None:
    """Read the folder; None where it is no Sentence Transformers bi-encoder.

    Raises:
        ModelError: it holds modules or settings that are not supported, or a module's files are damaged.
    """
    from .embedding_modules import dense, layer_norm, normalized

    modules = _modules(checkpoint)
    if "Pooling" not in [kind for kind, _ in modules]:
        return None
    if [kind for kind, _ in modules[:2]] != ["Transformer", "Pooling"]:
        raise _unsupported(checkpoint, f"begins with {' and '.join(kind for kind, _ in modules[:2])}")
    if is_encoder_decoder:
        raise _unsupported(checkpoint, "takes the encoder of an encoder-decoder alone")
    _check_transformer(checkpoint)
    pooling, width = _pooling(checkpoint, modules[1][1])
    stages: list[Stage] = []
    parts = [pooling]
    normalizes = modules[-1][0] == "Normalize"
    for kind, path in modules[2:]:
        settings = checkpoint.json(f"{path}/config.json") or {}
        _check_names(checkpoint, kind, settings)
        if kind == "Dense":
            stage, width = dense(checkpoint, path, settings, width, allow_pickle)
            parts.append(f"Dense to {width}")
        elif kind == "LayerNorm":
            stage = layer_norm(checkpoint, path, width, allow_pickle)
            parts.append(kind)
        elif kind == "Normalize":
            stage = normalized
            parts.append(kind)
        elif kind == "Dropout":  # nothing, where nothing is trained
            continue
        else:
            raise _unsupported(checkpoint, f"has a {kind} module ({path})")
        stages.append(stage)
    prompt = _prompt(checkpoint, modules[1][1])
    parts += [f"default prompt {prompt!r}"] if prompt else []
    return Embedder(pooling, stages[: -1 if normalizes else None], normalizes, prompt, ", ".join(parts))


def transformer_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """The settings of the folder's Transformer module: `max_seq_length`, `do_lower_case` …; empty without one."""
    for name in _TRANSFORMER_FILES:
        found = checkpoint.json(name)
        if isinstance(found, dict) and found:
            return found
    return {}


def lower_case(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Add a lower-casing normalizer to a tokenizer, for `do_lower_case`; in place.

    Raises:
        ModelError: the tokenizer has no Rust implementation, so no normalizer can be added.
    """
    from tokenizers.normalizers import Lowercase, Sequence

    any_tokenizer: Any = tokenizer
    if not any_tokenizer.is_fast:
        raise ModelError(f"{name} lower-cases its texts (do_lower_case), which needs a fast tokenizer; it has none.")
    before = any_tokenizer.backend_tokenizer.normalizer
    any_tokenizer.backend_tokenizer.normalizer = Sequence([Lowercase()] if before is None else [Lowercase(), before])


def _modules(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """(kind, path) of each module; empty where the folder is not Sentence Transformers', or not for embeddings."""
    listed = checkpoint.json(_MODULES)
    model_type = (checkpoint.json(_SETTINGS) or {}).get("model_type", "SentenceTransformer")
    if not listed or model_type != "SentenceTransformer":
        return []
    found = []
    for each in listed:
        kind, path = (str(each.get(name) or "") for name in ("type", "path")) if isinstance(each, dict) else ("", "")
        if not kind or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ModelError(f"{checkpoint.name}: modules.json has {each!r}, which names no module within the folder.")
        if not kind.startswith("sentence_transformers."):
            raise _unsupported(checkpoint, f"has a module with code of its own ({kind})")
        found.append((kind.rpartition(".")[2], path))
    return found


def _unsupported(checkpoint: Checkpoint, what: str) -> ModelError:
    return ModelError(
        f"{checkpoint.name} is a Sentence Transformers folder that {what}, which is not supported: Transformer, Pooling, "
        "Dense, LayerNorm, Dropout and Normalize are. As a classifier it can still be converted (`vcls convert --convert "
        "classify --head …`)."
    )


def _check_transformer(checkpoint: Checkpoint) -> None:
    """Refuse settings that change the transformer's states."""
    settings = transformer_settings(checkpoint)
    for name, harmless in _CHANGES.items():
        if settings.get(name) not in harmless:
            raise _unsupported(checkpoint, f"sets {name}={settings[name]!r}")
    modalities = settings.get("modality_config")
    if modalities is not None and modalities.get("text") != _PLAIN:
        raise _unsupported(checkpoint, f"reads texts as {modalities.get('text')!r}")
    if modalities is not None and "message" in modalities:  # which goes before "text", for texts too
        raise _unsupported(checkpoint, "writes texts into the tokenizer's chat template")
    for name in _ARGUMENTS:
        unsupported = sorted(set(settings.get(name) or ()) - set(_HARMLESS))
        if unsupported:
            raise _unsupported(checkpoint, f"sets {name} {', '.join(unsupported)}")


def _pooling(checkpoint: Checkpoint, path: str) -> tuple[str, int]:
    """The name of the pooling method here, and the size of its result."""
    settings = checkpoint.json(f"{path}/config.json") or {}
    modes = settings.get("pooling_mode")
    if modes is None:
        modes = [name for name, old in _OLD_NAMES.items() if settings.get(old)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    width = settings.get("embedding_dimension", settings.get("word_embedding_dimension"))
    unknown = [mode for mode in modes if mode not in _POOLINGS]
    if unknown or not isinstance(width, int):
        raise _unsupported(checkpoint, f"pools by {unknown or settings!r}")
    return "+".join(_POOLINGS[mode] for mode in modes), width * len(modes)


def _prompt(checkpoint: Checkpoint, pooling_path: str) -> str:
    """The prompt that is prepended to texts by default."""
    settings = checkpoint.json(_SETTINGS) or {}
    name, prompts = settings.get("default_prompt_name"), settings.get("prompts") or {}
    if name is None:
        return ""
    if name not in prompts:
        raise ModelError(f"{checkpoint.name}: the default prompt {name!r} is not among its prompts {sorted(prompts)}.")
    prompt = str(prompts[name] or "")
    if prompt and (checkpoint.json(f"{pooling_path}/config.json") or {}).get("include_prompt") is False:
        raise _unsupported(checkpoint, f"leaves its default prompt {name!r} out of the pooling")
    return prompt


def _check_names(checkpoint: Checkpoint, kind: str, settings: Mapping[str, Any]) -> None:
    for name in ("module_input_name", "module_output_name"):
        if settings.get(name) not in (None, "sentence_embedding"):
            raise _unsupported(checkpoint, f"has a {kind} module with {name}={settings[name]!r}")
