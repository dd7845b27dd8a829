"""Which tokens stand for labels: as transformers' tokenizer has them, or a reason why none does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing

from tests.models import tiny, tokenizers
from vllm_cls import LLM, ModelError, convert


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.causal_lm("qwen2", tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def of_word_pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model whose tokenizer has a token for what it does not know, and adds none to a text."""
    tokenizer = tokenizers.wordpiece(pairs=False)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    config = tiny.config_of("llama", vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    return tiny.save(tiny.randomize(model), tokenizer, tmp_path_factory.mktemp("pieces"))


def test_a_token_may_be_named_by_its_text(lm: Path) -> None:
    """ " good" is in no vocabulary by this name, and is one token."""
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(lm)
    assert " good" not in tokenizer.get_vocab()
    ids = [token for text in (" bad", " good") for token in tokenizer(text)["input_ids"]]
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(lm).eval()
        expected = model(torch.tensor([tokenizer("The film")["input_ids"]])).logits[0, -1, ids]
    overrides = {"classifier_from_token": [" bad", " good"], "method": "no_post_processing"}
    with LLM(str(lm), convert="classify", hf_overrides=overrides) as llm:
        (output,) = llm.classify("The film")
    assert output.outputs.logits == pytest.approx(expected.tolist(), abs=1e-4)


def test_the_token_of_what_is_unknown_stands_for_no_label(of_word_pieces: Path, tmp_path: Path) -> None:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(of_word_pieces)
    assert tokenizer("日")["input_ids"] == [tokenizer.unk_token_id]
    overrides = {"classifier_from_token": ["good", "日"], "method": "no_post_processing"}
    with pytest.raises(ModelError, match="'日' is 1 tokens .*UNK.*not one token of the vocabulary"):
        LLM(str(of_word_pieces), convert="classify", hf_overrides=overrides)


def test_a_text_that_adds_no_token_stands_for_no_label(of_word_pieces: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the label 'a': its text ' ' adds no token to the prompt"):
        convert(str(of_word_pieces), tmp_path / "out", head="tokens", label_tokens={"a": " ", "b": " good"})


def test_without_a_tokenizer_there_are_no_label_tokens(tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_config(tiny.config_of("qwen2"))
    tiny.save(tiny.randomize(model), None, tmp_path / "lm")
    with pytest.raises(ModelError, match="label tokens need the model's tokenizer"):
        convert(str(tmp_path / "lm"), tmp_path / "out", head="tokens", label_tokens="a= bad,b= good")
