"""`convert`: writes a model as a classifier. Heads and the writer are called through hooks."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..architecture import ConversionPlan, HeadResult, NamedHeadRequest, Target
from ..config import DTYPES, ModelConfig
from ..errors import ConfigError
from ..head_source import EXISTING
from ..inputs.prompt_template import PromptTemplate
from ..jobs.decide import given_questions
from ..jobs.labelled_decisions import truth_columns
from ..jobs.rows import PromptFields
from ..jobs.training import TrainingRows, read_labels, read_training_rows
from ..model.loading.head_choice import as_reward, head_request, make_head, refuse_nameless, target_for, token_head
from ..model.loading.source import ModelSource, open_source
from ..model.pair_form import to_store
from ..registry import registry
from ..runtime.bars import UseTqdm
from .calibration import calibrated
from .decisions import calibrated as calibrated_settings
from .decisions import decision_plan, mapped_elsewhere, settings_for
from .head_job import HeadJob
from .head_options import ONE_LABEL, HeadOptions
from .model_card import card_values, labels_of
from .named_heads import head_names, shared_settings, without_heads
from .pad_token import choose_pad

_LABEL_FIELD = "label"
_OF_A_HEAD = (
    "head", "labels", "num_labels", "problem_type", "label_tokens", "train", "text_field", "text_pair_field", "image_field",
    "video_field", "validation_split", "bias", "head_weights", "prompt_template", "chat_template_prompt", "pooling", "logit_bias",
    "head_name",
)  # fmt: skip
_OF_A_MODEL = [each.name for each in dataclasses.fields(ModelConfig)]


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Args:
        out: the folder.
        model_class: the class that opens it.
        format: "transformers" where plain transformers opens it, else "vcls".
        head: the head's source.
        labels: of the head.
        heads: the names of all heads, where they have names.
        report: measurements made with the head (accuracy, majority …).
        questions: that the model answers, by their names, where it was converted for decisions.
        num_bytes: written, weights and all.
    """

    out: str
    model_class: str
    format: str
    head: str
    pooling: str
    labels: list[str]
    heads: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    report: Mapping[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    num_bytes: int = 0
    dry_run: bool = False


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
    image_field: str | None = None,
    video_field: str | None = None,
    label_field: str = _LABEL_FIELD,
    validation_split: float = 0.2,
    seed: int = 0,
    bias: bool | None = None,
    calibrate: str | None = None,
    head_weights: str | None = None,
    prompt_template: str | None = None,
    chat_template_prompt: bool = False,
    pooling: str | None = None,
    logit_bias: float | None = None,
    head_name: str | None = None,
    lora: str | None = None,
    questions: Mapping[str, Any] | str | None = None,
    decision_template: str | None = None,
    state_field: str | None = None,
    link: bool = False,
    dtype: str | None = None,
    max_shard_size: str | int = "5GB",
    dry_run: bool = False,
    overwrite: bool = False,
    use_tqdm: UseTqdm = True,
    **model_options: Any,
) -> ConversionReport:
    """Convert a model into a classifier and write it; the arguments are those of `vcls convert`.

    Args:
        model: a folder, a hub id or a `.gguf` file.
        out: the folder to make; never half a checkpoint.
        head: "existing", "tokens", "two-way", "sequence", "fit", "file", "random", or a plugin's; None is "existing" where
            there is one.
        head_name: what the head is called, of several behind one backbone. A model that has such heads gets one more.
        bias: of a fitted head, even where only our own format can hold it; of a calibration, unless it is False.
        lora: the folder of a PEFT LoRA adapter, which is merged into the weights; its head is the "existing" one.
        calibrate: a file of labelled rows, on which temperature and biases are fitted.
        questions: that the model answers, by name or in a .json or .yaml file: it is written for decisions, without a head, and
            `vcls decide` needs no others.
        decision_template: a file with the template that these are rendered with.
        state_field: of labelled rows for `calibrate`, the state; None is the whole row. The true answers are in columns with the
            questions' names, or `label_field="NAME=COLUMN,…"`, and a temperature for each type of question is fitted.
        use_tqdm: a bar while the model runs over labelled rows, as for `LLM.classify`.
        model_options: `plugin`, `tokenizer`, `allow_pickle`, `trust_remote_code`, `revision`, `hf_overrides`,
            `device`, `max_model_len`, `max_num_batched_tokens`, `convert`, `score_template`; and the options that a
            plugin's head has of its own.

    Raises:
        ModelError: the model cannot be converted so.
        ConfigError: options contradict each other.
    """
    given = dict(locals())
    written_as: dict[str, Any] = {
        "dtype": _dtype(dtype),
        "max_shard_size": _size(max_shard_size),
        "link": link,
        "overwrite": overwrite,
    }
    budget = model_options.pop("max_num_batched_tokens", None)
    others = [*inspect.signature(convert).parameters, *_OF_A_MODEL, "max_num_batched_tokens"]
    own = {name: model_options.pop(name) for name in [*model_options] if name not in _OF_A_MODEL}
    mode = "decide" if questions is not None else model_options.get("convert") or "auto"
    options = ModelConfig.from_options(model, lora=lora, **{**model_options, "convert": mode})
    if questions is not None:
        _refuse_for_questions(given, own)
        return _for_questions(options, budget, Path(out), given, written_as)
    for name in ("decision_template", "state_field"):
        if given[name] is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is for --questions; give them, too.")
    head_options = HeadOptions(
        head=head,
        labels=labels or (),
        num_labels=num_labels,
        problem_type=problem_type,
        label_tokens=label_tokens,
        train=train,
        text_field=text_field,
        text_pair_field=text_pair_field,
        image_field=image_field,
        video_field=video_field,
        label_field=label_field,
        validation_split=validation_split,
        seed=seed,
        bias=bias,
        calibrate=calibrate,
        head_weights=head_weights,
        pooling=pooling,
        logit_bias=logit_bias,
        head_name=head_name,
        own=own,
    ).checked(options, others)
    source, made_from = _opened(options, head_options)
    _store_prompt(made_from, prompt_template, chat_template_prompt)
    head_options = head_options.fitting(made_from)
    job = HeadJob(made_from, options, str(head_options.pooling), budget, head_options.count, use_tqdm)
    job.warnings += _bare_prompt(job, head_options)
    if source.pickled_head:
        job.warnings.append(f"{source.pickled_head}, SetFit's pickled head, is left out")
    result, alone = _calibrated(job, head_options, _made(job, head_options))
    _store_settings(alone, made_from, str(head_options.head), options)
    target = alone if head_name is None else _named(source, job, head_options, result, alone)
    plan = _plan(job, target, result, Path(out))
    plan = dataclasses.replace(plan, checkpoint=source.checkpoint, dry_run=dry_run, **written_as)
    written = registry().call("vcls_write_checkpoint", plan=plan)
    job.warnings += written.warnings
    return ConversionReport(
        out=str(out),
        model_class=target.classifier_class.__name__,
        format=source.architecture.checkpoint_format(target.config),
        head=str(head_options.head),
        pooling=job.pooling,
        labels=labels_of(alone),
        heads=[each["name"] for each in target.config.vcls.get("heads", ())],
        report=dict(result.head.report),
        warnings=job.warnings,
        files=list(written.files),
        num_bytes=written.num_bytes,
        dry_run=dry_run,
    )


