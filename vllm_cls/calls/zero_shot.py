"""Labels that a request names, asked of a model of natural language inference: does the text entail "This example is LABEL."?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..decisions.heads import LabelHead
from ..errors import ConfigError, PromptError
from ..inputs.prompts import as_list
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
        labels: each different.
        template: makes a hypothesis of a label, in the place of `{}`.
        multi_label: each label is true or not, whatever the others are; of a single label, always.

    Raises:
        ConfigError: there are no labels, one is there twice, or the template has no place for one.
    """

    labels: tuple[str, ...]
    template: str = HYPOTHESIS
    multi_label: bool = False

    def __post_init__(self) -> None:
        given: Any = self.labels
        if not given or not all(isinstance(each, str) and each for each in given) or len(set(given)) < len(given):
            raise ConfigError(
                f"candidate_labels={list(given)} must be texts, one or more, each once.", "candidate_labels"
            )
        try:
            whole = self.template.format(given[0])
        except (IndexError, KeyError, ValueError, AttributeError) as error:
            raise self._bad_template() from error
        if whole == self.template:
            raise self._bad_template()

    def _bad_template(self) -> ConfigError:
        return ConfigError(
            f"hypothesis_template={self.template!r} needs one {{}} for the label.", "hypothesis_template"
        )

    def pairs(self, text: str) -> list[tuple[str, str]]:
        """The text with each hypothesis."""
        return [(text, self.template.format(label)) for label in self.labels]

    def probabilities(self, logits: torch.Tensor, entailment: int) -> torch.Tensor:
        """As transformers' zero-shot pipeline: `(num_labels, num_answers)` → `(num_labels,)`.

        Args:
            entailment: its place among the answers.
        """
        if self.multi_label or len(self.labels) == 1:
            contradiction = -1 if entailment == 0 else 0
            return logits[:, [contradiction, entailment]].softmax(-1)[:, 1]
        return logits[:, entailment].softmax(-1)


def classify(
    loaded: LoadedModel, prompts: Any, candidates: Candidates, **refused: Any
) -> TaskCall[ClassificationRequestOutput]:
    """A call that classifies texts by labels of the request; what it takes and raises is said at `LLM.classify`.

    Args:
        refused: other arguments, which have to be None.
    """
    given = [name for name, value in refused.items() if value is not None]
    if given:
        raise ConfigError(f"{', '.join(given)}: not with candidate_labels; leave it out.", given[0])
    texts = as_list(prompts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            where = f"prompt {index}: " if len(texts) > 1 else ""
            raise PromptError(f"{where}candidate_labels are for texts; got {type(text).__name__}.")
    if isinstance(loaded.classifier.model, LabelHead):
        if candidates.template != HYPOTHESIS:
            raise ConfigError(
                "hypothesis_template: this model reads labels as they are; leave it out.", "hypothesis_template"
            )
        return label_prompts.classify(loaded, texts, candidates.labels, multi_label=candidates.multi_label)
    entailment = _entailment(loaded)
    pairs = [pair for text in texts for pair in candidates.pairs(text)]
    kind = PoolingTask("classify", functools.partial(_classified, candidates, entailment))
    call = task_call(loaded, kind, pairs, None, None, None, texts_alone(loaded))
    return call.of_several(len(candidates.labels))


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
        logits = loaded.pooler.calibrated(torch.stack(rows))[:, loaded.heads[0].columns]
        probs = candidates.probabilities(logits, entailment).tolist()
        answer = ClassificationOutput(probs, logits[:, entailment].tolist(), labels, probs)
        ids = [token for each in tokenized[start : start + count] for token in each.sequence.token_ids]
        outputs.append(ClassificationRequestOutput(next_id(), answer, ids))
    return outputs
