"""What a call of `LLM` or `AsyncLLM` asks: its prompts, what runs for them, and what the answers become."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..errors import ConfigError, PromptError
from ..inputs.media_parts import holds_media
from ..inputs.prompts import as_list
from ..inputs.tokenization import PromptProcessor, Tokenized, Truncation
from ..model.task_checks import check_params, check_task
from ..outputs import (
    ClassificationRequestOutput,
    Decision,
    EmbeddingRequestOutput,
    Moderation,
    PoolingRequestOutput,
    RequestOutput,
    ScoringRequestOutput,
    TokenClassificationRequestOutput,
)
from ..params import PoolingParams
from ..runtime.bars import UseTqdm, bar
from . import output_processor, scoring, tensors
from .arguments import per_prompt, truncation_of
from .output_processor import NextId, all_good
from .scoring import ScoreOptions, Side

if TYPE_CHECKING:
    from ..model.loaded_model import LoadedModel
    from ..runtime.adapter import LoRAAdapter
    from ..runtime.engine import Result

BYTES_AT_ONCE = 1 << 28  # of what processors make of images and videos

Output = TypeVar("Output", bound=RequestOutput[Any] | Decision | Moderation)
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
        placed: a prompt with the tokens that are pooled, where these are not the model's; or why there are none.
    """

    task: str
    finish: Finish[Output]
    placed: Callable[[Tokenized], Tokenized | PromptError] | None = None


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
        each: so many of the prompts belong to one that the caller gave.
    """

    loaded: LoadedModel
    kind: PoolingTask[Output]
    prompts: Sequence[Any]
    params: Sequence[PoolingParams]
    adapters: Sequence[LoRAAdapter | None]
    processor: PromptProcessor
    truncation: Truncation
    add_special_tokens: bool | None = None
    cache_salt: str | None = None
    each: int = 1

    def tokenize_each(self, start: int = 0, stop: int | None = None) -> list[Tokenized | PromptError]:
        """Prompts `start` to `stop` (all) as the model will see them, or why it cannot."""
        with self.loaded.engine.counters.timed("tokenize"):
            tokenized = self.processor.tokenize(
                self.prompts[start:stop], self.truncation, add_special_tokens=self.add_special_tokens
            )
        if self.kind.placed is not None:
            tokenized = [each if isinstance(each, PromptError) else self.kind.placed(each) for each in tokenized]
        if self.cache_salt is None and not any(self.adapters):
            return tokenized
        return [
            each if isinstance(each, PromptError) else each.run_with(adapter, self.cache_salt)
            for each, adapter in zip(tokenized, self.adapters[start:stop], strict=True)
        ]

    def tokenize(self, start: int = 0, stop: int | None = None) -> list[Tokenized]:
        """As `tokenize_each`.

        Raises:
            PromptError: a prompt is bad; it is named by its index.
        """
        good = []
        for index, each in enumerate(self.tokenize_each(start, stop), start):
            if isinstance(each, PromptError):
                raise self._named(each, index)
            good.append(each)
        return good

    def _named(self, error: PromptError, index: int) -> PromptError:
        several = len(self.prompts) > self.each
        return type(error)(f"prompt {index // self.each}: {error}", error.param) if several else error

    def parts(self) -> Iterator[tuple[slice, list[Tokenized | PromptError]]]:
        """The prompts as `tokenize_each` gives them: all at once, or with images so many as fit in memory together."""
        if self.processor.media is None or not any(map(holds_media, self.prompts)):
            yield slice(0, len(self.prompts)), self.tokenize_each()
            return
        start, found, num_bytes = 0, [], 0
        for stop in range(1, len(self.prompts) + 1):
            found += self.tokenize_each(stop - 1, stop)
            media = found[-1].sequence.media if isinstance(found[-1], Tokenized) else None
            num_bytes += media.num_bytes if media is not None else 0
            if (num_bytes >= BYTES_AT_ONCE and stop % self.each == 0) or stop == len(self.prompts):
                yield slice(start, stop), found
                start, found, num_bytes = stop, [], 0

    def only(self, part: slice) -> TaskCall[Output]:
        """The same asked of a part of its prompts."""
        return dataclasses.replace(
            self, prompts=self.prompts[part], params=self.params[part], adapters=self.adapters[part]
        )

    def run_each(self, tokenized: Sequence[Tokenized | PromptError], next_id: NextId) -> Iterator[Output | PromptError]:
        """Run prompts at once: an output for each that the caller gave, or why there is none."""
        groups = [tokenized[start : start + self.each] for start in range(0, len(tokenized), self.each)]
        errors = [next((each for each in group if isinstance(each, PromptError)), None) for group in groups]
        good = [
            each
            for group, error in zip(groups, errors, strict=True)
            if error is None
            for each in group
            if isinstance(each, Tokenized)
        ]
        params = [asked for i, asked in enumerate(self.params) if errors[i // self.each] is None]
        results = self.loaded.runs[self.kind.task]([each.sequence for each in good])
        outputs = iter(self.kind.finish(self.loaded, good, results, params, next_id))
        return (next(outputs) if error is None else error for error in errors)

    def outputs(self, tokenized: Sequence[Tokenized], results: Sequence[Result], next_id: NextId) -> list[Output]:
        """What the caller gets, of what was run.

        Raises:
            PromptError: a prompt has no answer; the first of them.
        """
        return all_good(self.kind.finish(self.loaded, tokenized, results, self.params, next_id))

    def run(self, next_id: NextId, use_tqdm: UseTqdm = False) -> list[Output]:
        """All of it, here and now.

        Args:
            use_tqdm: as for `LLM.classify`.

        Raises:
            PromptError: a prompt is bad, or has no answer; the first of them.
        """
        if use_tqdm and (len(self.prompts) > self.each or use_tqdm is not True):
            with bar(use_tqdm, len(self.prompts), self.loaded.engine.counters):
                return self.run(next_id)
        if self.processor.media is None:
            tokenized = self.tokenize()
            results = self.loaded.runs[self.kind.task]([each.sequence for each in tokenized])
            return self.outputs(tokenized, results, next_id)
        outputs: list[Output] = []
        for part, found in self.parts():
            good: list[Tokenized] = []
            for index, each in enumerate(found, part.start):
                if isinstance(each, PromptError):
                    raise self._named(each, index)
                good.append(each)
            results = self.loaded.runs[self.kind.task]([each.sequence for each in good])
            outputs += self.only(part).outputs(good, results, next_id)
        return outputs

    def with_prompts(self, prompts: Sequence[Any]) -> TaskCall[Output]:
        """The same asked of other prompts, each with what the first of these has."""
        count = len(prompts)
        return dataclasses.replace(
            self, prompts=prompts, params=[self.params[0]] * count, adapters=[self.adapters[0]] * count
        )


CLASSIFY = PoolingTask("classify", output_processor.classified)
STEPS = PoolingTask("token_classify", functools.partial(tensors.encoded, "token_classify"))
_SCORE = PoolingTask("classify", output_processor.scored)
_EMBED = PoolingTask("embed", tensors.embedded)
_NOTHING_ASKED = PoolingParams()


def spans(
    loaded: LoadedModel, aggregation_strategy: str, ignore_labels: Sequence[str]
) -> PoolingTask[TokenClassificationRequestOutput]:
    """The labelled spans of texts.

    Raises:
        ConfigError: the model does not classify tokens, or an argument is unknown.
    """
    from .spans import classified_tokens, span_finder

    finder = span_finder(loaded, aggregation_strategy, ignore_labels)
    return PoolingTask("token_classify", functools.partial(classified_tokens, finder))


# -- the calls; what they take and raise is said at `LLM`'s methods ------------------------------------


def classify(
    loaded: LoadedModel,
    prompts: Any,
    *,
    pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
    lora_request: Any = None,
    tokenization_kwargs: Mapping[str, Any] | None = None,
) -> TaskCall[ClassificationRequestOutput]:
    return task_call(loaded, CLASSIFY, as_list(prompts), pooling_params, lora_request, tokenization_kwargs)


def token_classify(
    loaded: LoadedModel,
    prompts: Any,
    *,
    aggregation_strategy: str = "simple",
    ignore_labels: Sequence[str] = ("O",),
    lora_request: Any = None,
    tokenization_kwargs: Mapping[str, Any] | None = None,
) -> TaskCall[TokenClassificationRequestOutput]:
    kind = spans(loaded, aggregation_strategy, ignore_labels)
    return task_call(loaded, kind, as_list(prompts), None, lora_request, tokenization_kwargs)


def encode(
    loaded: LoadedModel,
    prompts: Any,
    pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
    *,
    pooling_task: str | None = None,
    lora_request: Any = None,
    tokenization_kwargs: Mapping[str, Any] | None = None,
) -> TaskCall[PoolingRequestOutput]:
    task = pooling_task or loaded.pooler.config.task or (loaded.task if loaded.task != "classify" else None)
    if task not in ("classify", "token_classify", "embed"):
        raise ConfigError(f"pooling_task={task!r}: LLM.encode needs 'classify', 'token_classify' or 'embed'.")
    kind = PoolingTask(task, functools.partial(tensors.encoded, task))
    return task_call(loaded, kind, as_list(prompts), pooling_params, lora_request, tokenization_kwargs)


def embed(
    loaded: LoadedModel,
    prompts: Any,
    *,
    pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
    lora_request: Any = None,
    tokenization_kwargs: Mapping[str, Any] | None = None,
) -> TaskCall[EmbeddingRequestOutput]:
    return task_call(loaded, _EMBED, as_list(prompts), pooling_params, lora_request, tokenization_kwargs)


def reward(
    loaded: LoadedModel,
    prompts: Any,
    *,
    pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
    lora_request: Any = None,
    tokenization_kwargs: Mapping[str, Any] | None = None,
) -> TaskCall[PoolingRequestOutput]:
    listed = as_list(prompts)
    params = list(per_prompt(_NOTHING_ASKED if pooling_params is None else pooling_params, len(listed)))
    task = "token_classify" if loaded.judges_steps else loaded.pooler.config.task or "classify"
    if task == "classify":
        adapters = loaded.adapters_for(lora_request, len(listed))
        check_task(loaded, task, adapters, "give rewards")
        for asked, adapter in zip(params, adapters, strict=True):
            scoring.check_num_labels(int(loaded.head_of(asked, adapter).config.num_labels), "reward")
        if loaded.pooler.config.use_activation is None:
            params = [
                PoolingParams(use_activation=bool(each.use_activation), head_name=each.head_name) for each in params
            ]
    return encode(
        loaded, listed, params, pooling_task=task, lora_request=lora_request, tokenization_kwargs=tokenization_kwargs
    )


def score(
    loaded: LoadedModel,
    text_1: Side | Sequence[Side],
    text_2: Side | Sequence[Side],
    options: ScoreOptions,
    *,
    pooling_params: PoolingParams | None = None,
    lora_request: Any = None,
    tokenization_kwargs: Mapping[str, Any] | None = None,
) -> TaskCall[ScoringRequestOutput]:
    options = options.with_params(pooling_params)
    pairs = scoring.pairs(text_1, text_2)
    adapters = loaded.adapters_for(lora_request, len(pairs))
    check_task(loaded, "classify", adapters, "score")
    heads = [loaded.head_of(pooling_params or _NOTHING_ASKED, each) for each in adapters]
    processor = score_processor(loaded, options, {int(each.config.num_labels) for each in heads})
    prompts = [options.prompt_with_media(*pair, processor) for pair in pairs]
    params = (
        None
        if pooling_params is None
        else PoolingParams(use_activation=pooling_params.use_activation, head_name=pooling_params.head_name)
    )
    return task_call(loaded, _SCORE, prompts, params, lora_request, tokenization_kwargs, processor)


def score_processor(loaded: LoadedModel, options: ScoreOptions, num_labels: Iterable[int] = ()) -> PromptProcessor:
    if not num_labels:
        check_task(loaded, "classify", [None], "score")
    for count in num_labels or (int(loaded.classifier.config.num_labels),):
        scoring.check_num_labels(count, param="head_name" if len(loaded.heads) > 1 else None)
    return options.processor(loaded.score_processor())


def repeated(
    loaded: LoadedModel,
    kind: PoolingTask[Output],
    params: PoolingParams,
    *,
    truncate: bool,
    truncation_side: str | None,
) -> TaskCall[Output]:
    """A call that is made of window after window of a stream, with `TaskCall.with_prompts`.

    Args:
        truncate: cut prompts that are too long, instead of refusing them.
    """
    return task_call(loaded, kind, [""], params, None, cut(truncate, truncation_side))


def cut(truncate: bool, side: str | None) -> dict[str, Any]:
    """`tokenization_kwargs` of a stream, whose prompts are cut to the model's length, or refused."""
    return {"truncate_prompt_tokens": -1 if truncate else None, "truncation_side": side}


