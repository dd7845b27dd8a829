"""Labels that a request names, asked of a model of natural language inference: does the text entail "This example is LABEL."?"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..decisions.heads import LabelHead
from ..errors import ConfigError, PromptError
from ..inputs.prompts import Prompt, as_list, parse
from ..outputs import ClassificationOutput, ClassificationRequestOutput
from . import label_prompts
from .candidates import HYPOTHESIS, Candidates
from .output_processor import rows_together
from .tasks import PoolingTask, TaskCall, task_call, texts_alone

if TYPE_CHECKING:
    from ..inputs.tokenization import Tokenized
    from ..model.loaded_model import LoadedModel
    from ..params import PoolingParams
    from ..runtime.engine import Result


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
    for part, rows in rows_together(loaded, results, count):
        if isinstance(rows, PromptError):
            outputs.append(rows)
            continue
        read, logits = tokenized[part], rows[:, loaded.heads[0].columns]
        probs = candidates.probabilities(logits, entailment).tolist()
        answer = ClassificationOutput(probs, logits[:, entailment].tolist(), labels, probs)
        ids = [token for each in read for token in each.sequence.token_ids]
        cut = any(each.truncated for each in read)
        outputs.append(ClassificationRequestOutput(next_id(), answer, ids, truncated=cut))
    return outputs
