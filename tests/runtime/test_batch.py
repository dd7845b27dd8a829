"""Batches: what a model reads beside token ids, and where each sequence's queries, keys and earlier keys are in a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BartConfig, BertConfig, RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaEmbeddings

from vllm_cls.errors import PromptError
from vllm_cls.registry import registry
from vllm_cls.runtime.batch import SequenceForm, pooled_spans, spans_of
from vllm_cls.runtime.row import KeyValues


def form(config: Any) -> SequenceForm:
    return SequenceForm(registry().find(config.model_type, ()), config)


def test_a_text_is_numbered_as_the_model_itself_numbers_it() -> None:
    ids = [5, 1, 7, 8, 1, 1, 9]  # 1 is RoBERTa's pad token
    expected = RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor([ids]), 1)
    made = form(RobertaConfig()).sequence(ids, None)
    assert made.position_ids == tuple(expected[0].tolist()) and made.num_behind == 0
    assert form(BertConfig()).sequence(ids, None).position_ids == tuple(range(7))


def test_what_follows_the_token_that_is_pooled_is_behind_it() -> None:
    bart = form(BartConfig(eos_token_id=2, decoder_start_token_id=2))
    made = bart.sequence([5, 2, 6, 2, 7, 8], None)
    assert made.num_behind == 2 and made.decoder_ids == (2, 5, 2, 6, 2, 7)
    with pytest.raises(PromptError, match="end-of-text token 2"):
        bart.sequence([5, 6], None)


def past_of(num_tokens: int) -> KeyValues:
    states = torch.zeros(1, 2, num_tokens, 4)
    return KeyValues(num_tokens, [(states, states)])


def test_sequences_lie_one_behind_the_other() -> None:
    past, keep = past_of(5), KeyValues(2)
    first, second, third = spans_of([3, 1, 2], [None, past, None], [None, None, keep])
    assert (first.queries, first.keys, first.offset, first.num_keys) == (slice(0, 3), slice(0, 3), 0, 3)
    assert (second.queries, second.offset, second.num_queries, second.num_keys) == (slice(3, 4), 5, 1, 6)
    assert second.past is past and third.keep is keep and third.queries == slice(4, 6)


def test_the_pooled_token_is_the_only_query_and_knows_its_place_in_the_prompt() -> None:
    first, last = pooled_spans(spans_of([3, 2], [None, past_of(5)]), [0, 4])
    assert (first.queries, first.keys, first.offset, first.num_keys) == (slice(0, 1), slice(0, 3), 0, 3)
    assert (last.queries, last.keys, last.offset, last.num_keys) == (slice(1, 2), slice(3, 5), 6, 7)
