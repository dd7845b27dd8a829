"""Reads the settings of a Sentence Transformers CrossEncoder folder beside its config.json.

Until version 5 the activation is in config.json; from 6 on it is in config_sentence_transformers.json, and modules.json
may name a `LogitScore`: two tokens of a causal model whose logits make the score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ModelError
from .files import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Of `processing_kwargs`: what changes no token, and what belongs to the call that renders a chat template.
_HARMLESS = ("padding", "pad_to_multiple_of", "return_tensors", "logits_to_keep")
_OF_THE_CALL = ("tokenize", "truncation", "max_length", "return_dict", "chat_template", "conversation")


@dataclass(frozen=True)
class CrossEncoderFiles:
    """The settings of one CrossEncoder folder.

    Args:
        activation: dotted name of a torch module, or None.
        prompt: prepended to every first text, or None.
        uses_chat_template: pairs are rendered with the tokenizer's chat template.
        template_options: arguments of that template, such as `add_generation_prompt`.
        tokens: ids whose logits make the score, the negative one first where there are two; empty where there is a head.
    """

    activation: str | None
    prompt: str | None
    uses_chat_template: bool
    template_options: Mapping[str, Any]
    tokens: tuple[int, ...]

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> CrossEncoderFiles | None:
        """Read the folder; None where it is no CrossEncoder of version 6 or later.

        Raises:
            ModelError: it holds modules that are not supported.
        """
        own = checkpoint.json("config_sentence_transformers.json") or {}
        if own.get("model_type") != "CrossEncoder":
            return None
        modules = checkpoint.json("modules.json") or []
        tokens: tuple[int, ...] = ()
        for module in modules[1:]:
            kind = str(module.get("type", "")).rpartition(".")[2]
            if kind != "LogitScore":
                raise ModelError(
                    f"{checkpoint.name} is a CrossEncoder with a {kind} module ({module.get('path')}), which is not "
                    "supported; only Transformer and LogitScore are."
                )
            score = checkpoint.json(f"{module['path']}/config.json") or {}
            ids = (score.get("false_token_id"), score["true_token_id"])
            tokens = tuple(int(each) for each in ids if each is not None)
        transformer = checkpoint.json("sentence_bert_config.json") or {}
        return cls(
            activation=own.get("activation_fn"),
            prompt=(own.get("prompts") or {}).get(own.get("default_prompt_name")),
            uses_chat_template="message" in (transformer.get("modality_config") or {}),
            template_options=_template_options(checkpoint, transformer.get("processing_kwargs") or {}),
            tokens=tokens,
        )


def _template_options(checkpoint: Checkpoint, processing: Mapping[str, Any]) -> dict[str, Any]:
    """The chat template's arguments in `processing_kwargs`.

    Raises:
        ModelError: there are others that would change the model's input.
    """
    options = {
        name: value for name, value in (processing.get("chat_template") or {}).items() if name != "restore_suffix"
    }
    settings = {name: set(processing.get(name) or ()) for name in ("text", "common")}
    unsupported = sorted((settings["text"] | settings["common"]) - set(_HARMLESS)) + sorted(
        set(options) & set(_OF_THE_CALL)
    )
    if unsupported:
        raise ModelError(
            f"{checkpoint.name} is a CrossEncoder whose processing_kwargs set {', '.join(unsupported)}, which is not supported; "
            "take them out of sentence_bert_config.json if they change nothing."
        )
    return options


def read_activation(checkpoint: Checkpoint, config: PreTrainedConfig) -> None:
    """Copy the folder's activation into the config, where versions before 6 have it."""
    files = CrossEncoderFiles.from_checkpoint(checkpoint)
    if files is not None and files.activation and not getattr(config, "sentence_transformers", None):
        config.sentence_transformers = {"activation_fn": files.activation}
