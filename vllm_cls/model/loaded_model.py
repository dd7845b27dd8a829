"""A loaded classifier with everything it runs with: prompt processor, engine, pooler."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import ModelConfig
from ..decisions.reading import DecisionReader
from ..errors import ConfigError
from ..inputs.tokenization import PromptProcessor
from ..params import PoolingParams
from ..runtime.adapter import LoRAAdapter
from ..runtime.batch import TokenSequence
from ..runtime.engine import Engine, Result
from .float32_fallback import Float32Fallback
from .heads.lora_adapters import Adapters, requests_for
from .heads.output_heads import RunningHead, find_head
from .heads.pooler import Pooler
from .loading.classifier import Classifier
from .prompt_processor import prompt_processor


@dataclass(frozen=True)
class LoadedModel:
    """One model with all that it runs with, from prompts to calibrated outputs."""

    options: ModelConfig
    classifier: Classifier
    processor: PromptProcessor
    engine: Engine
    pooler: Pooler
    heads: Sequence[RunningHead]
    adapters: Adapters | None = None
    fallback: Float32Fallback | None = None  # of int8
    decisions: DecisionReader | None = None  # of a model that was opened for decisions
    own_tasks: frozenset[str] = frozenset()  # what it does as it is, without an adapter

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
        head = self.heads[0] if params.head_name is None else find_head(self.heads, params.head_name)
        return head if adapter is None else head.with_adapter(adapter)

    def config_of(self, adapter: LoRAAdapter | None) -> Any:
        """The config that names the labels."""
        return self.classifier.config if adapter is None else adapter.config

    @property
    def task(self) -> str:
        """What the model was made for: "classify", "token_classify", or "embed" where it has no head."""
        return self.classifier.task

    @property
    def supported_tasks(self) -> tuple[str, ...]:
        """What of `runs` it can do; first what the model was made for."""
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

    @functools.cached_property
    def runs(self) -> Mapping[str, Callable[[Sequence[TokenSequence]], list[Result]]]:
        """What runs each task: sequences → rows before calibration and activation, where `check_task` allows it.

        Of "classify" these are logits, of "token_classify" logits of tokens, of "embed" pooled states.
        """
        logits = (self.fallback or self.engine).logits
        return {"classify": logits, "token_classify": self.engine.token_logits, "embed": self.engine.states}
