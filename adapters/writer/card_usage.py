"""The usage section of a model card: a command, and Python with vllm-cls and with transformers."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from .markdown import fenced

# Method of `LLM`, and what to look at of its output.
_CALLS = {
    "classify": ("classify", "probs"),
    "token_classify": ("token_classify", "spans"),
    "score": ("score", "score"),
    "reward": ("reward", "data"),
    "steps": ("reward", "data"),
}


@dataclass(frozen=True)
class UsageExample:
    """How it is run; the fields are those of `model_card`."""

    name: str
    task: str
    native: bool
    own_code: bool
    example: tuple[Any, ...]
    rendered: tuple[str, str | None, bool] | None
    heads: list[str]

    @property
    def _trust(self) -> str:
        return ", trust_remote_code=True" if self.own_code else ""

    def markdown(self, *, templated: bool) -> str:
        """The section in Markdown; `templated`: the texts are put into a template."""
        commands = [] if self.rendered is None else [fenced(self._command(), "bash")]  # no tokenizer reads texts
        parts = ["## How to run it", *commands, fenced(self._with_ours(), "python")]
        if self.task != "steps":  # which vllm-cls finds in a text
            heading = "With plain transformers" if self.native else "With transformers, after `import vllm_cls`"
            what = "pair" if len(self.example) > 1 else "text"
            note = f". It does not apply the template by itself, so the {what} stands in it here" if templated else ""
            parts += [f"{heading}, one {what} at a time{note}:", fenced(self._with_transformers(), "python")]
        return "\n\n".join(parts)

    def _command(self) -> str:
        trust = " --trust-remote-code" if self.own_code else ""
        if self.task == "score":
            return f"vcls score {shlex.quote(self.name)} pairs.jsonl -o scores.jsonl{trust}"
        return f"vcls classify {shlex.quote(self.name)} texts.jsonl -o labels.jsonl{trust}"

    def _with_ours(self) -> str:
        call, result = _CALLS[self.task]
        lines = [
            "from vllm_cls import LLM",
            "",
            f"(output,) = LLM({self.name!r}{self._trust}).{call}({', '.join(map(_literal, self.example))})",
            f"print(output.outputs.{result})",
        ]
        if len(self.heads) > 1:
            lines.append(f"print(output.heads[{self.heads[1]!r}].probs)")
        return "\n".join(lines)

    def _with_transformers(self) -> str:
        kind = "TokenClassification" if self.task == "token_classify" else "SequenceClassification"
        auto = f"AutoModelFor{kind}"
        lines = [
            *([] if self.native else ["import vllm_cls"]),
            "import torch",
            f"from transformers import {auto}" + ("" if self.rendered is None else ", AutoTokenizer"),
            "",
        ]
        if self.rendered is None:
            inputs = f'{{"input_ids": torch.tensor({[self.example[0]]})}}'
        else:
            lines.append(f"tokenizer = AutoTokenizer.from_pretrained({self.name!r}{self._trust})")
            text, pair, special = self.rendered
            arguments = [_literal(each) for each in (text, pair) if each is not None]
            arguments += [] if special else ["add_special_tokens=False"]
            inputs = f'tokenizer({", ".join(arguments)}, return_tensors="pt")'
        lines += [
            f"model = {auto}.from_pretrained({self.name!r}{self._trust})",
            f"inputs = {inputs}",
            "with torch.inference_mode():",
            "    logits = model(**inputs).logits",
        ]
        return "\n".join(lines)


def _literal(value: Any) -> str:
    """Python that gives a value, its texts in double quotes where they are plain."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(each)}" for key, each in value.items()) + "}"
    plain = isinstance(value, str) and value.isprintable() and '"' not in value and "\\" not in value
    return f'"{value}"' if plain else repr(value)
