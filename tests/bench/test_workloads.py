from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from vllm_cls.bench import vocabulary
from vllm_cls.bench.workloads import NAMES, Encode, Workload, as_pairs, single_token_words, workload
from vllm_cls.errors import ConfigError

TOKENIZERS = {"wordpiece": vocabulary.wordpiece, "byte_level": vocabulary.byte_level}


def encode_with(tokenizer: PreTrainedTokenizerFast) -> Encode:
    return lambda texts: [tokenizer(*((each,) if isinstance(each, str) else each))["input_ids"] for each in texts]


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param](4000, 4096)


def make(tokenizer: PreTrainedTokenizerFast, name: str, **options: object) -> Workload:
    encode = encode_with(tokenizer)
    words = single_token_words(sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__), encode)
    return workload(name, words, encode, **{"longest": 4096, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_texts_each_time(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    assert make(tokenizer, name) == make(tokenizer, name)
    assert make(tokenizer, name).texts != make(tokenizer, name, seed=1).texts


def test_mixed_lengths(tokenizer: PreTrainedTokenizerFast) -> None:
    made = make(tokenizer, "mixed", count=600)
    assert len(made.texts) == len(made.lengths) == 600
    assert 36 <= statistics.median(made.lengths) <= 44
    assert max(made.lengths) <= 512 < 8 * max(made.lengths)


def test_all_of_one_length(tokenizer: PreTrainedTokenizerFast) -> None:
    assert set(make(tokenizer, "mixed", lengths=(64, 0.0), count=5).lengths) == {64}


def test_long_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    assert set(make(tokenizer, "long").lengths) == {2048}
    assert set(make(tokenizer, "long", longest=100).lengths) == {100}


def test_a_shared_prefix(tokenizer: PreTrainedTokenizerFast) -> None:
    made = make(tokenizer, "shared-prefix")
    ids = encode_with(tokenizer)(made.texts)
    special = len(tokenizer("")["input_ids"])
    assert {tuple(row[:256]) for row in ids} == {tuple(ids[0][:256])}
    own = [length - 256 - special for length in made.lengths]
    assert min(own) >= 20 and max(own) <= 60 and len(set(own)) > 10


def test_one_query_with_a_hundred_documents(tokenizer: PreTrainedTokenizerFast) -> None:
    made = make(tokenizer, "rerank")
    queries, documents = zip(*made.texts, strict=True)
    assert len(set(queries)) == 1 and len(set(documents)) == 100


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_few_positions_gets_shorter_texts(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    assert max(make(tokenizer, name, longest=48).lengths) <= 48


def test_pairs_hold_the_same_words() -> None:
    assert as_pairs(["a b c d e", ("x", "y"), "alone"]) == [("a b", "c d e"), ("x", "y"), ("alone", "alone")]


def test_a_tokenizer_without_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="INPUT"):
        single_token_words(["a", "b"], lambda texts: [[1] for _ in texts])


def test_an_unknown_workload_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'mixed'"):
        make(tokenizer, "mixd")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokenizers_are_of_the_size_asked_for_and_survive_a_folder(kind: str, tmp_path: Path) -> None:
    made = TOKENIZERS[kind](4000, 128)
    made.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again("abc bca cab")["input_ids"] == made("abc bca cab")["input_ids"]
    assert len(made) <= 4000
