"""Heads made of the LM head's rows: a label's logit is that of its token as the next token after the prompt.

`tokens` is vLLM's `no_post_processing`, `two-way` its `from_2_way_softmax`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from vllm_cls.architecture import Head, HeadRequest, HeadResult, LinearHead
from vllm_cls.errors import ConfigError, ModelError
from vllm_cls.parsing.option_lists import parse_label_tokens

from .lm_head import LmRows, read_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLES = ("The text", "It ends here.", "Number 7", "word")


def token_head(request: HeadRequest) -> HeadResult:
    """One row a label; several tokens of one label are averaged (a verbalizer).

    Raises:
        ModelError: the model has no LM head whose rows are its tokens' logits, or a text is not one token.
    """
    by_label = _token_ids(request)
    labels = checked_labels(request, list(by_label))
    ids = [token for label in labels for token in by_label[label]]
    combine = torch.zeros(len(labels), len(ids))
    column = 0
    for row, label in enumerate(labels):
        width = len(by_label[label])
        combine[row, column : column + width] = 1 / width
        column += width
    return _result(request, "tokens", labels, read_rows(request, ids), combine, by_label)


def two_way_head(request: HeadRequest) -> HeadResult:
    """One label: score = logit(second) - logit(first), so that its sigmoid is the softmax of the two.

    Raises:
        ConfigError: there are not exactly two labels with one token each.
    """
    by_label = _token_ids(request)
    if len(by_label) != 2 or any(len(ids) != 1 for ids in by_label.values()):
        raise ConfigError(
            f"--head two-way needs exactly two texts, the negative one first (--label-tokens 'no,yes'); got {len(by_label)}."
        )
    ids = [ids[0] for ids in by_label.values()]
    labels = list(request.labels) or [list(by_label)[1]]
    if len(labels) != 1:
        raise ConfigError(f"--head two-way makes one label; --labels names {len(labels)}.")
    return _result(request, "two-way", labels, read_rows(request, ids), torch.tensor([[-1.0, 1.0]]), by_label)


def _result(
    request: HeadRequest,
    method: str,
    labels: Sequence[str],
    rows: LmRows,
    combine: torch.Tensor,
    by_label: Mapping[str, Sequence[int]],
) -> HeadResult:
    """Fold the combination into the rows where no soft cap is between them, else keep both."""
    if rows.softcap is None:
        bias = None if rows.bias is None else combine @ rows.bias
        linear = LinearHead(combine @ rows.weight, bias)
    elif torch.equal(combine, torch.eye(len(combine))):
        linear = LinearHead(rows.weight, rows.bias, rows.softcap)
    else:
        linear = LinearHead(rows.weight, rows.bias, rows.softcap, combine)
    tokens = "; ".join(f"`{label}`: {', '.join(map(str, ids))}" for label, ids in by_label.items())
    what = {
        "tokens": "Rows of the language model's head: each label's logit is the mean logit of its tokens as the next one",
        "two-way": "The difference of two rows of the language model's head, so that the sigmoid is their softmax",
    }[method]
    return HeadResult(
        Head(method, linear=linear, description=f"{what} (token ids of {tokens})."), list(labels), request.problem_type
    )


def checked_labels(request: HeadRequest, found: list[str]) -> list[str]:
    if not request.labels:
        return found
    if sorted(request.labels) != sorted(found):
        raise ConfigError(f"--labels names {', '.join(request.labels)}; --label-tokens names {', '.join(found)}.")
    return list(request.labels)


def _token_ids(request: HeadRequest) -> dict[str, list[int]]:
    """Label → token ids, each checked against how the tokenizer splits the text after a real prompt."""
    ids = request.options.get("token_ids")
    if ids is not None:
        _needs_last(request)
        assert request.tokenizer is not None
        return {str(request.tokenizer.convert_ids_to_tokens(int(each))): [int(each)] for each in ids}
    strings = request.options.get("token_strings")
    if strings is not None:
        _needs_last(request)
        assert request.tokenizer is not None
        return {each: [_vocabulary_id(request.tokenizer, each)] for each in strings}
    by_label = {
        label: [_one_token(request, label, text, ids) for text, ids in texts.items()]
        for label, texts in label_texts(request).items()
    }
    owners: dict[int, str] = {}
    for label, ids in by_label.items():
        for token in ids:
            if owners.setdefault(token, label) != label:
                shown = _tokenizer(request).convert_ids_to_tokens(token)
                raise ModelError(
                    f"the labels {owners[token]!r} and {label!r} share the token {shown!r}; give them others."
                )
    return by_label


def label_texts(request: HeadRequest) -> dict[str, dict[str, tuple[int, ...]]]:
    """Label → its texts → the token ids that each text adds after a real prompt, one or more.

    Raises:
        ConfigError: there are no label tokens, or the model does not pool its last token.
        ModelError: there is no tokenizer, or a text does not simply continue the prompt.
    """
    _needs_last(request)
    if not request.options.get("label_tokens"):
        raise ConfigError(f"--head {_heads(request)} needs --label-tokens, such as 'negative= bad,positive= good'.")
    parsed = parse_label_tokens(request.options["label_tokens"])
    before = {sample: request.tokenize(sample) for sample in _SAMPLES}
    return {
        label: {text: _continuation(request, label, text, before) for text in texts} for label, texts in parsed.items()
    }


def _heads(request: HeadRequest) -> str:
    return str(request.options.get("head") or "tokens, two-way or sequence")


def _needs_last(request: HeadRequest) -> None:
    if request.pooling not in ("LAST", "ALL"):
        raise ConfigError(
            f"label tokens need the last token's state; this model pools {request.pooling}. Use --head fit."
        )
    _tokenizer(request)


def _tokenizer(request: HeadRequest) -> PreTrainedTokenizerBase:
    if request.tokenizer is None:
        raise ModelError("label tokens need the model's tokenizer, which is not in its folder; pass --tokenizer.")
    return request.tokenizer


def _one_token(request: HeadRequest, label: str, text: str, ids: tuple[int, ...]) -> int:
    if len(ids) > 1:
        raise ModelError(
            f"the label {label!r}: its text {text!r} is {_shown(_tokenizer(request), ids)} at the end of the prompt, "
            "not one token. Give a text that is, such as one with a space before it, or use --head sequence."
        )
    return ids[0]


def _vocabulary_id(tokenizer: PreTrainedTokenizerBase, string: str) -> int:
    """The id of a vocabulary string (vLLM's `classifier_from_token`), or of a text that is one token."""
    found = tokenizer.get_vocab().get(string)
    if found is not None:
        return int(found)
    ids = tokenizer.encode(string, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ModelError(
            f"classifier_from_token: {string!r} is {_shown(tokenizer, ids)}, not one token of the vocabulary."
        )
    return int(ids[0])


def _continuation(request: HeadRequest, label: str, text: str, samples: Mapping[str, list[int]]) -> tuple[int, ...]:
    """The tokens that `text` adds after the prompt; the same ones whatever the prompt's own text ends with."""
    tokenizer = _tokenizer(request)
    seen: set[tuple[int, ...]] = set()
    for sample, before in samples.items():
        after = request.tokenize(sample, text)
        same = next(
            (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
        )
        if same < len(before):
            raise ModelError(_not_a_continuation(request, label, text, before, after, same))
        seen.add(tuple(after[len(before) :]))
    if len(seen) > 1:
        shown = ", ".join(sorted(repr(" ".join(tokenizer.convert_ids_to_tokens(list(ids)))) for ids in seen))
        raise ModelError(
            f"the label {label!r}: its text {text!r} becomes different tokens ({shown}) behind different prompts; end the "
            "prompt template in fixed text."
        )
    (ids,) = seen
    if not ids:
        raise ModelError(f"the label {label!r}: its text {text!r} adds no token to the prompt; give another.")
    return ids


def _not_a_continuation(
    request: HeadRequest, label: str, text: str, before: Sequence[int], after: Sequence[int], same: int
) -> str:
    tokenizer = request.tokenizer
    assert tokenizer is not None
    if before[-1] == after[-1] and before[-1] in tokenizer.all_special_ids:
        ending = tokenizer.convert_ids_to_tokens(before[-1])
        return (
            f"the tokenizer ends every prompt with {ending!r}, so the label {label!r} can never be the next token; use a "
            "tokenizer that does not, or --head fit."
        )
    return (
        f"the label {label!r}: its text {text!r} melts into the end of the prompt ({_shown(tokenizer, before[same:])} becomes "
        f"{_shown(tokenizer, after[same:])}); put a space before it, or end the prompt template otherwise."
    )


def _shown(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    tokens = tokenizer.convert_ids_to_tokens(list(ids))
    return f"{len(tokens)} tokens ({', '.join(map(repr, tokens))})"
