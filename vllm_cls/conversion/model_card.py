"""The values of the model card of a conversion: the head, its labels, an example prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..architecture import REWARDS, HeadResult, Target
from ..config import has_own_code
from ..errors import PromptError
from ..inputs.pair_template import CONCAT
from ..inputs.prompts import parse
from ..registry import registry
from .head_job import HeadJob

_TEXT, _PAIR = "your text", "its pair"
_QUERY, _DOCUMENT = "a query", "a document"
_ACTIVATION_KEYS = ("sentence_transformers", "sbert_ce_default_activation_function")


def card_values(job: HeadJob, target: Target, result: HeadResult, name: str, native: bool) -> dict[str, Any]:
    """The arguments of the hook `vcls_model_card`; `adapters/writer/model_card.py` says what each is.

    Args:
        name: of the folder that is made.
        native: whether plain transformers opens the class.
    """
    sources = registry().head_sources()
    made_by = sources.get(result.head.method)
    heads = target.config.vcls.get("heads") or ()
    methods = {each["method"] for each in heads} or {result.head.method}
    task = _task(job, target)
    template = job.processor.pairs.template if task == "score" else None
    return {
        "name": name,
        "base_model": job.options.model,
        "classifier_class": target.classifier_class.__name__,
        "native": native,
        "own_code": has_own_code(job.source.backbone_config),
        "task": task,
        "head_method": result.head.method,
        "about_head": "" if made_by is None or len(heads) > 1 else made_by.card,
        "reads_lm_head": any(sources[each].reads_lm_head for each in methods if each in sources),
        "description": _described(job, target, result),
        "report": dict(result.head.report),
        "labels": labels_of(target),
        "heads": [each["name"] for each in heads],
        "problem_type": target.config.problem_type,
        "pooling": job.pooling,
        "prompt_template": target.config.vcls.get("prompt_template"),
        "chat_template_prompt": bool(target.config.vcls.get("chat_template_prompt")),
        "score_template": None if template is None else template.text,
        "example": (example := _example(job, task, target)),
        "rendered": _rendered(job, example),
        "command": None,
    }


def labels_of(target: Target) -> list[str]:
    return [target.config.id2label[i] for i in range(target.config.num_labels)]


def _task(job: HeadJob, target: Target) -> str:
    """What it is run for, as the card says it."""
    if job.source.task == "token_classify":
        return job.source.task
    if (target.config.vcls.get("pooler_config") or {}).get("task") == "token_classify":
        return "steps"
    if job.options.convert == "reward" or target.classifier_class.__name__.endswith(REWARDS):
        return "reward"
    pairs = job.processor.pairs
    scores = pairs.name == CONCAT or pairs.template is not None or _is_cross_encoder(target)
    return "score" if target.config.num_labels == 1 and pairs.refused is None and scores else "classify"


def _is_cross_encoder(target: Target) -> bool:
    return any(getattr(target.config, name, None) for name in _ACTIVATION_KEYS)


def _described(job: HeadJob, target: Target, result: HeadResult) -> str:
    """How the head was made; of heads with names, a paragraph each."""
    heads = target.config.vcls.get("heads") or ()
    if heads:
        parts = [
            f"`{each['name']}` ({', '.join(f'`{label}`' for label in each['labels'])}): {each['description']}"
            for each in heads
        ]
        several = "It has several heads, which all read the same state; the first one is the default."
        return "\n\n".join(
            [several if len(heads) > 1 else "It has a head with a name, and others can join it.", *parts]
        )
    adapter = job.source.adapter
    merged = "" if adapter is None else f" The LoRA adapter `{Path(adapter.name).name}` is merged into the weights."
    return result.head.description + merged


def _example(job: HeadJob, task: str, target: Target) -> tuple[Any, ...]:
    """The arguments of one call: a text, two texts to score, a mapping of what the prompt template takes, or token ids."""
    tokenizer: Any = job.source.tokenizer
    if tokenizer is None:
        return ([1, 2, 3],)
    if task == "score":
        return (_QUERY, _DOCUMENT)
    if task == "steps":
        end = tokenizer.decode([target.config.vcls["pooler_config"].get("step_tag_id") or 0])
        return (f"one step{end} another step{end}",)
    template = job.processor.template
    fields = {} if template is None else {name: f"your {name}" for name in template.fields}
    prompt: dict[str, Any] = {}
    if template is None or fields.keys() & {"text", "text_pair"}:
        prompt["prompt"] = _TEXT
    if "text_pair" in fields:
        prompt["text_pair"] = _PAIR
    fields = {name: text for name, text in fields.items() if name not in ("text", "text_pair")}
    if fields:
        prompt["fields"] = fields
    return (_TEXT,) if prompt == {"prompt": _TEXT} else (prompt,)


def _rendered(job: HeadJob, example: tuple[Any, ...]) -> tuple[str, str | None, bool] | None:
    """What the tokenizer gets of it: a text, a second one, whether it adds its special tokens; None of token ids."""
    if job.source.tokenizer is None:
        return None
    try:
        found = job.processor.render(parse(example if len(example) > 1 else example[0]), None)
    except PromptError:  # the template refuses this text; the card does without
        return None
    return found.text, found.text_pair, found.add_special_tokens
