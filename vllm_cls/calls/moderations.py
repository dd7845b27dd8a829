"""Moderation: whether texts are harmful, and of which categories, by the verdicts of a guard model or a classifier's labels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ConfigError, PromptError, nearest
from ..inputs.prompts import as_list
from ..model.task_checks import check_task
from ..outputs import Moderation
from ..params import PoolingParams
from .output_processor import rows_together
from .tasks import PoolingTask, TaskCall, task_call

if TYPE_CHECKING:
    from ..inputs.tokenization import Tokenized
    from ..model.heads.output_heads import RunningHead
    from ..model.loaded_model import LoadedModel
    from ..model.loading.guard import OpenGuard
    from ..runtime.engine import Result

THRESHOLD = 0.5
SAFE = (
    "safe", "benign", "neutral", "ok", "normal", "harmless", "clean", "none", "nontoxic", "nothate", "nonhate",
    "nonoffensive", "notoffensive",
)  # fmt: skip
"""Labels, in small letters and without anything between words, that say that a text is harmless."""


@dataclass(frozen=True)
class Judged:
    """What a model says of a text.

    Args:
        scores: by category.
        harmful: the probability that it is of any.
    """

    scores: Mapping[str, float]
    harmful: float

    def output(self, threshold: float, num_prompt_tokens: int) -> Moderation:
        """With what is flagged: a text that is harmful is of the likeliest category in any case."""
        flagged, best = self.harmful >= threshold, max(self.scores.values(), default=0.0)
        of = {name: score >= threshold or (flagged and score == best) for name, score in self.scores.items()}
        return Moderation(flagged or any(of.values()), of, dict(self.scores), num_prompt_tokens)


@dataclass(frozen=True)
class ByLabels:
    """A classifier whose labels are categories.

    Args:
        head: that is read.
        safe: labels that are none.
    """

    head: RunningHead
    safe: frozenset[str]

    @classmethod
    def of(cls, head: RunningHead, safe_label: str | None) -> ByLabels:
        """A head with its safe labels: the one that is named, else those of `SAFE`.

        Raises:
            ConfigError: it gives no probabilities, has no such label, or needs one and has none.
        """
        labels = list(head.id2label.values())
        if head.probabilities(torch.zeros(1, len(labels))) is None:
            raise ConfigError(
                "this model gives numbers, not probabilities of categories; moderation needs a classifier."
            )
        if safe_label is not None and safe_label not in labels:
            raise ConfigError(
                f"safe_label={safe_label!r} is none of the labels {', '.join(labels)}.{nearest(safe_label, labels)}",
                "safe_label",
            )
        safe = frozenset({safe_label} if safe_label is not None else filter(_sounds_safe, labels))
        found = cls(head, safe)
        if found.excludes and not safe:
            raise ConfigError(
                f"which of the labels {', '.join(labels)} says that a text is harmless? Name it with safe_label (vcls serve "
                "--safe-label).",
                "safe_label",
            )
        return found

    @functools.cached_property
    def excludes(self) -> bool:
        """Whether one label alone is true, so that the probabilities of all are 1."""
        of_equals = self.head.probabilities(torch.full((1, len(self.head.id2label)), 3.0))
        return of_equals is not None and abs(float(of_equals.sum()) - 1) < 1e-3

    def prompts(self, given: Any) -> list[Any]:
        """Those of a text."""
        return [given]

    def judged(self, rows: torch.Tensor) -> Judged:
        """Of calibrated logits `(1, num_logits)`."""
        found = self.head.probabilities(rows[:, self.head.columns])
        assert found is not None  # it was tried
        named = zip(self.head.id2label.values(), found[0].tolist(), strict=True)
        scores = {label: score for label, score in named if label not in self.safe}
        harmful = sum(scores.values()) if self.excludes else max(scores.values(), default=0.0)
        return Judged(scores, harmful)


def _sounds_safe(label: str) -> bool:
    return "".join(filter(str.isalnum, label.lower())) in SAFE


@dataclass(frozen=True)
class ByGuard:
    """A guard model.

    Args:
        guard: as it was opened.
        asked: the options of the chat template of each prompt.
    """

    guard: OpenGuard
    asked: Sequence[Mapping[str, Any]]
    categories: Sequence[str]

    @classmethod
    def of(cls, guard: OpenGuard, categories: Sequence[str] | None) -> ByGuard:
        """A guard, asked of some categories, or all.

        Raises:
            ConfigError: there is no such category, or it judges by all at once.
        """
        known = list(guard.guard.asked)
        if categories is not None and not known:
            raise ConfigError(
                f"{guard.guard.name} judges by all its categories at once; leave categories out.", "categories"
            )
        for each in categories or ():
            if each not in known:
                raise ConfigError(
                    f"categories: there is no {each!r}.{nearest(str(each), known)} Known: {', '.join(known)}.",
                    "categories",
                )
        if categories is not None and not categories:
            raise ConfigError("categories: name one, or leave it out for all.", "categories")
        if known:
            chosen = list(dict.fromkeys(categories or known))
            return cls(guard, [guard.guard.asked[each] for each in chosen], chosen)
        named = list(guard.categories)
        behind = [{"answer": each} for each in guard.answers.values()] if named else []
        return cls(guard, [{}, *behind], named)

    def prompts(self, given: Any) -> list[Any]:
        """Those of a text or a conversation.

        Raises:
            PromptError: it is neither.
        """
        prompt = _conversation(given)
        options = prompt.get("chat_template_kwargs") or {}
        return [{**prompt, "chat_template_kwargs": {**options, **each}} for each in self.asked]

    def judged(self, rows: torch.Tensor) -> Judged:
        """Of calibrated logits `(num_prompts, num_logits)`, whose first columns are verdicts, the harmless one first."""
        verdicts = rows[:, : len(self.guard.verdicts)].softmax(-1)
        if self.guard.guard.asked:
            found = verdicts[:, 1:].sum(-1).tolist()
            return Judged(dict(zip(self.categories, found, strict=True)), max(found))
        of_verdict = dict(zip(self.guard.verdicts, verdicts[0].tolist(), strict=True))
        harmful = float(verdicts[0, 1:].sum())
        if not self.categories:
            return Judged({label: of_verdict[label] for label in list(of_verdict)[1:]}, harmful)
        named = rows[1:, list(self.guard.categories.values())].softmax(-1)
        likely = torch.tensor([of_verdict[each] for each in self.guard.answers])
        return Judged(dict(zip(self.categories, (likely @ named.cpu().float()).tolist(), strict=True)), harmful)


def _conversation(given: Any) -> dict[str, Any]:
    if isinstance(given, str):
        return {"messages": [{"role": "user", "content": given}]}
    if isinstance(given, Mapping) and given.get("messages"):
        return dict(given)
    if isinstance(given, (list, tuple)) and given and all(isinstance(each, Mapping) for each in given):
        return {"messages": list(given)}
    raise PromptError("a guard model judges a text or a conversation; give one of these.")


def judge_of(
    loaded: LoadedModel,
    categories: Sequence[str] | None = None,
    safe_label: str | None = None,
    pooling_params: PoolingParams | None = None,
    lora_request: Any = None,
) -> ByLabels | ByGuard:
    """What judges texts.

    Raises:
        ConfigError: the model cannot, or not by such categories or such a label.
    """
    if loaded.classifier.guard is not None:
        return ByGuard.of(loaded.classifier.guard, categories)
    if categories is not None:
        raise ConfigError("categories: a classifier judges by all its labels at once; leave it out.", "categories")
    (adapter,) = loaded.adapters_for(lora_request, 1)
    check_task(loaded, "classify", [adapter], "moderate")
    return ByLabels.of(loaded.head_of(pooling_params or PoolingParams(), adapter), safe_label)


def moderate(
    loaded: LoadedModel,
    prompts: Any,
    *,
    threshold: float = THRESHOLD,
    categories: Sequence[str] | None = None,
    safe_label: str | None = None,
    pooling_params: PoolingParams | None = None,
    lora_request: Any = None,
    tokenization_kwargs: Mapping[str, Any] | None = None,
) -> TaskCall[Moderation]:
    """A call that judges texts; what it takes and raises is said at `LLM.moderate`."""
    number: Any = threshold
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number <= 1:
        raise ConfigError(f"threshold={threshold!r} is no number from 0 to 1.", "threshold")
    given, judge = as_list(prompts), judge_of(loaded, categories, safe_label, pooling_params, lora_request)
    several = [judge.prompts(each) for each in given]
    kind = PoolingTask("classify", functools.partial(_moderated, judge, threshold, len(several[0])))
    flat = [prompt for some in several for prompt in some]
    call = task_call(loaded, kind, flat, pooling_params, lora_request, tokenization_kwargs)
    return replace(call, each=len(several[0]))


def _moderated(
    judge: ByLabels | ByGuard,
    threshold: float,
    count: int,
    loaded: LoadedModel,
    tokenized: Sequence[Tokenized],
    results: Sequence[Result],
    params: Sequence[PoolingParams],
    next_id: Callable[[], str],
) -> list[Moderation | PromptError]:
    """What is said of each text, of the results of all its prompts."""
    outputs: list[Moderation | PromptError] = []
    for part, rows in rows_together(loaded, results, count):
        if isinstance(rows, PromptError):
            outputs.append(rows)
            continue
        num_tokens = sum([len(each.sequence.token_ids) for each in tokenized[part]])
        outputs.append(judge.judged(rows).output(threshold, num_tokens))
    return outputs
