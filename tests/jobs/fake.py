"""A classifier without a model: its answers follow from the characters of a text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vllm_cls.calls.scoring import ScoreOptions, check_num_labels
from vllm_cls.errors import ConfigError
from vllm_cls.outputs import ClassificationOutput, ClassificationRequestOutput
from vllm_cls.runtime.counters import Counters


class FakeLLM:
    """Stands in for `vllm_cls.LLM`: a text with "good" in it is positive; a text with "BOOM" is refused.

    Args:
        window: prompts that are taken before the first answer comes.
    """

    made: list[FakeLLM] = []

    task = "classify"
    judges_steps = False

    def __init__(
        self,
        model: str = "fake",
        *,
        labels: tuple[str, ...] = ("negative", "positive"),
        problem_type: str | None = "single_label_classification",
        max_model_len: int | None = None,
        window: int = 4,
        template: str | None = None,
        **options: Any,
    ) -> None:
        self.model, self.options = model, options
        self.id2label = dict(enumerate(labels))
        self.num_labels, self.problem_type = len(labels), problem_type
        self.max_model_len, self._window, self._template = max_model_len or 50, window, template
        self.seen: list[dict[str, Any]] = []
        self.most_ahead = self.parts = 0
        self.closed = False
        FakeLLM.made.append(self)

    checkpoint_files: tuple[Path, ...] = ()
    counters = Counters()
    use_activation = gives_probabilities = True
    heads: dict[str, Any] = {}

    def describe(self) -> dict[str, Any]:
        return {"model": self.model, "prompt_template": self._template, "id2label": self.id2label, "bytes": 12345}

    def logits(self, text: str) -> list[float]:
        """Logits `(num_labels,)` of a text; any fixed rule does."""
        good = 2.0 if "good" in text else -1.0
        return [good if i == 1 or self.num_labels == 1 else i / 4 for i in range(self.num_labels)]

    def probs(self, text: str) -> list[float]:
        logits = self.logits(text)
        if self.problem_type == "regression":
            return logits
        if self.problem_type == "multi_label_classification" or self.num_labels == 1:
            return [1 / (1 + math.exp(-logit)) for logit in logits]
        total = sum(map(math.exp, logits))
        return [math.exp(logit) / total for logit in logits]

    def classify_iter(
        self,
        prompts: Iterable[Any],
        *,
        use_activation: bool | None = None,
        truncate: bool = False,
        truncation_side: str | None = None,
    ) -> Iterator[ClassificationRequestOutput]:
        stream = iter(prompts)
        while window := list(itertools.islice(stream, self._window)):
            self.most_ahead = max(self.most_ahead, len(window))
            for prompt in window:
                self.seen.append(prompt)
                yield self._answer(prompt, use_activation, truncate)

    def _answer(self, prompt: dict[str, Any], use_activation: bool | None, truncate: bool) -> Any:
        limits = {"max_tokens_per_query", "max_tokens_per_doc"}
        assert set(prompt) <= {"prompt", "text_pair", "messages", "fields"} | limits
        text = prompt.get("prompt") or str(prompt.get("messages") or prompt.get("fields"))
        too_long = len(text) > self.max_model_len
        if "BOOM" in text or (too_long and not truncate):
            error = "the tokenizer refuses this text" if "BOOM" in text else "the prompt is too long"
            return ClassificationRequestOutput("0", None, [], error=error)  # type: ignore[arg-type]
        logits = [math.nan] * self.num_labels if "NAN" in text else self.logits(text)
        probs = logits if use_activation is False or "NAN" in text else self.probs(text)
        likely = None if self.problem_type == "regression" else self.probs(text)
        return ClassificationRequestOutput(
            "0", ClassificationOutput(probs, logits, self.id2label, likely), [1], truncated=too_long
        )

    def score_processor(self, options: ScoreOptions, num_labels: Iterable[int] = ()) -> None:
        for count in num_labels or (self.num_labels,):
            check_num_labels(count)
        if options.instruction == "BOOM":
            raise ConfigError("no place for an instruction")

    def reset_prefix_cache(self) -> None:
        self.parts += 1

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> FakeLLM:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
