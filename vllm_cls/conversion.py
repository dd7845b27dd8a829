"""`convert`: a model becomes a classifier on disk. The facade; heads and writing are found through hooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .architecture import OWN_MODEL_TYPE, ConversionPlan, HeadResult, Target
from .calibration import calibrated
from .config import DTYPES, PROBLEM_TYPES, ModelConfig
from .errors import ConfigError, ModelError
from .head_job import HeadJob
from .loading import as_reward, heads_for, lacks_head, make_head, target_for, token_head, without_head
from .padding import choose_pad
from .pair_template import to_store
from .peft_adapter import PeftAdapter, read_adapter
from .registry import registry
from .source import Source, open_source
from .template import PromptTemplate


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Args:
        out: the folder.
        model_class: the class that opens it.
        format: "transformers" where plain transformers opens it, else "vcls".
        head: the head's source.
        report: measurements made with the head (accuracy, majority …).
        num_bytes: written, weights and all.
    """

    out: str
    model_class: str
    format: str
    head: str
    pooling: str
    labels: list[str]
    report: Mapping[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    num_bytes: int = 0
    dry_run: bool = False


_ONE_LABEL = "one label cannot be single_label_classification (transformers refuses it); use regression or none."
# Options that belong to some heads only: giving one to another head is a contradiction.
_BELONGS = {
    "label_tokens": ("tokens", "two-way", "sequence"),
    "train": ("fit",),
    "bias": ("fit",),  # and --calibrate
    "head_weights": ("file",),
}


def convert(
    model: str,
    out: str | Path,
    *,
    head: str | None = None,
    labels: Sequence[str] | None = None,
    num_labels: int | None = None,
    problem_type: str | None = None,
    label_tokens: str | Mapping[str, Any] | None = None,
    train: str | None = None,
    text_field: str = "text",
    text_pair_field: str | None = None,
    label_field: str = "label",
    validation_split: float = 0.2,
    seed: int = 0,
    bias: bool | None = None,
    calibrate: str | None = None,
    head_weights: str | None = None,
    prompt_template: str | None = None,
    chat_template_prompt: bool = False,
    pooling: str | None = None,
    logit_bias: float | None = None,
    lora: str | None = None,
    link: bool = False,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    dry_run: bool = False,
    overwrite: bool = False,
    **model_options: Any,
) -> ConversionReport:
    """Convert a model into a classifier and write it; the arguments are those of `vcls convert`.

    Args:
        model: a folder, a hub id or a `.gguf` file.
        out: the folder to make; never half a checkpoint.
        head: "existing", "tokens", "two-way", "sequence", "fit", "file" or "random"; None is "existing" where there is one.
        bias: of a fitted head, even where only our own format can hold it; of a calibration, unless it is False.
        lora: the folder of a PEFT LoRA adapter, which is merged into the weights; its head is the "existing" one.
        calibrate: a file of labelled rows, on which temperature and biases are fitted.
        model_options: `plugin`, `tokenizer`, `allow_pickle`, `trust_remote_code`, `revision`, `hf_overrides`,
            `device`, `max_model_len`, `max_num_batched_tokens`, `convert`, `score_template`.

    Raises:
        ModelError: the model cannot be converted so.
        ConfigError: options contradict each other.
    """
    budget = model_options.pop("max_num_batched_tokens", None)
    reward = model_options.get("convert") == "reward"
    if reward:
        if problem_type not in (None, "regression"):
            raise ConfigError(f"--convert reward gives one number, not {problem_type}; leave --problem-type out.")
        problem_type, num_labels = "regression", num_labels or (None if labels else 1)
    options = ModelConfig.of(model, **{**model_options, "convert": model_options.get("convert") or "auto"})
    names = _labels(labels, num_labels, problem_type) or options.label_overrides()
    source = open_source(options)
    if lora is not None:
        source = dataclasses.replace(source, adapter=read_adapter(lora, allow_pickle=options.allow_pickle))
    if source.task == "token_classify":
        prompt = prompt_template is not None or chat_template_prompt
        _refuse_for_tokens(source, learns=head == "fit" or calibrate is not None, prompt=prompt, pooling=pooling)
    _store_prompt(source, prompt_template, chat_template_prompt)
    method = _method(source, head)
    stray_bias = bias if calibrate is None else None
    given = {"label_tokens": label_tokens, "train": train, "bias": stray_bias, "head_weights": head_weights}
    _refuse_strays(method, [name for name, value in given.items() if value is not None])
    if method in ("tokens", "two-way", "sequence") and source.adapter is not None:
        _refuse_output_layer(source.adapter)
    pooling = _pooling(source, pooling)
    job = HeadJob(source, options, pooling, budget, 1 if method == "two-way" else len(names) or num_labels)
    head_options: dict[str, Any] = {
        "num_labels": num_labels,
        "label_tokens": label_tokens,
        "seed": seed,
        "bias": bool(bias),
        "head_weights": head_weights,
        "validation_split": validation_split,
        "adapter": source.adapter,
    }
    from_tokens = token_head(source)
    if from_tokens is not None and from_tokens.method == method and label_tokens is None:
        head_options |= from_tokens.options
    if method == "fit":
        if not train:
            raise ConfigError("--head fit needs --train FILE with labelled rows.")
        if calibrate and Path(calibrate).resolve() == Path(train).resolve():
            raise ConfigError("--calibrate needs other rows than --train, which the head knows already.")
        prompts, targets = _labelled_rows(job, "--train", train, text_field, text_pair_field, label_field)
        head_options |= {"prompts": prompts, "targets": targets, "train_name": Path(train).name}
    result = make_head(
        source,
        method,
        head_options,
        labels=names,
        problem_type=problem_type or (source.config.problem_type if method == "existing" else None),
        pooling=pooling,
        tokenize=job.token_ids,
        states=job.states,
    )
    if reward:
        result = as_reward(source, result)
    if num_labels is not None and len(result.labels) not in (0, num_labels):
        raise ConfigError(
            f"--num-labels {num_labels}, but the {method} head has {len(result.labels)}: {', '.join(result.labels)}."
        )
    if len(result.labels) == 1 and result.problem_type == "single_label_classification":
        raise ConfigError(_ONE_LABEL)
    result = _with_logit_bias(source, result, logit_bias)
    target = target_for(source, result, pooling)
    if calibrate:
        _refuse_calibration(source)
        labelled = _labelled_rows(job, "--calibrate", calibrate, text_field, text_pair_field, label_field)
        result = calibrated(
            source, options, job, result, target, labelled, rows_path=calibrate, seed=seed, intercept=bias is not False
        )
        target = target_for(source, result, pooling)
    _store_settings(target, source, method, options)
    warnings: list[str] = []
    tokenizer = None
    if (
        source.architecture.checkpoint_format(target.config) == "transformers"
        and source.architecture.pooling(source.backbone_config) == "LAST"
    ):
        warnings, tokenizer = choose_pad(source, target, job)
    plan = _plan(source, target, result, out, options, tokenizer=tokenizer, pooling=pooling)
    plan = dataclasses.replace(
        plan,
        dtype=_dtype(dtype),
        adapter=source.adapter,
        max_shard_size=_size(max_shard_size),
        link=link,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    written = registry().hook.vcls_write_checkpoint(plan=plan)
    return ConversionReport(
        out=str(out),
        model_class=target.classifier_class.__name__,
        format=source.architecture.checkpoint_format(target.config),
        head=method,
        pooling=pooling,
        labels=[target.config.id2label[i] for i in range(target.config.num_labels)],
        report=dict(result.head.report),
        warnings=[*job.warnings, *warnings],
        files=list(written.files),
        num_bytes=written.num_bytes,
        dry_run=dry_run,
    )


def _labels(labels: Sequence[str] | None, num_labels: int | None, problem_type: str | None) -> list[str]:
    names = [str(each) for each in (labels.split(",") if isinstance(labels, str) else labels or ())]
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise ConfigError(f"--problem-type {problem_type!r} is unknown; use one of {', '.join(PROBLEM_TYPES)}.")
    if len(set(names)) != len(names) or not all(name.strip() for name in names):
        raise ConfigError(f"--labels {','.join(names)}: labels must be different and not empty.")
    if num_labels is not None and num_labels < 1:
        raise ConfigError(f"--num-labels {num_labels} must be at least 1.")
    if names and num_labels not in (None, len(names)):
        raise ConfigError(f"--num-labels {num_labels} contradicts --labels, which names {len(names)}.")
    count = len(names) or num_labels
    if count == 1 and problem_type == "single_label_classification":
        raise ConfigError(_ONE_LABEL)
    return names


def _refuse_strays(method: str, given: Sequence[str]) -> None:
    for name in given:
        if method not in _BELONGS[name]:
            option, heads = name.replace("_", "-"), " or ".join(_BELONGS[name])
            raise ConfigError(f"--{option} belongs to --head {heads}, not to {method}; leave one of them out.")


def _refuse_calibration(source: Source) -> None:
    if source.adapter is not None:
        raise ConfigError("--calibrate and --lora: write the merged classifier first, then calibrate that.")


def _refuse_output_layer(adapter: PeftAdapter) -> None:
    """Heads that are rows of the output layer are read from the source, as it is without the adapter."""
    outside = [name for name in adapter.low_rank if not any(part.isdigit() for part in name.split("."))]
    if adapter.saved or outside:
        name = next(iter(outside), None) or next(iter(adapter.saved))
        raise ConfigError(
            f"--lora {adapter.name} changes {name}, so the output layer's rows may not be what the model has; merge it with "
            "PEFT first, or take --head fit."
        )


def _refuse_for_tokens(source: Source, *, learns: bool, prompt: bool, pooling: str | None) -> None:
    if source.backbone_config.is_encoder_decoder and not source.architecture.is_native(type(source.backbone_config)):
        raise ModelError(
            f"{source.checkpoint.name} is an encoder-decoder, and transformers has no token classifier of it: its states "
            "belong to the decoder's tokens, one behind the text's. Take an encoder."
        )
    if learns:
        raise ConfigError(
            "--head fit and --calibrate learn from a label a text (--convert classify), and this head labels tokens; train "
            "one with transformers' Trainer (--head random to begin with), or bring it with --head file."
        )
    if prompt:
        raise ConfigError("a token classifier labels the text itself; leave --prompt-template and its like out.")
    if pooling is not None:
        raise ConfigError(f"--pooling {pooling}: a token classifier reads every token's state; leave it out.")


def _method(source: Source, head: str | None) -> str:
    if head not in (None, "existing") and source.config.model_type == OWN_MODEL_TYPE:
        raise ModelError(
            f"{source.checkpoint.name} is a classifier in our own format already; make the new head from the model that it "
            "was converted from."
        )
    if head is not None:
        return head
    from_tokens = token_head(source)
    if from_tokens is not None:
        return from_tokens.method
    if lacks_head(source) or (not source.checkpoint.locations and not source.is_classifier):
        raise ModelError(
            f"{without_head(source)}, and a head is never invented; say where it comes from: --head {heads_for(source)}."
        )
    return "existing"


def _pooling(source: Source, pooling: str | None) -> str:
    if pooling is None:
        return source.pooling
    if pooling.upper() not in ("CLS", "LAST", "MEAN"):
        raise ConfigError(f"--pooling {pooling!r} is unknown; use cls, last or mean.")
    return pooling.upper()


def _store_prompt(source: Source, prompt_template: str | None, chat_template_prompt: bool) -> None:
    """Put the prompt's form into the config, where everything that runs the model reads it."""
    settings = dict(source.settings)
    if prompt_template is not None:
        PromptTemplate.parse(prompt_template)
        settings["prompt_template"] = prompt_template
    if chat_template_prompt:
        settings["chat_template_prompt"] = True
        if source.tokenizer is None or not source.tokenizer.chat_template:
            raise ConfigError(
                "--chat-template-prompt: this model's tokenizer has no chat template; use --prompt-template."
            )
    if settings:
        source.config.vcls = settings


def _labelled_rows(
    job: HeadJob, option: str, path: str, text_field: str, text_pair_field: str | None, label_field: str
) -> tuple[list[Any], list[Any]]:
    """Prompts and labels of a file; rows that are left out become a warning."""
    from .jobs.rows import PromptFields
    from .jobs.training import read_training_rows

    rows = read_training_rows(path, PromptFields(text_field, text_pair_field), label_field, option)
    if rows.skipped:
        job.warnings.append(f"{len(rows.skipped)} rows of {path} were left out; the first: {rows.skipped[0]}")
    return rows.prompts, rows.targets


def _with_logit_bias(source: Source, result: HeadResult, logit_bias: float | None) -> HeadResult:
    """Subtract `logit_bias` from every logit by the head's own bias."""
    import torch

    if logit_bias is None:
        return result
    linear = result.head.linear
    if linear is None:
        raise ConfigError(f"--logit-bias needs a linear head, not --head {result.head.method}; set it where it runs.")
    linear = linear.rescaled(1.0, torch.full((linear.num_labels,), -float(logit_bias)))
    return dataclasses.replace(result, head=dataclasses.replace(result.head, linear=linear))


def _store_settings(target: Target, source: Source, method: str, options: ModelConfig) -> None:
    settings = {**(getattr(target.config, "vcls", None) or {}), "head_method": method}
    settings["pooling"] = settings.get("pooling") or source.architecture.pooling(source.backbone_config)
    length = options.max_model_len or source.sentence_transformers_length()
    if length is not None:  # that file is not written, and the head was made for texts of this length
        settings["max_model_len"] = length
    score_template = to_store(options, source, int(target.config.num_labels))
    if score_template is not None:
        settings["score_template"] = score_template
    target.config.vcls = settings
    if method != "existing":  # these ask for a head that is made now
        for config in (target.config, getattr(target.config, "backbone_config", None)):
            for name in ("classifier_from_token", "method", "is_original_qwen3_reranker"):
                if hasattr(config, name):
                    delattr(config, name)


def _plan(
    source: Source,
    target: Target,
    result: HeadResult,
    out: str | Path,
    options: ModelConfig,
    *,
    tokenizer: Any,
    pooling: str,
) -> ConversionPlan:
    return ConversionPlan(
        checkpoint=source.checkpoint,
        config=target.config,
        classifier_class=target.classifier_class,
        head_tensors=target.head_tensors,
        moved=target.moved,
        out=Path(out),
        tokenizer=tokenizer,
        card=registry().hook.vcls_model_card(values=_card_values(source, target, result, out, options, pooling)),
    )


def _card_values(
    source: Source, target: Target, result: HeadResult, out: str | Path, options: ModelConfig, pooling: str
) -> dict[str, Any]:
    merged = (
        "" if source.adapter is None else f" The LoRA adapter `{Path(source.adapter.name).name}` is merged into it."
    )
    return {
        "name": Path(out).name,
        "base_model": options.model,
        "classifier_class": target.classifier_class.__name__,
        "native": source.architecture.checkpoint_format(target.config) == "transformers",
        "head_method": result.head.method,
        "description": result.head.description + merged,
        "report": dict(result.head.report),
        "labels": [target.config.id2label[i] for i in range(target.config.num_labels)],
        "problem_type": target.config.problem_type,
        "pooling": pooling,
        "prompt_template": target.config.vcls.get("prompt_template"),
        "command": None,
    }


def _dtype(name: str | None) -> str | None:
    if name not in (None, *DTYPES):
        raise ConfigError(f"dtype={name!r} is unknown; use one of {', '.join(DTYPES)}.")
    return None if name == "auto" else name


def _size(value: str | int) -> int:
    """Bytes of "5GB", "500MB" or a number."""
    if isinstance(value, int) and value > 0:
        return value
    value = str(value)
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = value[:-2], value[-2:].upper()
    if unit not in units or not number.replace(".", "", 1).isdigit():
        raise ConfigError(f"--max-shard-size {value!r} is not a size such as 5GB or 500MB.")
    return int(float(number) * units[unit])
