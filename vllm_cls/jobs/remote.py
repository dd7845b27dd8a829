"""A server's model with the interface that a job needs of an `LLM`; several requests are in flight."""

from __future__ import annotations

import base64
import functools
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..calls.scoring import ScoreOptions, check_num_labels
from ..client import Client, HeadInfo, RejectedError, Response, ServerError
from ..errors import ConfigError, JobError, PromptError, nearest
from ..evaluation import probabilities
from ..inputs.prompt_template import PromptTemplate
from ..outputs import ClassificationOutput, ClassificationRequestOutput, Decision

T = TypeVar("T")

ROWS_OF_A_REQUEST = 32
REQUESTS_IN_FLIGHT = 8


@dataclass(frozen=True)
class _Request:
    """What the rows of one request have in common.

    Args:
        route: "classify", "chat" (one row) or "score".
        options: of the call, beside those of the whole job.
    """

    route: str
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class RemoteMedia:
    """What a server's model reads beside texts: `image`, `video`."""

    modalities: tuple[str, ...]

    def place(self, modality: str) -> str:
        """None that is known here; the server writes it."""
        raise NotImplementedError(modality)


class RemoteModel:
    """The model of a server, for `classify_file`, `score_file` and `decide_file`.

    Args:
        client: stays the caller's to close. Its `timeout` and `max_retries` say how long a job waits for a server
            that is overloaded or away.
        model: a name that the server knows, such as an adapter's; None is its own model.

    Raises:
        ServerError, UnreachableError: the server does not say what its model is.
        ConfigError: its model cannot be run so.
    """

    judges_steps = False
    checkpoint_files: Sequence[Path] = ()  # they are the server's
    counters = None  # likewise

    def __init__(self, client: Client, model: str | None = None) -> None:
        self._client, self._name = client, model
        try:
            self._info = client.describe(model)
        except ServerError as error:
            if error.status != 404 or error.param == "model":
                raise
            problem = f"the server at {client.base_url} does not tell what its model is (GET /model)"
            raise ConfigError(f"{problem}; a job over files needs one that was started with `vcls serve`.") from error
        self.task, self.problem_type = self._info.task, self._info.problem_type
        self.id2label = dict(enumerate(self._info.labels))
        self.num_labels, self.use_activation = len(self.id2label), self._info.use_activation
        self.gives_probabilities = self._info.gives_probabilities
        if self.task != "classify":
            raise ConfigError(f"the server's model is for {self.task!r}, and a server classifies whole texts only.")
        template = self._info.prompt_template
        more = [] if template is None else [name for name in PromptTemplate.parse(template).fields if name != "text"]
        if more:
            raise ConfigError(
                f"the prompt template of the server's model takes {', '.join(more)}, and a request carries the text "
                "alone; run the model itself over the file."
            )

    @property
    def heads(self) -> dict[str, HeadInfo]:
        """The heads by name, the default one first; empty where there is a single head without a name."""
        return {each.name: each for each in self._info.heads}

    def head(self, name: str) -> HeadInfo:
        """One of them.

        Raises:
            ConfigError: there is no head of that name.
        """
        if name not in self.heads:
            known = (
                f"the server's model has {', '.join(self.heads)}" if self.heads else "the server's model has one head"
            )
            raise ConfigError(f"head_name={name!r} is unknown; {known}.{nearest(name, list(self.heads))}")
        return self.heads[name]

    @property
    def media(self) -> RemoteMedia:
        """What the server reads beside texts.

        Raises:
            ConfigError: its model is not one whose prompts are chats, which a request can carry images in.
        """
        if not self._info.chat_template_prompt or self._info.prompt_template is not None:
            raise ConfigError(
                "images and videos of files are sent as chats, and the prompts of the server's model are none (vcls convert "
                "--chat-template-prompt makes such a model); run the model itself over the file."
            )
        return RemoteMedia(tuple(self._info.modalities))

    def describe(self) -> dict[str, Any]:
        """The values that a job needs of `LLM.describe`."""
        return {
            "server": self._client.base_url,
            "model": self._name,
            "prompt_template": self._info.prompt_template,
            "chat_template_prompt": self._info.chat_template_prompt,
            "id2label": self.id2label,
        }

    def reset_prefix_cache(self) -> None:
        """The server keeps its own."""

    def score_processor(self, options: ScoreOptions, num_labels: Iterable[int] = ()) -> None:
        """Raise `ConfigError` if the model scores no pairs, or not so; `num_labels` as for `LLM.score_processor`."""
        for count in num_labels or (self.num_labels,):
            check_num_labels(count)
        if options.instruction is not None and not self._info.takes_instruction:
            raise ConfigError(f"instruction={options.instruction!r}: the server's model has no place for one.")

    def classify_iter(
        self,
        prompts: Iterable[Mapping[str, Any]],
        *,
        use_activation: bool | None = None,
        head_name: str | None = None,
        truncate: bool = False,
        truncation_side: str | None = None,
        **candidates: Any,
    ) -> Iterator[ClassificationRequestOutput]:
        """As `LLM.classify_iter`: one output a prompt, in order; a bad prompt has its reason in `error`.

        Args:
            candidates: `candidate_labels` and what goes with them.

        Raises:
            ConfigError: the server's model does not classify by these.
        """
        if candidates:
            try:
                self._client.classify("a text", model=self._name, **candidates)
            except RejectedError as error:
                raise ConfigError(str(error)) from error
        shared = {
            **candidates,
            "use_activation": use_activation,
            "head_name": head_name,
            "truncate_prompt_tokens": -1 if truncate else None,
            "truncation_side": truncation_side,
            "model": self._name,
            "extra": {"truncated": True},
        }
        batches = _batches(prompts, self._request_of)
        return _in_flight((functools.partial(self._answers, request, rows, shared) for request, rows in batches))

    def decide(self, request: Mapping[str, Any]) -> list[Decision]:
        """As `LLM.decide`, of one request.

        Raises:
            PromptError: the server refuses it.
        """
        try:
            found = self._client.decide(request["state"], request["questions"], model=self._name)
        except RejectedError as error:
            raise PromptError(str(error)) from error
        return [Decision(found.answers, found.usage.prompt_tokens)]

    def decide_iter(self, requests: Iterable[Mapping[str, Any]]) -> Iterator[Decision]:
        """As `LLM.decide_iter`."""
        return _in_flight(functools.partial(self._decided, each) for each in requests)

    def _decided(self, request: Mapping[str, Any]) -> list[Decision]:
        try:
            return self.decide(request)
        except (PromptError, TypeError, ValueError) as error:  # what is no JSON cannot be sent
            return [Decision({}, error=str(error))]

    def _request_of(self, prompt: Mapping[str, Any]) -> _Request:
        """Which request a prompt can be part of."""
        if "messages" in prompt or any(prompt.get("multi_modal_data", {}).values()):
            return _Request("chat")
        if "max_tokens_per_query" not in prompt:
            return _Request("classify")
        options = {name: prompt[name] or None for name in ("max_tokens_per_query", "max_tokens_per_doc")}
        if self._info.takes_instruction:
            options["instruction"] = prompt["fields"].get("instruction")
        return _Request("score", tuple(options.items()))

    def _answers(
        self, request: _Request, rows: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]
    ) -> list[ClassificationRequestOutput]:
        """The outputs of the rows; a refused request is split in halves until the bad row is alone."""
        try:
            return self._asked(request, rows, {**shared, **dict(request.options)})
        except (RejectedError, PromptError) as error:
            if len(rows) == 1:
                return [ClassificationRequestOutput("", None, [], error=str(error))]  # type: ignore[arg-type]
            half = len(rows) // 2
            return self._answers(request, rows[:half], shared) + self._answers(request, rows[half:], shared)

    def _asked(
        self, request: _Request, rows: Sequence[Mapping[str, Any]], options: Mapping[str, Any]
    ) -> list[ClassificationRequestOutput]:
        """The outputs of one request."""
        if request.route == "score":
            texts = [[row[side] for row in rows] for side in ("prompt", "text_pair")]
            scores = self._client.score(texts[0], texts[1], **options)
            return [
                _output(ClassificationOutput(_finite([each.score])), each.truncated) for each in _all_of(scores, rows)
            ]
        more = {"logits": True, "heads": True} if self.heads else {"logits": True}
        options = {**options, "extra": {**options["extra"], **more}}
        if request.route == "chat":
            found = self._client.chat(rows[0].get("messages") or _conversation(rows[0]), **options)
        else:
            found = self._client.classify([_input(row) for row in rows], **options)
        if "candidate_labels" in options:
            names = dict(enumerate(options["candidate_labels"]))
            return [
                _output(
                    ClassificationOutput(_finite(each.probs), each.logits or [], names, _finite(each.probs)),
                    each.truncated,
                )
                for each in _all_of(found, rows)
            ]
        name, activated = options["head_name"], options["use_activation"]
        activated = self.use_activation if activated is None else activated
        asked = self if name is None else self.heads[name]
        outputs = []
        for each in _all_of(found, rows):
            output = _output(_numbers(each.probs, each.logits, asked, activated), each.truncated)
            heads = {
                name: _numbers(answer["probs"], answer.get("logits"), self.heads[name], activated)
                for name, answer in (each.heads or {}).items()
            }
            outputs.append(replace(output, heads=heads))
        return outputs


