"""`--head sequence`: labels of several tokens, each scored by the log-probability of its whole text."""

from __future__ import annotations

from vllm_cls.architecture import OWN_MODEL_TYPE, Head, HeadRequest, HeadResult, SequenceHead
from vllm_cls.errors import ConfigError, ModelError

from .label_tokens import checked_labels, label_texts
from .lm_head import is_embeddings, projection_of, tensors_of


def sequence_head(request: HeadRequest) -> HeadResult:
    """A head of label texts; the LM head goes with it, and no other tensor is made.

    A text's score is the sum over its tokens of the log softmax over the whole vocabulary. It is not divided by
    its length: what is compared are the probabilities of the texts as continuations of the prompt. The
    probabilities of several texts of a label add up.

    Raises:
        ModelError: the model has no LM head that is understood, or a text does not simply continue the prompt.
        ConfigError: there are fewer than two labels, or two texts are the same, or one begins another of its label.
    """
    if request.config.model_type == OWN_MODEL_TYPE:
        raise ModelError("--head sequence needs the language model itself, not a classifier made of it.")
    if request.pooling != "LAST":
        raise ConfigError(f"--head sequence reads the last token's state; this model pools {request.pooling}.")
    by_label = label_texts(request)
    labels = checked_labels(request, list(by_label))
    if len(labels) < 2:
        raise ConfigError("--head sequence needs two labels at least: their probabilities are compared.")
    texts = tuple(tuple(by_label[label].values()) for label in labels)
    _refuse_overlap(labels, texts)
    _refuse_long(request, labels, texts)
    projection = projection_of(request)
    weight, bias = tensors_of(request, projection)
    head = SequenceHead(
        texts,
        weight=None if (tied := is_embeddings(request, projection)) else weight,
        bias=bias,
        lm_scale=projection.scale,
        softcap=projection.softcap,
    )
    if tied and bias is not None:
        raise ModelError("the LM head shares its weight with the embeddings and has a bias of its own; use --head fit.")
    shown = "; ".join(f"`{label}`: {', '.join(map(repr, by_label[label]))}" for label in labels)
    description = (
        "Each label's logit is the log-probability of its text as what follows the prompt, summed over the text's tokens "
        f"({shown}); several texts of a label add up their probabilities."
    )
    return HeadResult(Head("sequence", sequences=head, description=description), labels, request.problem_type)


def _refuse_overlap(labels: list[str], texts: tuple[tuple[tuple[int, ...], ...], ...]) -> None:
    owners: dict[tuple[int, ...], str] = {}
    for label, each in zip(labels, texts, strict=True):
        for ids in each:
            if ids in owners:
                raise ConfigError(
                    f"--label-tokens: the labels {owners[ids]!r} and {label!r} have a text with the same tokens."
                )
            owners[ids] = label
    for ids, label in owners.items():
        if any(owners.get(ids[:count]) == label for count in range(1, len(ids))):
            raise ConfigError(
                f"--label-tokens: of the label {label!r}, one text begins another, and their probabilities would be counted "
                "twice; leave one out."
            )


def _refuse_long(request: HeadRequest, labels: list[str], texts: tuple[tuple[tuple[int, ...], ...], ...]) -> None:
    longest = request.architecture.max_positions(request.config)
    for label, each in zip(labels, texts, strict=True):
        count = max(map(len, each))
        if longest is not None and count >= longest:
            raise ConfigError(
                f"--label-tokens: a text of the label {label!r} takes {count} tokens, and the model no more than {longest}, "
                "prompt and text together; shorten it."
            )