def texts_alone(loaded: LoadedModel) -> PromptProcessor:
    """The model's processor without images, for calls whose outputs are made of several prompts: those run at once."""
    return loaded.processor if loaded.processor.media is None else dataclasses.replace(loaded.processor, media=None)


def task_call(
    loaded: LoadedModel,
    kind: PoolingTask[Output],
    prompts: Sequence[Any],
    pooling_params: PoolingParams | Sequence[PoolingParams] | None,
    lora_request: Any,
    tokenization_kwargs: Mapping[str, Any] | None,
    processor: PromptProcessor | None = None,
) -> TaskCall[Output]:
    """A call, its arguments checked.

    Args:
        processor: makes token ids of the prompts; None is the model's own.
    """
    adapters: Sequence[LoRAAdapter | None] = [None] * len(prompts)
    params: Sequence[PoolingParams] = [_NOTHING_ASKED] * len(prompts)
    truncation, special = Truncation(), None
    if lora_request is not None:
        adapters = loaded.adapters_for(lora_request, len(prompts))
    if kind.task not in loaded.own_tasks:
        check_task(loaded, kind.task, adapters)
    if pooling_params is not None:
        params = per_prompt(pooling_params, len(prompts))
        check_params(loaded, kind.task, params)
        for asked in params:
            loaded.head_of(asked)  # an unknown one is refused before anything runs
    if tokenization_kwargs:
        truncation, special = truncation_of(tokenization_kwargs)
    return TaskCall(loaded, kind, prompts, params, adapters, processor or loaded.processor, truncation, special)
