"""Tiny guard models: random weights behind chat templates that take what those of the published ones take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from tokenizers import processors

from . import tiny

LLAMA_GUARD = """{%- if categories is not defined -%}
{%- set categories = {"S1": "Violent Crimes.", "S2": "Hate.", "S10": "Self-Harm."} -%}
{%- endif -%}
{{- "<|start_header_id|>user<|end_header_id|>\\n\\nTask: is there unsafe content by our safety policy?\\n\\n" -}}
{{- "<BEGIN UNSAFE CONTENT CATEGORIES>\\n" -}}
{%- for key in categories -%}{%- if key not in excluded_category_keys -%}
{{- key + ": " + categories[key] + "\\n" -}}
{%- endif -%}{%- endfor -%}
{{- "<END UNSAFE CONTENT CATEGORIES>\\n\\n<BEGIN CONVERSATION>\\n\\n" -}}
{%- for message in messages -%}
{%- for part in message["content"] | selectattr("type", "equalto", "text") -%}
{{- ("User" if message["role"] == "user" else "Agent") + ": " + part["text"] | trim + "\\n\\n" -}}
{%- endfor -%}{%- endfor -%}
{{- "<END CONVERSATION>\\n\\nFirst line must read 'safe' or 'unsafe'. <|eot_id|>" -}}
{{- "<|start_header_id|>assistant<|end_header_id|>" -}}
"""
QWEN3GUARD = """{%- if messages[-1].role == "user" -%}
{{- "<|im_start|>user\\n# Task: classify THE LAST USER query.\\n\\n<BEGIN UNSAFE CONTENT CATEGORIES>\\n" -}}
{{- "Violent\\nNon-violent Illegal Acts\\nPII\\nJailbreak\\n<END UNSAFE CONTENT CATEGORIES>\\n\\n" -}}
{{- "USER: " + messages[-1].content + "\\n\\nThe first line must be one of: " -}}
{{- "'Safety: Safe', 'Safety: Unsafe', 'Safety: Controversial'.<|im_end|>\\n" -}}
{%- endif -%}
{{- "<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n" -}}
"""
GRANITE_GUARDIAN = """{%- set risks = {"harm": "is harmful", "violence": "harms a body", "profanity": "curses"} -%}
{%- set risk = guardian_config["risk_name"] if guardian_config else "harm" -%}
{{- "<|start_of_role|>user<|end_of_role|>You are a safety agent.\\n\\nUser Message: " + messages[-1].content -}}
{{- "\\n\\nOur safety risk definition:\\n- The message " + risks[risk] -}}
{{- "\\n\\nYour answer must be either 'Yes' or 'No'.<|end_of_text|>\\n" -}}
{%- if add_generation_prompt %}{{ "<|start_of_role|>assistant<|end_of_role|>" }}{% endif -%}
"""
SHIELDGEMMA = """{{- bos_token -}}{{- "You are a policy expert.\\n\\nHuman Question: " + messages[0]["content"] | trim -}}
{{- "\\n\\nOur safety principle is defined in the below:\\n\\n* " + guideline -}}
{{- "\\n\\nDoes the human question violate it? Your answer must start with 'Yes' or 'No'.\\n" -}}
{%- if add_generation_prompt %}{{ "<start_of_turn>model\\n" }}{% endif -%}
"""
SPECIAL = [
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<|start_of_role|>",
    "<|end_of_role|>", "<|end_of_text|>", "<start_of_turn>", "<end_of_turn>",
]  # fmt: skip
WORDS = [
    "safe",
    "unsafe",
    " Safe",
    " Unsafe",
    " Controversial",
    "Yes",
    "No",
    "1",
    "2",
    "10",
    " Violent",
    " Non",
    " PII",
    " Jailbreak",
]


def tokenizer(chat_template: str) -> Any:
    """With single tokens for what guards answer, and one that begins a text, as theirs have."""
    made = tiny.tokenizers.byte_level()
    made.bos_token = begin = made.eos_token
    begins = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, made.bos_token_id)])
    made.backend_tokenizer.post_processor = begins
    made.add_tokens([transformers.AddedToken(word, normalized=False) for word in WORDS])
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    made.chat_template = chat_template
    return made


def guard(name: str, chat_template: str, folder: Path) -> Path:
    """A checkpoint of a causal language model that answers as a guard."""
    tokens = tokenizer(chat_template)
    if name == "granite":
        config: Any = transformers.GraniteConfig(
            **{**tiny.config_of("llama").to_dict(), "model_type": "granite", "logits_scaling": 2.0}
        )
    else:
        config = tiny.config_of(name)
    config.vocab_size, config.max_position_embeddings = len(tokens), 2048
    config.bos_token_id = config.pad_token_id = config.eos_token_id = tokens.eos_token_id
    model = transformers.AutoModelForCausalLM.from_config(config)
    return tiny.save(tiny.randomize(model), tokens, folder)