def _refuse_for_questions(given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for options that choose a head."""
    parameters = inspect.signature(convert).parameters
    strays = [name for name in _OF_A_HEAD if given[name] != parameters[name].default]
    if strays or own:
        names = ", ".join("--" + name.replace("_", "-") for name in [*strays, *own])
        raise ConfigError(
            f"{names}: not with --questions, which are answered without a new head; leave one of them out."
        )


def _for_questions(
    options: ModelConfig, budget: int | None, out: Path, given: Mapping[str, Any], written_as: Mapping[str, Any]
) -> ConversionReport:
    """The model with its questions beside it, calibrated where that is asked for."""
    questions, source = given_questions(given["questions"]), open_source(options)
    settings = settings_for(source, questions, given["decision_template"])
    calibration, notes = dict[str, Any](), list[str]()
    if given["calibrate"] is not None:
        label_field = None if given["label_field"] == _LABEL_FIELD else given["label_field"]
        columns = truth_columns(label_field, questions)
        rows = (given["calibrate"], given["state_field"], columns)
        settings, calibration, notes = calibrated_settings(options, budget, settings, questions, *rows, given["seed"])
    plan = decision_plan(source, settings, questions, out)
    written = registry().call(
        "vcls_write_checkpoint", plan=dataclasses.replace(plan, dry_run=given["dry_run"], **written_as)
    )
    return ConversionReport(
        out=str(out),
        model_class=plan.classifier_class.__name__,
        format="transformers",
        head="",
        pooling="",
        labels=[],
        questions=[*questions],
        report={"calibration": calibration} if calibration else {},
        warnings=[*notes, *mapped_elsewhere(source, out), *written.warnings],
        files=list(written.files),
        num_bytes=written.num_bytes,
        dry_run=given["dry_run"],
    )


def _opened(options: ModelConfig, head_options: HeadOptions) -> tuple[ModelSource, ModelSource]:
    """The model, and the model that its head is made from, which has no named heads.

    Raises:
        ConfigError: it has heads with names, and this one has none, or an adapter is to be merged into it.
    """
    source = open_source(options)
    if head_options.head is None and options.convert == "auto":
        refuse_nameless(source)
    names = head_names(source)
    if names and head_options.changes_the_head:
        shown = f"{source.checkpoint.name} has the heads {', '.join(names)}"
        raise ConfigError(f"{shown}; give the new one a name, --head-name, or take the model that they were made from.")
    if source.adapter is not None and (names or head_options.head_name is not None):
        raise ConfigError(
            f"--head-name: the adapter {source.adapter.name} is to be merged first, by a conversion of its own; then name heads "
            "in the result."
        )
    return source, without_heads(source) if names and head_options.head_name is not None else source


def _made(job: HeadJob, head_options: HeadOptions) -> HeadResult:
    """The requested head, before calibration.

    Raises:
        ModelError: the model cannot give it.
        ConfigError: it has other labels than those asked for.
    """
    source, method = job.source, str(head_options.head)
    options, labels = _source_options(job, head_options)
    result = make_head(
        source,
        method,
        options,
        labels=labels,
        problem_type=head_options.problem_type or (source.config.problem_type if method == EXISTING else None),
        pooling=job.pooling,
        tokenize=job.token_ids,
        states=job.states,
    )
    if job.options.convert == "reward":
        result = as_reward(source, result)
    if head_options.num_labels is not None and len(result.labels) not in (0, head_options.num_labels):
        raise ConfigError(
            f"--num-labels {head_options.num_labels}, but the {method} head has {len(result.labels)}: "
            f"{', '.join(result.labels)}."
        )
    if len(result.labels) == 1 and result.problem_type == "single_label_classification":
        raise ConfigError(ONE_LABEL)
    return _with_logit_bias(result, head_options.logit_bias)


def _bare_prompt(job: HeadJob, head_options: HeadOptions) -> list[str]:
    """A warning for heads of label tokens whose prompts are texts without a template."""
    processor = job.processor
    written = processor.template is not None or processor.chat_template_prompt or processor.pairs.template is not None
    if not head_options.source.reads_lm_head or job.source.task == "token_classify" or written:
        return []
    warning = (
        "no prompt template: the labels are scored as what follows the bare text; --prompt-template asks a question"
    )
    if head_options.source.one_label and processor.pairs.refused:
        warning += ", and pairs are refused until --score-template says how they are written"
    return [warning]


def _source_options(job: HeadJob, head_options: HeadOptions) -> tuple[dict[str, Any], Sequence[str]]:
    """The options for a head source, and the labels, which may come from the labelled rows that it takes."""
    labels = head_options.labels
    found: dict[str, Any] = {
        "num_labels": head_options.num_labels,
        "label_tokens": head_options.label_tokens,
        "seed": head_options.seed,
        "bias": bool(head_options.bias),
        "head_weights": head_options.head_weights,
        "validation_split": head_options.validation_split,
        "adapter": job.source.adapter,
        **head_options.own,
    }
    from_tokens = token_head(job.source)
    if from_tokens is not None and from_tokens.method == head_options.head and head_options.label_tokens is None:
        found |= from_tokens.options
    if head_options.train:
        rows = _labelled_rows(job, "--train", head_options.train, head_options, head_options.problem_type)
        read = read_labels(rows, labels, head_options.problem_type)
        job.warnings += read.notes
        labels = read.names
        found |= {"prompts": rows.prompts, "targets": read.targets, "train_name": Path(head_options.train).name}
    return found, labels


def _calibrated(job: HeadJob, head_options: HeadOptions, result: HeadResult) -> tuple[HeadResult, Target]:
    """The head, calibrated where `--calibrate` asks for it, and the class that holds it."""
    source = job.source
    target = target_for(source, result, job.pooling)
    if not head_options.calibrate:
        return result, target
    if source.adapter is not None:
        raise ConfigError(
            f"--calibrate: the adapter {source.adapter.name} is to be merged first, by a conversion of its own; then calibrate "
            "the result."
        )
    rows = _labelled_rows(job, "--calibrate", head_options.calibrate, head_options, target.config.problem_type)
    result = calibrated(
        job,
        result,
        target,
        rows,
        rows_path=head_options.calibrate,
        seed=head_options.seed,
        intercept=head_options.bias is not False,
    )
    return result, target_for(source, result, job.pooling)


def _named(source: ModelSource, job: HeadJob, head_options: HeadOptions, result: HeadResult, alone: Target) -> Target:
    """The classifier that has this head beside those that `source` has."""
    if head_options.head != EXISTING and source.is_classifier and not head_names(source):
        job.warnings.append(
            f"the head that {source.checkpoint.name} has is not kept, since it has no name; to keep it, convert with --head "
            "existing --head-name first, and add this head to the result"
        )
    request = NamedHeadRequest(
        name=str(head_options.head_name),
        head=result,
        alone=alone,
        made_for=head_request(job.source, {}, pooling=job.pooling),
        config=source.config,
        shared=shared_settings(source, alone.config.vcls),
    )
    target: Target = registry().call("vcls_named_head", request=request)
    return target


def _store_prompt(source: ModelSource, prompt_template: str | None, chat_template_prompt: bool) -> None:
    """Store the prompt's template in the config, from which it is read when the model runs."""
    if source.task == "token_classify" and (prompt_template is not None or chat_template_prompt):
        raise ConfigError("a token classifier labels the text itself; leave --prompt-template and its like out.")
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
    job: HeadJob, option: str, path: str, head_options: HeadOptions, problem_type: str | None
) -> TrainingRows:
    """Prompts and labels of a file; messages on the file and on skipped rows become warnings."""
    prompts = job.processor
    fields = PromptFields(
        head_options.text_field,
        head_options.text_pair_field,
        image=head_options.image_field,
        video=head_options.video_field,
    ).reading(prompts.media, prompts.template is not None or prompts.chat_template_prompt)
    rows = read_training_rows(path, fields, head_options.label_field, option, problem_type)
    job.warnings += rows.notes
    if rows.skipped:
        job.warnings.append(f"{len(rows.skipped)} rows of {path} were left out; the first: {rows.skipped[0]}")
    return rows