def _in_flight(calls: Iterable[Callable[[], list[T]]]) -> Iterator[T]:
    """What calls give, in their order, with several at work."""
    waiting: deque[Future[list[T]]] = deque()
    pool = ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="vllm_cls_request")
    try:
        for call in calls:
            waiting.append(pool.submit(call))
            while len(waiting) > REQUESTS_IN_FLIGHT:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _batches(
    prompts: Iterable[Mapping[str, Any]], request_of: Callable[[Mapping[str, Any]], _Request]
) -> Iterator[tuple[_Request, list[Mapping[str, Any]]]]:
    """Neighbours that can be one request, together with what they have in common."""
    for request, group in itertools.groupby(prompts, request_of):
        size = 1 if request.route == "chat" else ROWS_OF_A_REQUEST
        while rows := list(itertools.islice(group, size)):
            yield request, rows


def _conversation(prompt: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A text behind its images and videos, as the model's own prompt has them.

    Raises:
        PromptError: a file cannot be read, or is too large.
    """
    parts: list[dict[str, Any]] = []
    for modality, items in prompt["multi_modal_data"].items():
        for item in items:
            try:
                parts.append({"type": f"{modality}_url", f"{modality}_url": {"url": _url(item)}})
            except PromptError as error:
                raise PromptError(f"{modality}: {error}") from error
    if prompt.get("prompt"):
        parts.append({"type": "text", "text": prompt["prompt"]})
    return [{"role": "user", "content": parts}]


def _url(item: Any) -> str:
    """What a file holds as a data: URL; what is on the web stays there, for the server to fetch."""
    if isinstance(item, str) and item.lower().startswith(("http:", "https:", "data:")):
        return item
    from ..media.policy import Allowance, MediaPolicy
    from ..media.sources import read_bytes

    data = read_bytes(item, Allowance(MediaPolicy()))
    return f"data:application/octet-stream;base64,{base64.b64encode(data).decode()}"


def _input(prompt: Mapping[str, Any]) -> Any:
    return (prompt["prompt"], prompt["text_pair"]) if "text_pair" in prompt else prompt["prompt"]


def _all_of(answer: Response[T], rows: Sequence[Any]) -> list[T]:
    if len(answer) != len(rows):
        raise JobError(f"the server answered {len(answer)} of {len(rows)} rows; it is at fault, or is no vcls serve.")
    return answer.data


def _output(answer: ClassificationOutput, truncated: bool | None) -> ClassificationRequestOutput:
    return ClassificationRequestOutput("", answer, [], truncated=bool(truncated))


def _numbers(
    probs: Sequence[float | None], logits: list[float] | None, head: RemoteModel | HeadInfo, activated: bool
) -> ClassificationOutput:
    """What the server's answer is of this head, as `RunningHead.outputs` makes it.

    Args:
        activated: whether the request asked for what the activation gives.
    """
    given, logits = _finite(probs), logits or []
    if head.problem_type == "regression":
        likely = None
    elif activated and head.gives_probabilities:
        likely = given
    else:
        likely = probabilities(logits or given, head.problem_type)
    return ClassificationOutput(given, logits, head.id2label, likely)


def _finite(numbers: Sequence[float | None]) -> list[float]:
    return [math.nan if each is None else each for each in numbers]  # JSON has null for what is not finite
