"""Labels that a request names, asked of a model of natural language inference: does the text entail "This example is LABEL."?"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..decisions.heads import LabelHead
from ..errors import ConfigError, PromptError
from ..inputs.prompts import Prompt, as_list, parse
from ..outputs import ClassificationOutput, ClassificationRequestOutput
from . import label_prompts
from .output_processor import not_finite
from .tasks import PoolingTask, TaskCall, task_call, texts_alone

if TYPE_CHECKING:
    from ..inputs.tokenization import Tokenized
    from ..model.loaded_model import LoadedModel
    from ..params import PoolingParams
    from ..runtime.engine import Result

HYPOTHESIS = "This example is {}."


@dataclass(frozen=True)
class Candidates:
    """Labels that a text may have.

    Args:
        labels: each different; or a text with commas between them, as transformers takes it.
        template: makes a hypothesis of a label, in the place of `{}`.
        multi_label: each label is true or not, whatever the others are; of a single label, always.

    Raises:
        ConfigError: there are no labels, one is there twice, or the template has no place for one.
    """

    labels: Sequence[str]
    template: str = HYPOTHESIS
    multi_label: bool = False

    def __post_init__(self) -> None:
        given: Any = self.labels
        if isinstance(given, str):
            given = [each.strip() for each in given.split(",")]
        if not given or not all(isinstance(each, str) and each for each in given) or len(set(given)) < len(given):
            raise ConfigError(
                f"candidate_labels={list(given)} must be texts, one or more, each once and none empty.",
                "candidate_labels",
            )
        object.__setattr__(self, "labels", tuple(given))
        try:  # nothing of Python's format but the place: a width could ask for any amount of memory
            places = [place[1:] for place in string.Formatter().parse(self.template) if place[1] is not None]
        except (ValueError, TypeError):
            places = []
        if places != [("", "", None)]:
            raise ConfigError(
                f"hypothesis_template={self.template!r} needs one {{}} for the label.", "hypothesis_template"
            )

    @property
    def arguments(self) -> dict[str, Any]:
        """These as `LLM.classify` takes them."""
        return {
            "candidate_labels": self.labels,
            "hypothesis_template": self.template,
            "multi_label": self.multi_label,
        }

    def pairs(self, text: Prompt | PromptError) -> list[Prompt | PromptError]:
        """A text with each hypothesis, or why there is no text."""
        if isinstance(text, PromptError):
            return [text] * len(self.labels)
        return [replace(text, text_pair=self.template.format(label)) for label in self.labels]

    def probabilities(self, logits: torch.Tensor, entailment: int) -> torch.Tensor:
        """As transformers' zero-shot pipeline: `(num_labels, num_answers)` → `(num_labels,)`.

        Args:
            entailment: its place among the answers.
        """
        if self.multi_label or len(self.labels) == 1:
            contradiction = -1 if entailment == 0 else 0
            return logits[:, [contradiction, entailment]].softmax(-1)[:, 1]
        return logits[:, entailment].softmax(-1)


def candidates_of(labels: Sequence[str] | None, template: str | None, multi_label: bool) -> Candidates | None:
    """The labels of a request; None where it names none.

    Raises:
        ConfigError: they are wrong, or the rest is given without them.
    """
    if labels is not None:
        return Candidates(labels, HYPOTHESIS if template is None else template, multi_label)
    for name, given in (("hypothesis_template", template is not None), ("multi_label", multi_label)):
        if given:
            raise ConfigError(f"{name} is for candidate_labels, which are not given.", name)
    return None


def classify(
    loaded: LoadedModel,
    prompts: Any,
    candidates: Candidates,
    *,
    tokenization_kwargs: Mapping[str, Any] | None = None,
    **refused: Any,
) -> TaskCall[ClassificationRequestOutput]:
    """A call that classifies texts by labels of the request; what it takes and raises is said at `LLM.classify`.

    Args:
        tokenization_kwargs: of the text alone is cut what is too long, never of a hypothesis.
        refused: other arguments, which have to be None.
    """
    given = [name for name, value in refused.items() if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: not with candidate_labels; leave it out.", given[0])
    texts = [_text(each) for each in as_list(prompts)]
    if isinstance(loaded.classifier.model, LabelHead):
        if candidates.template != HYPOTHESIS:
            raise ConfigError(
                "hypothesis_template: this model reads labels as they are; leave it out.", "hypothesis_template"
            )
        return label_prompts.classify(
            loaded, texts, candidates.labels, tokenization_kwargs, multi_label=candidates.multi_label
        )
    entailment = _entailment(loaded)
    pairs = [pair for text in texts for pair in candidates.pairs(text)]
    kind = PoolingTask("classify", functools.partial(_classified, candidates, entailment))
    call = task_call(loaded, kind, pairs, None, None, tokenization_kwargs, texts_alone(loaded))
    return replace(call, each=len(candidates.labels), truncation=replace(call.truncation, of_pair="only_first"))


def _text(prompt: Any) -> Prompt | PromptError:
    """A prompt that is a text, or why it is none."""
    try:
        read = parse(prompt)
    except PromptError as error:
        return error
    if read.text is None or read.text_pair is not None or read.multi_modal_data:
        return PromptError(f"candidate_labels are for texts; got {type(prompt).__name__}.")
    return read


def _entailment(loaded: LoadedModel) -> int:
    """The place of the label for entailment.

    Raises:
        ConfigError: there is none.
    """
    labels = loaded.heads[0].id2label
    found = [index for index, label in labels.items() if label.lower().startswith("entail")]
    if not found or len(labels) < 2:
        raise ConfigError(
            f"candidate_labels need a model of natural language inference, with a label 'entailment'; this one has "
            f"{', '.join(labels.values())}. Name it with hf_overrides={{'id2label': …}}, or use another model.",
            "candidate_labels",
        )
    return found[0]


def _classified(
    candidates: Candidates,
    entailment: int,
    loaded: LoadedModel,
    tokenized: Sequence[Tokenized],
    results: Sequence[Result],
    params: Sequence[PoolingParams],
    next_id: Callable[[], str],
) -> list[ClassificationRequestOutput | PromptError]:
    """Probabilities of each text's labels, of the results of all its pairs."""
    count, labels = len(candidates.labels), dict(enumerate(candidates.labels))
    outputs: list[ClassificationRequestOutput | PromptError] = []
    for start in range(0, len(results), count):
        found = results[start : start + count]
        failed = next((each for each in found if isinstance(each, PromptError)), None)
        rows = [each.row for each in found if not isinstance(each, PromptError)]
        if failed is not None or not all(bool(row.isfinite().all()) for row in rows):
            outputs.append(failed or not_finite())
            continue
        read = tokenized[start : start + count]
        logits = loaded.pooler.calibrated(torch.stack(rows))[:, loaded.heads[0].columns]
        probs = candidates.probabilities(logits, entailment).tolist()
        answer = ClassificationOutput(probs, logits[:, entailment].tolist(), labels, probs)
        ids = [token for each in read for token in each.sequence.token_ids]
        cut = any(each.truncated for each in read)
        outputs.append(ClassificationRequestOutput(next_id(), answer, ids, truncated=cut))
    return outputs
