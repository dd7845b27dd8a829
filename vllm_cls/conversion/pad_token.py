"""Chooses a pad token that does not occur at the end of prompts, since transformers' decoders pool before the padding."""

from __future__ import annotations

from typing import Any

from ..architecture import Target
from ..compat.transformers_calls import model_errors
from ..model.loading.source import ModelSource
from .head_job import HeadJob

_ENDINGS = ("text", "A sentence.", "7", "\U0001fabf")  # the last one ends in unk where a tokenizer can give that


def choose_pad(source: ModelSource, target: Target, job: HeadJob) -> tuple[list[str], Any]:
    """A pad token that transformers' search for the last token that is not pad cannot take for the prompt's end.

    Returns:
        Warnings, and the tokenizer if it has to be written with another pad token, else None.
    """
    tokenizer = source.tokenizer
    if tokenizer is None:
        return [], None
    vocab_size = source.architecture.vocab_size(source.backbone_config)
    endings = {job.token_ids(sample)[-1] for sample in _ENDINGS}
    with model_errors(f"{source.checkpoint.name}: the special tokens in tokenizer_config.json have no ids"):
        special = [tokenizer.pad_token_id, tokenizer.unk_token_id, *tokenizer.all_special_ids]
    usable = [i for i in special if i is not None and i not in endings and i < vocab_size]
    meaningful = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    chosen = next((i for i in usable if i not in meaningful), next(iter(usable), None))
    target.config.pad_token_id = chosen
    if chosen is None:
        return [
            "no token can serve as padding, so plain transformers classifies one text at a time; vcls batches them all the same"
        ], None
    shown = tokenizer.convert_ids_to_tokens(chosen)
    warnings = []
    if chosen in meaningful:
        warnings.append(f"where a prompt ends in {shown!r}, which is the pad token, the token before it is classified")
    if tokenizer.pad_token_id == chosen:
        return warnings, None
    tokenizer.pad_token = shown
    return warnings, tokenizer
