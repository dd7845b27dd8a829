"""Scores label texts: log-probabilities of token sequences as continuations of a prompt."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import nn

from ..architecture import SequenceHead
from .heads import softcapped

_LOGITS_AT_ONCE = 1 << 24  # of the LM head, which has as many a state as the vocabulary


class SequenceScorer:
    """States at the beginnings of the labels' texts → one logit a label.

    Args:
        head: the labels' texts.
        projection: the LM head, or the embeddings whose weight it has.
    """

    def __init__(self, head: SequenceHead, projection: nn.Linear | nn.Embedding) -> None:
        self.head, self._projection = head, projection

    @functools.cached_property
    def beginnings(self) -> list[tuple[int, ...]]:
        """Token ids after which a token of some text is scored, shortest first; the empty one is the prompt itself."""
        return list(self._tokens)

    @functools.cached_property
    def _tokens(self) -> dict[tuple[int, ...], list[int]]:
        """For each prefix, the tokens that follow it in some text."""
        found: dict[tuple[int, ...], set[int]] = {}
        for ids in self._texts:
            for index, token in enumerate(ids):
                found.setdefault(ids[:index], set()).add(token)
        return {ids: sorted(found[ids]) for ids in sorted(found, key=lambda ids: (len(ids), ids))}

    @property
    def _texts(self) -> list[tuple[int, ...]]:
        return [ids for label in self.head.texts for ids in label]

    @functools.cached_property
    def _columns(self) -> torch.Tensor:
        """Where the scores of each text's tokens are among all: `(num_texts, longest)`; the last column is for none."""
        pairs = ((ids, token) for ids, tokens in self._tokens.items() for token in tokens)
        column_of = {pair: index for index, pair in enumerate(pairs)}
        longest = max(map(len, self._texts))
        columns = torch.full((len(self._texts), longest), len(column_of))
        for row, ids in enumerate(self._texts):
            found = [column_of[ids[:index], token] for index, token in enumerate(ids)]
            columns[row, : len(found)] = torch.tensor(found)
        return columns

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """States `(n, num_beginnings, hidden)` behind prompt and beginning → logits `(n, num_labels)`, float32."""
        scores = [self._next_tokens(states[:, index], tokens) for index, tokens in enumerate(self._tokens.values())]
        scores.append(scores[0].new_zeros(len(states), 1))
        texts = torch.cat(scores, dim=1)[:, self._columns.to(scores[0].device)].sum(dim=-1)
        parts = texts.split([len(label) for label in self.head.texts], dim=1)
        logits = torch.stack([each.logsumexp(dim=1) for each in parts], dim=1) * self.head.scale
        return logits + logits.new_tensor(self.head.offset) if self.head.offset else logits

    def _next_tokens(self, states: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """Log-probability `(n, num_tokens)` of each of these tokens as the next one."""
        rows = max(1, _LOGITS_AT_ONCE // self._projection.weight.shape[0])
        return torch.cat([self._log_probabilities(part, tokens) for part in states.split(rows)])

    def _log_probabilities(self, states: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        weight, bias = self._projection.weight, getattr(self._projection, "bias", None)
        projected = nn.functional.linear(states.to(weight.device, weight.dtype), weight, bias).float()
        logits = softcapped(projected * self.head.lm_scale, self.head.softcap)
        return logits[:, list(tokens)] - logits.logsumexp(dim=1, keepdim=True)


def continued(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, beginnings: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each prompt followed by each prefix, padded on the right: `(n * num_beginnings, length)` and its mask.

    Args:
        input_ids: `(n, length)`, padded where the mask is 0.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    prompts = [row[kept.bool()] for row, kept in zip(input_ids, mask, strict=True)]
    rows = [torch.cat([prompt, prompt.new_tensor(list(ids))]) for prompt in prompts for ids in beginnings]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    return ids, (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
