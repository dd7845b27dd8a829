"""A loaded classifier with everything it runs with: prompt processor, engine, pooler."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..config import ModelConfig, PoolerConfig, RuntimeConfig, labels_of
from ..errors import ConfigError, PromptError
from ..inputs.tokenization import PromptProcessor
from ..outputs import ClassificationOutput
from ..params import PoolingParams
from ..pooler.activations import activation_for
from ..pooler.methods import step_rows
from ..pooler.pooler import Pooler
from ..registry import registry
from ..runtime.adapter import LoRAAdapter
from ..runtime.batch import TokenSequence
from ..runtime.cuda.fp8 import check_fp8
from ..runtime.engine import Engine, Result
from ..runtime.layers.lora import let_adapt
from ..runtime.loadtime import optimize
from ..runtime.loadtime.cuda_graphs import Graphs
from ..runtime.loadtime.memory_profile import plan_memory
from ..runtime.machine.device import choose_device, choose_dtype, default_batched_tokens, default_prefix_cache_bytes
from ..runtime.machine.workers import bound_kernel_caches
from ..runtime.native import attention as native_attention
from ..runtime.runner import Runner
from . import loading
from .float32_fallback import Float32Fallback
from .form_choice import dummy_works, make_runner
from .lora_adapters import Adapters, backbone_layers, requests_for
from .output_heads import RunningHead, find_head, running_heads
from .prompt_processor import max_model_len, prompt_processor

_WATCHED_PROMPTS, _WATCHED_TOKENS = 8, 64  # random ones, which quantization watches
# Those that run in int8 and in float32: so many of each length.
_COMPARED_PROMPTS, _COMPARED_TOKENS = 12, (8, 16, 32)


@dataclass(frozen=True)
class LoadedModel:
    """The parts of the one path, put together for one model."""

    options: ModelConfig
    classifier: loading.Classifier
    processor: PromptProcessor
    engine: Engine
    pooler: Pooler
    heads: Sequence[RunningHead]
    adapters: Adapters | None = None
    close_calls: Float32Fallback | None = None  # of int8

    def adapters_for(self, lora_request: Any, count: int) -> list[LoRAAdapter | None]:
        """The adapter of each of `count` prompts; None for the model as it is.

        Raises:
            ConfigError: adapters are not enabled, or the requests are of another type or number.
            ModelError: an adapter cannot be read, or does not fit.
        """
        found: list[LoRAAdapter | None] = []
        for request in requests_for(lora_request, count):
            if request is not None and self.adapters is None:
                raise ConfigError("lora_request needs LLM(enable_lora=True).")
            found.append(self.adapters.get(request) if request is not None and self.adapters is not None else None)
        return found

    def head_of(self, params: PoolingParams, adapter: LoRAAdapter | None = None) -> RunningHead:
        """The head that a request asks for, or an adapter brings.

        Raises:
            ConfigError: there is no head of that name.
        """
        return find_head(self.heads, params.head_name).with_adapter(adapter)

    def config_of(self, adapter: LoRAAdapter | None) -> Any:
        """The config that names the labels."""
        return self.classifier.config if adapter is None else adapter.config

    @property
    def task(self) -> str:
        """What the model was made for: "classify", "token_classify", or "embed" where it has no head."""
        return self.classifier.task

    @property
    def supported_tasks(self) -> tuple[str, ...]:
        """What `run` takes; first what the model was made for."""
        if self.task == "token_classify":
            return ("token_classify",)
        if not self.classifier.has_head and not self.classifier.missing:
            return ("embed",)
        runs_on_tokens = self.engine.runner.head is not None and not self.engine.runner.mode.whole
        tasks = ("classify", "token_classify", "embed") if runs_on_tokens else ("classify", "embed")
        return tasks[1:] if self.pooler.config.task == "token_classify" else tasks

    @property
    def judges_steps(self) -> bool:
        """Whether it is a process reward model, which answers for tokens, and of these for those that end a step."""
        answers = (self.pooler.config.task, self.classifier.source.task)
        return self.pooler.config.tok_pooling_type == "STEP" and "token_classify" in answers

    def score_processor(self) -> PromptProcessor:
        """The processor for pairs that get one score, by the model or by an adapter of one label."""
        if int(self.classifier.config.num_labels) == 1:
            return self.processor
        return prompt_processor(
            self.options,
            self.classifier.source,
            self.processor.max_model_len,
            num_labels=1,
            skipped_pad=self.processor.skipped_pad,
        )

    def check(self, task: str, adapters: Iterable[LoRAAdapter | None], asked: str | None = None) -> None:
        """Raise `ConfigError` unless the model does a task, with each of these adapters or (None) as it is.

        Args:
            asked: what the caller calls it, such as "score".
        """
        if self.task == "token_classify" and task != self.task:
            raise ConfigError(
                f"this model classifies tokens, not texts, so it cannot {asked or task}; use LLM.token_classify, or "
                "encode(pooling_task='token_classify')."
            )
        if task == "classify" and self.pooler.config.task == "token_classify":
            raise ConfigError(
                "this model judges the steps of a text, not the whole; use LLM.reward, or "
                "LLM.encode(pooling_task='token_classify')."
            )
        if task == "embed":
            return
        headless = self.classifier.why_headless(self.options.model)
        if headless is not None and not all(adapters):
            raise ConfigError(headless, "lora_request" if self.classifier.missing else None)
        if task == "token_classify" and self.task != task:
            whole = self.engine.runner.head is None or self.engine.runner.mode.whole
            if whole:
                raise ConfigError("token_classify needs a head that runs on any token's state; this model's does not.")

    def run(self, task: str, sequences: Sequence[TokenSequence]) -> list[Result]:
        """Rows before calibration and activation: logits, logits of tokens, or pooled states.

        Raises:
            ConfigError: as `check`.
        """
        self.check(task, (each.adapter for each in sequences))
        if task == "embed":
            return self.engine.states(sequences)
        if task == "token_classify":
            return self.engine.token_logits([dataclasses.replace(each, num_behind=0) for each in sequences])
        return (self.close_calls or self.engine).logits(sequences)

    def check_params(self, task: str, params: Sequence[PoolingParams]) -> None:
        """Raise `ConfigError` if a request asks for what its task does not have."""
        judges_steps = task == "token_classify" and self.pooler.config.tok_pooling_type == "STEP"
        for each in params:
            if not judges_steps and (each.step_tag_id is not None or each.returned_token_ids is not None):
                raise ConfigError(
                    f"step_tag_id and returned_token_ids are for the steps of a process reward model (STEP pooling), not for "
                    f"{task}; leave them out, or open the model with pooler_config={{'tok_pooling_type': 'STEP'}}."
                )
            if task == "embed" and each.head_name is not None:
                raise ConfigError(f"head_name={each.head_name!r}: an embedding has no head; leave it out.", "head_name")
            if each.extra_kwargs:
                raise ConfigError(
                    f"extra_kwargs has {', '.join(map(str, each.extra_kwargs))}: options of LLM.score, not of {task}."
                )

    def finish(self, task: str, answer: Result, sequence: TokenSequence, params: PoolingParams) -> torch.Tensor:
        """What one request gets of its row.

        Raises:
            PromptError: the model refused this prompt, or gave NaN or infinity for it.
        """
        if isinstance(answer, PromptError):
            raise answer
        row = answer.row
        if not bool(torch.isfinite(row).all()):
            raise _not_finite()
        if task == "embed":
            row = self.classifier.embedder.of(row) if self.classifier.embedder is not None else row
            return torch.nn.functional.normalize(row, dim=-1) if self.pooler.activates(params.use_activation) else row
        head = self.head_of(params, sequence.adapter)
        data = head.pooler.finish(self.pooler.calibrated(row[..., head.columns]), params.use_activation)
        config = self.pooler.config
        if task == "token_classify" and config.tok_pooling_type == "STEP":
            tag = params.step_tag_id if params.step_tag_id is not None else config.step_tag_id
            return step_rows(data, sequence.token_ids, tag, params.returned_token_ids or config.returned_token_ids)
        return data

    def classified(
        self, sequences: Sequence[TokenSequence], answers: Sequence[Result], params: Sequence[PoolingParams]
    ) -> list[dict[str | None, ClassificationOutput] | PromptError]:
        """What each head gives each request of its logits, all at once: `finish` for the task that has many small rows."""
        outputs: list[dict[str | None, ClassificationOutput] | PromptError] = list(answers)  # type: ignore[arg-type]
        places: dict[LoRAAdapter | None, list[int]] = {}
        for index, each in enumerate(answers):
            if not isinstance(each, PromptError):
                places.setdefault(sequences[index].adapter, []).append(index)
        for adapter, members in places.items():
            rows = torch.stack([answers[index].row for index in members])  # type: ignore[union-attr]
            logits = self.pooler.calibrated(rows)
            finite = torch.isfinite(logits).all(dim=-1).tolist()
            activated = [self.pooler.activates(params[index].use_activation) for index in members]
            found = {
                head.name: head.with_adapter(adapter).outputs(logits[:, head.columns], activated) for head in self.heads
            }
            for row, index in enumerate(members):
                by_head = {name: outputs_of[row] for name, outputs_of in found.items()}
                outputs[index] = by_head if finite[row] else _not_finite()
        return outputs

    def describe(self) -> dict[str, Any]:
        """Plain values for `vcls inspect`."""
        classifier, mode, source = self.classifier, self.engine.runner.mode, self.classifier.source
        template = self.processor.template
        return {
            "model": self.options.model,
            "model_type": source.backbone_config.model_type,
            "model_class": type(classifier.model).__name__,
            "task": self.task,
            "format": classifier.architecture.checkpoint_format(classifier.config),
            "plugin": classifier.architecture.name,
            "backbone": type(self.engine.runner.backbone).__name__,
            "head": source.settings.get("head_method", "existing") if classifier.has_head else None,
            "heads": {each["name"]: _told(each) for each in source.settings.get("heads") or ()} or None,
            "adapter": source.adapter.name if source.adapter is not None else None,
            "pooling": self.pooler.pooling,
            "embedding": classifier.embedder.description if classifier.embedder is not None else None,
            "num_labels": int(classifier.config.num_labels),
            "id2label": labels_of(classifier.config),
            "problem_type": classifier.config.problem_type,
            "activation": getattr(self.pooler.activation, "__name__", type(self.pooler.activation).__name__),
            "prompt_template": template.source if template else None,
            "chat_template_prompt": self.processor.chat_template_prompt,
            "score_template": self.processor.pairs.name if int(classifier.config.num_labels) == 1 else None,
            "execution": "whole forward, " + mode.form if mode.whole else mode.form,
            "why_not_packed": mode.reason or None,
            "packed_up_to": mode.checked_up_to,
            "prefix_sharing": self.engine.prefix_cache.max_bytes > 0,
            "pruned_last_layer": mode.pruned,
            "attention_kernel": self.engine.runner.attention_kernel,
            "cuda_graphs": self.engine.runner.graphs is not None,
            "quantization": self.options.quantization,
            "close_call_reach": [round(each.reach, 4) for each in self.close_calls.boundaries()]
            if self.close_calls and classifier.has_head
            else None,
            "num_threads": self.engine.num_threads or None,
            "max_model_len": self.processor.max_model_len,
            "max_num_batched_tokens": self.engine.max_num_batched_tokens,
            "parameters": sum(p.numel() for p in classifier.model.parameters()),
            "bytes": sum(p.numel() * p.element_size() for p in classifier.model.parameters()),
            "dtype": str(self.engine.runner.backbone.dtype).removeprefix("torch."),
            "device": str(self.engine.runner.device),
        }


def _told(head: Mapping[str, Any]) -> dict[str, Any]:
    """What `vcls inspect` says of one of several heads."""
    return {"head": head["method"], "labels": head["labels"], "problem_type": head["problem_type"]}


def serve(options: ModelConfig, runtime: RuntimeConfig) -> LoadedModel:
    """Load a model and put its parts together.

    Raises:
        ModelError: the model cannot be loaded, or has no head.
        ConfigError: an option does not fit it.
    """
    device = choose_device(options.device)
    if device.type == "cpu":
        bound_kernel_caches()
        native_attention.prepare()
        if runtime.cuda_graphs:
            raise ConfigError("cuda_graphs=True needs a GPU, and this model is to run on a CPU; leave it out.")
    # int8 starts from float32, whatever else this processor is good at.
    exact = options.quantization == "int8" and options.dtype == "auto" and device.type == "cpu"
    dtype = torch.float32 if exact else choose_dtype(options.dtype, device)
    if options.quantization == "fp8":
        check_fp8(device, dtype)
    if options.quantization == "int8":
        optimize.check_int8(device, dtype)
    classifier = loading.load(options, dtype=dtype, device=device, adapters_have_heads=runtime.max_loras > 0)
    if runtime.max_loras:  # before anything is made faster, which has to see that it is there
        let_adapt(backbone_layers(classifier.model))
    config = classifier.config
    stored = PoolerConfig.parse(classifier.source.settings.get("pooler_config"))
    pooler_config = options.pooler_config.over(stored)
    embedder = classifier.embedder
    if embedder is not None:
        pooler_config = pooler_config.over(PoolerConfig(use_activation=embedder.normalizes))
    pooling = pooler_config.seq_pooling_type or classifier.pooling
    if embedder is not None and embedder.stages and pooling.count("+") != embedder.pooling.count("+"):
        raise ConfigError(
            f"pooling_type={pooling!r}: the folder's Dense module reads {embedder.pooling}; leave it out."
        )
    if pooler_config.tok_pooling_type != "STEP" and (
        pooler_config.step_tag_id is not None or pooler_config.returned_token_ids is not None
    ):
        raise ConfigError("pooler_config: step_tag_id and returned_token_ids need tok_pooling_type='STEP'.")
    if pooling != classifier.pooling == "ALL":
        raise ConfigError(f"pooling_type={pooling!r}: a token classifier reads every token's state; leave it out.")
    pooler = Pooler(pooling, activation_for(config, registry().collect("vcls_activations")), pooler_config)
    longest = max_model_len(options, classifier.source)
    runner = make_runner(classifier, pooling, longest, options.quantization)
    layers = classifier.architecture.layers(runner.backbone)
    optimize.quantize(
        runner, options.quantization, layers, dummy_works(runner, [min(_WATCHED_TOKENS, longest)] * _WATCHED_PROMPTS)
    )
    engine = make_engine(runner, runtime, longest)
    adapters = None
    heads = running_heads(classifier.model, pooler)
    if runtime.max_loras and (runner.scorer is not None or heads[0].name is not None):
        raise ConfigError(
            "enable_lora: heads with names and of label texts take no adapters at run time; merge the adapter first."
        )
    if runtime.max_loras:
        adapters = Adapters(
            classifier,
            runner,
            pooler,
            max_loras=runtime.max_loras,
            max_lora_rank=runtime.max_lora_rank,
            allow_pickle=options.allow_pickle,
        )
    prompts = longest_prompt(runner, longest)
    processor = prompt_processor(
        options, classifier.source, prompts, num_labels=int(config.num_labels), skipped_pad=runner.skipped_pad
    )
    if embedder is not None and options.use_template:
        processor = dataclasses.replace(processor, prefix=embedder.prompt)
    close_calls = None
    if options.quantization == "int8" and classifier.task == "classify":
        close_calls = _close_calls(engine, heads, pooler, prompts, classifier.has_head)
    return LoadedModel(options, classifier, processor, engine, pooler, heads, adapters, close_calls)


def _close_calls(
    engine: Engine, heads: Sequence[RunningHead], pooler: Pooler, longest: int, measure: bool
) -> Float32Fallback:
    """Finds what int8 leaves open, by what it changes of random prompts.

    Args:
        longest: prompt, in tokens.
        measure: now; where only adapters have heads, each does later.
    """
    lengths = [min(length, longest) for length in _COMPARED_TOKENS] * _COMPARED_PROMPTS
    prompts = [work.sequence for work in dummy_works(engine.runner, lengths)]
    made = Float32Fallback(engine, heads, pooler, prompts)
    if measure:
        made.boundaries()
        engine.prefix_cache.clear()
        engine.counters.clear()
    return made


def longest_prompt(runner: Runner, longest: int) -> int:
    """Tokens of the longest prompt, behind which the labels' texts have room.

    Raises:
        ConfigError: there is no room for a prompt.
    """
    behind = len(runner.scorer.beginnings[-1]) if runner.scorer is not None else 0
    if behind >= longest:
        raise ConfigError(f"the labels' texts take {behind + 1} tokens, and the model no more than {longest}.")
    return longest - behind


def _not_finite() -> PromptError:
    return PromptError("the model gives NaN or infinity for this prompt; try dtype='float32'.")


def make_engine(runner: Runner, runtime: RuntimeConfig, longest: int) -> Engine:
    """The engine of a runner, with the device's defaults where `runtime` names none, as far as memory allows.

    Args:
        longest: the model's longest sequence, in tokens.
    """
    cache = runtime.prefix_cache_bytes
    if cache is None:
        cache = default_prefix_cache_bytes(runner.device)
    cache = cache if runtime.enable_prefix_caching else 0
    num_tokens = runtime.max_num_batched_tokens or default_batched_tokens(runner.backbone)
    if runner.device.type == "cuda":
        planned = plan_memory(
            runner,
            functools.partial(dummy_works, runner),
            num_tokens=num_tokens,
            num_sequences=runtime.max_num_seqs,
            longest=longest,
            prefix_cache_bytes=cache if runner.shares else 0,
        )
        num_tokens, cache = planned.max_num_batched_tokens, planned.prefix_cache_bytes
        runner.graphs = Graphs.on_cuda(runner) if runtime.cuda_graphs else None
        runner.counters.clear()
    return Engine(
        runner,
        max_num_batched_tokens=num_tokens,
        max_num_seqs=runtime.max_num_seqs,
        num_threads=runtime.num_threads,
        prefix_cache_bytes=cache,
    )
