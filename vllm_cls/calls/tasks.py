"""What a call of `LLM` or `AsyncLLM` asks: its prompts, what runs for them, and what the answers become."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import ConfigError, PromptError
from ..inputs.tokenization import PromptProcessor, Tokenized, Truncation
from ..outputs import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingRequestOutput,
    RequestOutput,
    ScoringRequestOutput,
    TokenClassificationRequestOutput,
)
from ..params import PoolingParams
from . import output_processor, scoring
from .arguments import as_list, per_prompt, truncation_of
from .output_processor import NextId, all_good
from .scoring import ScoreOptions

if TYPE_CHECKING:
    from ..model.loaded_model import LoadedModel
    from ..runtime.adapter import LoRAAdapter
    from ..runtime.engine import Result

Output = TypeVar("Output", bound=RequestOutput[Any])
Finish = Callable[
    ["LoadedModel", Sequence[Tokenized], "Sequence[Result]", Sequence[PoolingParams], NextId],
    "list[Output | PromptError]",
]


@dataclass(frozen=True)
class PoolingTask(Generic[Output]):
    """What is asked of prompts.

    Args:
        task: what the engine runs: "classify", "token_classify" or "embed".
        finish: an output for each prompt, or why there is none, of its answer.
    """

    task: str
    finish: Finish[Output]

    def answered(
        self, served: LoadedModel, tokenized: Sequence[Tokenized], params: Sequence[PoolingParams], next_id: NextId
    ) -> list[Output | PromptError]:
        """Run prompts at once: an output for each, or why there is none."""
        results = served.run(self.task, [each.sequence for each in tokenized])
        return self.finish(served, tokenized, results, params, next_id)


@dataclass(frozen=True)
class TaskCall(Generic[Output]):
    """One call.

    Args:
        kind: what is asked.
        prompts: of which.
        params: one a prompt.
        adapters: one a prompt, None for the model as it is.
        processor: makes token ids of the prompts.
        cache_salt: of prompts without one of their own.
    """

    served: LoadedModel
    kind: PoolingTask[Output]
    prompts: Sequence[Any]
    params: Sequence[PoolingParams]
    adapters: Sequence[LoRAAdapter | None]
    processor: PromptProcessor
    truncation: Truncation
    add_special_tokens: bool | None = None
    cache_salt: str | None = None

    def tokenize(self, start: int = 0, stop: int | None = None) -> list[Tokenized]:
        """Prompts `start` to `stop` (all) as the model will see them.

        Raises:
            PromptError: a prompt is bad; it is named by its index.
        """
        with self.served.engine.counters.timed("tokenize"):
            tokenized = self.processor.tokenize(
                self.prompts[start:stop], self.truncation, add_special_tokens=self.add_special_tokens
            )
        good = []
        for index, (each, adapter) in enumerate(zip(tokenized, self.adapters[start:stop], strict=True), start):
            if isinstance(each, PromptError):
                raise type(each)(f"prompt {index}: {each}", each.param) if len(self.prompts) > 1 else each
            good.append(each.run_with(adapter, self.cache_salt))
        return good

    def outputs(self, tokenized: Sequence[Tokenized], results: Sequence[Result], next_id: NextId) -> list[Output]:
        """What the caller gets.

        Raises:
            PromptError: a prompt has no answer; the first of them.
        """
        return all_good(self.kind.finish(self.served, tokenized, results, self.params, next_id))

    def answered(self, next_id: NextId) -> list[Output]:
        """All of it, here and now."""
        tokenized = self.tokenize()
        return all_good(self.kind.answered(self.served, tokenized, self.params, next_id))


CLASSIFY = PoolingTask("classify", output_processor.classified)
STEPS = PoolingTask("token_classify", functools.partial(output_processor.encoded, "token_classify"))
_SCORE = PoolingTask("classify", output_processor.scored)
_EMBED = PoolingTask("embed", output_processor.embedded)


def spans(
    served: LoadedModel, aggregation_strategy: str, ignore_labels: Sequence[str]
) -> PoolingTask[TokenClassificationRequestOutput]:
    """The labelled spans of texts.

    Raises:
        ConfigError: the model does not classify tokens, or an argument is unknown.
    """
    from .spans import classified_tokens, span_finder

    finder = span_finder(served, aggregation_strategy, ignore_labels)
    return PoolingTask("token_classify", functools.partial(classified_tokens, finder))


# -- the calls; what they take and raise is said at `LLM`'s methods ------------------------------------


def classify(
    served: LoadedModel,
    prompts: Any,
    *,
    pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
    lora_request: Any = None,
    tokenization_kwargs: Mapping[str, Any] | None = None,
) -> TaskCall[ClassificationRequestOutput]:
    return _call(served, CLASSIFY, as_list(prompts), pooling_params, lora_request, tokenization_kwargs)


def token_classify(
    served: LoadedModel,
    prompts: Any,
    *,
    aggregation_strategy: str = "simple",
    ignore_labels: Sequence[str] = ("O",),
    lora_request: Any = None,
    tokenization_kwargs: Mapping[str, Any] | None = None,
) -> TaskCall[TokenClassificationRequestOutput]:
    kind = spans(served, aggregation_strategy, ignore_labels)
    return _call(served, kind, as_list(prompts), None, lora_request, tokenization_kwargs)


def encode(
    served: LoadedModel,
    prompts: Any,
    pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
    *,
    pooling_task: str | None = None,
    lora_request: Any = None,
    tokenization_kwargs: Mapping[str, Any] | None = None,
) -> TaskCall[PoolingRequestOutput]:
    task = pooling_task or served.pooler.config.task or (served.task if served.task != "classify" else None)
    if task not in ("classify", "token_classify", "embed"):
        raise ConfigError(f"pooling_task={task!r}: LLM.encode needs 'classify', 'token_classify' or 'embed'.")
    kind = PoolingTask(task, functools.partial(output_processor.encoded, task))
    return _call(served, kind, as_list(prompts), pooling_params, lora_request, tokenization_kwargs)


def embed(
    served: LoadedModel,
    prompts: Any,
    *,
    pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
    lora_request: Any = None,
    tokenization_kwargs: Mapping[str, Any] | None = None,
) -> TaskCall[EmbeddingRequestOutput]:
    return _call(served, _EMBED, as_list(prompts), pooling_params, lora_request, tokenization_kwargs)


def reward(
    served: LoadedModel,
    prompts: Any,
    *,
    pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
    lora_request: Any = None,
    tokenization_kwargs: Mapping[str, Any] | None = None,
) -> TaskCall[PoolingRequestOutput]:
    listed = as_list(prompts)
    params = list(per_prompt(pooling_params, len(listed)))
    task = "token_classify" if served.judges_steps else served.pooler.config.task or "classify"
    if task == "classify":
        adapters = served.adapters_for(lora_request, len(listed))
        served.check(task, adapters, "give rewards")
        for asked, adapter in zip(params, adapters, strict=True):
            scoring.check_num_labels(int(served.head_of(asked, adapter).config.num_labels), "reward")
        if served.pooler.config.use_activation is None:
            params = [
                PoolingParams(use_activation=bool(each.use_activation), head_name=each.head_name) for each in params
            ]
    return encode(
        served, listed, params, pooling_task=task, lora_request=lora_request, tokenization_kwargs=tokenization_kwargs
    )


def score(
    served: LoadedModel,
    text_1: str | Sequence[str],
    text_2: str | Sequence[str],
    options: ScoreOptions,
    *,
    pooling_params: PoolingParams | None = None,
    lora_request: Any = None,
    tokenization_kwargs: Mapping[str, Any] | None = None,
) -> TaskCall[ScoringRequestOutput]:
    options = options.with_params(pooling_params)
    prompts = [options.prompt(*pair) for pair in scoring.pairs(text_1, text_2)]
    adapters = served.adapters_for(lora_request, len(prompts))
    served.check("classify", adapters, "score")
    heads = [served.head_of(pooling_params or PoolingParams(), each) for each in adapters]
    processor = score_processor(served, options, {int(each.config.num_labels) for each in heads})
    params = (
        None
        if pooling_params is None
        else PoolingParams(use_activation=pooling_params.use_activation, head_name=pooling_params.head_name)
    )
    return _call(served, _SCORE, prompts, params, lora_request, tokenization_kwargs, processor)


def score_processor(served: LoadedModel, options: ScoreOptions, num_labels: Iterable[int] = ()) -> PromptProcessor:
    if not num_labels:
        served.check("classify", [None], "score")
    for count in num_labels or (int(served.classifier.config.num_labels),):
        scoring.check_num_labels(count, param="head_name" if len(served.heads) > 1 else None)
    return options.processor(served.score_processor())


def _call(
    served: LoadedModel,
    kind: PoolingTask[Output],
    prompts: Sequence[Any],
    pooling_params: PoolingParams | Sequence[PoolingParams] | None,
    lora_request: Any,
    tokenization_kwargs: Mapping[str, Any] | None,
    processor: PromptProcessor | None = None,
) -> TaskCall[Output]:
    adapters = served.adapters_for(lora_request, len(prompts))
    served.check(kind.task, adapters)
    params = per_prompt(pooling_params, len(prompts))
    served.check_params(kind.task, params)
    for asked in params:
        served.head_of(asked)  # an unknown one is refused before anything runs
    truncation, special = truncation_of(tokenization_kwargs or {})
    return TaskCall(served, kind, prompts, params, adapters, processor or served.processor, truncation, special)


def salted(call: TaskCall[Output], cache_salt: str | None) -> TaskCall[Output]:
    """The same call, whose prompts share keys and values only with those of the same salt."""
    return call if cache_salt is None else dataclasses.replace(call, cache_salt=cache_salt)