def _with_logit_bias(result: HeadResult, logit_bias: float | None) -> HeadResult:
    """Subtract `logit_bias` from every logit by the head's own bias."""
    import torch

    if logit_bias is None:
        return result
    linear = result.head.linear
    if linear is None:
        raise ConfigError(f"--logit-bias needs a linear head, not --head {result.head.method}; set it where it runs.")
    linear = linear.rescaled(1.0, torch.full((linear.num_labels,), -float(logit_bias)))
    return dataclasses.replace(result, head=dataclasses.replace(result.head, linear=linear))


def _store_settings(target: Target, source: ModelSource, method: str, options: ModelConfig) -> None:
    settings = {**(getattr(target.config, "vcls", None) or {}), "head_method": method}
    settings["pooling"] = settings.get("pooling") or source.architecture.pooling(source.backbone_config)
    length = options.max_model_len or source.sentence_transformers_length()
    if length is not None:  # that file is not written, and the head was made for texts of this length
        settings["max_model_len"] = length
    target.config.vcls = {**settings, **to_store(options, source, int(target.config.num_labels))}
    if method != EXISTING:  # these ask for a head that is made now
        for config in (target.config, getattr(target.config, "backbone_config", None)):
            for name in ("classifier_from_token", "method", "is_original_qwen3_reranker"):
                if hasattr(config, name):
                    delattr(config, name)


def _plan(job: HeadJob, target: Target, result: HeadResult, out: Path) -> ConversionPlan:
    """The plan of what to write, with a suitable pad token where transformers pools by searching for padding."""
    source, tokenizer = job.source, None
    native = source.architecture.checkpoint_format(target.config) == "transformers"
    searched = native and source.architecture.pooling(source.backbone_config) == "LAST"
    pad = getattr(source.backbone_config.get_text_config(), "pad_token_id", None)
    if searched and not (result.head.trained and pad is not None):  # a head that is trained knows its pad token
        warnings, tokenizer = choose_pad(source, target, job)
        job.warnings += warnings
    if source.lower_cases:  # which the written tokenizer does by itself, as the one that was read does now
        tokenizer = source.tokenizer
    return ConversionPlan(
        checkpoint=source.checkpoint,
        config=target.config,
        classifier_class=target.classifier_class,
        head_tensors=target.head_tensors,
        moved=target.moved,
        out=out,
        tokenizer=tokenizer,
        adapter=source.adapter,
        card=registry().call("vcls_model_card", values=card_values(job, target, result, out.resolve().name, native)),
    )


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
