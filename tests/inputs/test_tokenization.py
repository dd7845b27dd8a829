"""What the model reads of a prompt: cut on the side that was asked for, as long as fits, empty texts and all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from vllm_cls import LLM, PromptError, convert

from ..models import tiny

SEVEN = {"truncate_prompt_tokens": 7}
EACH_LETTER_IS_A_TOKEN = "ZQXJKVWZZQJXKQ" * 5
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.classifier("qwen2", tmp_path_factory.mktemp("qwen2"), num_labels=1)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.classifier("bert", tmp_path_factory.mktemp("bert"))


def logits_of(folder: Path, **inputs: Any) -> list[float]:
    """What transformers' own classifier gives."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits: list[float] = (
            model(**{name: torch.tensor([value]) for name, value in inputs.items()}).logits[0].tolist()
        )
    return logits


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("asked_for", [True, False], ids=["asked for", "the tokenizer's own"])
def test_of_token_ids_that_are_too_long_one_end_is_kept(encoder: Path, side: str, asked_for: bool) -> None:
    ids = list(range(10, 30))
    kept = ids[13:] if side == "left" else ids[:7]
    with LLM(str(encoder)) as llm:
        tokenizer: Any = llm._open.processor.tokenizer
        tokenizer.truncation_side = "right" if asked_for else side
        (output,) = llm.classify(
            [ids], tokenization_kwargs={**SEVEN, **({"truncation_side": side} if asked_for else {})}
        )
    assert output.prompt_token_ids == kept and output.truncated
    assert output.outputs.logits == pytest.approx(logits_of(encoder, input_ids=kept), abs=1e-4)


def test_without_a_tokenizer_the_end_is_cut(tmp_path: Path) -> None:
    tiny.save(
        transformers.AutoModelForSequenceClassification.from_config(tiny.config_of("bert")).eval(), None, tmp_path
    )
    with LLM(str(tmp_path)) as llm:
        assert llm.classify([list(range(10, 30))], tokenization_kwargs=SEVEN)[0].prompt_token_ids == list(range(10, 17))
        with pytest.raises(PromptError, match="no tokenizer"):
            llm.classify("good")


def test_every_id_of_a_prompt_is_one_of_the_vocabulary(encoder: Path) -> None:
    size = tiny.config_of("bert").vocab_size
    with LLM(str(encoder)) as llm:
        assert llm.classify([[0, size - 1]])[0].prompt_token_ids == [0, size - 1]
        for ids, wrong in (([0, size], size), ([size, 5], size), ([5, -1], -1), ([size, -1], -1)):
            with pytest.raises(PromptError, match=f"Token id {wrong} is out of vocabulary .0 to {size - 1}."):
                llm.classify([ids])


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_special_tokens_round_a_score_template(tmp_path: Path, add_special_tokens: bool) -> None:
    folder = tiny.classifier("roberta", tmp_path, num_labels=1)
    expected = transformers.AutoTokenizer.from_pretrained(folder)("a|b", add_special_tokens=add_special_tokens)
    with LLM(str(folder), score_template="{{ query }}|{{ document }}") as llm:
        kwargs = {"add_special_tokens": add_special_tokens}
        assert llm.score("a", "b", tokenization_kwargs=kwargs)[0].prompt_token_ids == expected["input_ids"]
        if add_special_tokens:
            assert llm.score("a", "b")[0].prompt_token_ids == expected["input_ids"]
    with LLM(str(folder), score_template="<s>{{ query }}|{{ document }}") as llm:  # which begins with one of its own
        assert llm.score("a", "b")[0].prompt_token_ids[:2] != [0, 0]


@pytest.mark.parametrize("prompt", [("good film", ""), {"prompt": "good film", "text_pair": ""}], ids=["tuple", "dict"])
def test_an_empty_document_is_a_document(encoder: Path, prompt: Any) -> None:
    # One by one, transformers' tokenizers take "" for no text; in batches, as Sentence Transformers asks, for a text.
    batch = transformers.AutoTokenizer.from_pretrained(encoder)(["good film"], [""])
    inputs = {name: values[0] for name, values in batch.items()}
    assert inputs["input_ids"][-2:] == [3, 3]  # [SEP] [SEP]
    with LLM(str(encoder)) as llm:
        alone, output = llm.classify(["good film", prompt])  # beside one that has none
    assert alone.prompt_token_ids == inputs["input_ids"][:-1] and not alone.truncated and not output.truncated
    assert output.prompt_token_ids == inputs["input_ids"]
    assert output.outputs.logits == pytest.approx(logits_of(encoder, **inputs), abs=1e-4)


def stored(model: Path, folder: Path, **options: Any) -> str:
    """The same model with a prompt template."""
    convert(str(model), folder, **options)
    return str(folder)


def test_an_empty_document_has_its_place_in_templates(decoder: Path, tmp_path: Path) -> None:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(decoder)
    expected = tokenizer("Q: good D:  A:")["input_ids"]
    with LLM(stored(decoder, tmp_path / "stored", prompt_template="Q: {text} D: {text_pair} A:")) as llm:
        assert llm.classify([("good", "")])[0].prompt_token_ids == expected
        assert llm.classify([{"prompt": "good", "fields": {"text_pair": ""}}])[0].prompt_token_ids == expected
    with LLM(str(decoder), score_template="Q: {{ query }} D: {{ document }} A:") as llm:
        assert llm.score("good", "")[0].prompt_token_ids == expected


CUT: dict[str, tuple[dict[str, Any], Callable[[str], Any], Callable[[str], str]]] = {
    "a text in its template": (
        {"prompt_template": "Review: {text}\nSentiment:"},
        lambda text: text,
        lambda text: f"Review: {text}\nSentiment:",
    ),
    "a field in its template": (
        {"prompt_template": "Review: {body}\nSentiment:"},
        lambda text: {"fields": {"body": text}},
        lambda text: f"Review: {text}\nSentiment:",
    ),
    "messages in the chat template": (
        {},
        lambda text: [{"role": "user", "content": text}],
        lambda text: f"<user>{text}",
    ),
    "a pair in its score template": (  # of which the document alone is cut, however long the query is
        {"score_template": "Q: {{ query }} D: {{ document }} A:"},
        lambda text: ("QZQZQZQZQZ", text),
        lambda text: f"Q: QZQZQZQZQZ D: {text} A:",
    ),
}


@pytest.mark.parametrize(("options", "prompt", "written"), CUT.values(), ids=CUT.keys())
def test_of_a_text_in_a_template_as_much_is_kept_as_fits(
    decoder: Path, tmp_path: Path, options: dict[str, Any], prompt: Any, written: Callable[[str], str]
) -> None:
    text = EACH_LETTER_IS_A_TOKEN
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(decoder)
    with LLM(stored(decoder, tmp_path / "stored", **options)) as llm:
        for side in ("left", "right"):
            cuts = [text[count:] if side == "left" else text[: len(text) - count] for count in range(len(text))]
            written_and_cut = [tokenizer(written(cut))["input_ids"] for cut in cuts]
            for limit in range(len(tokenizer(written(""))["input_ids"]) + 1, tiny.LENGTH):
                kwargs = {"truncate_prompt_tokens": limit, "truncation_side": side}
                (output,) = llm.classify([prompt(text)], tokenization_kwargs=kwargs)
                assert output.prompt_token_ids == next(ids for ids in written_and_cut if len(ids) <= limit)
                assert len(output.prompt_token_ids) == limit and output.truncated


LONG = "The film was good and the music was great. A terrible plot, bad acting and a boring end."


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pair", [False, True], ids=["text", "pair"])
def test_a_text_without_a_template_is_cut_as_transformers_cuts_it(encoder: Path, side: str, pair: bool) -> None:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(encoder, truncation_side=side)
    texts = ("yes no true false 0 1 2 3 4 5 6 7 8 9", LONG) if pair else (LONG,)
    expected = tokenizer(*texts, truncation=True, max_length=16)
    with LLM(str(encoder)) as llm:
        kwargs = {"truncate_prompt_tokens": 16, "truncation_side": side}
        (output,) = llm.classify([texts if pair else LONG], tokenization_kwargs=kwargs)
    assert output.prompt_token_ids == expected["input_ids"] and output.truncated
    assert output.outputs.logits == pytest.approx(logits_of(encoder, **expected), abs=1e-4)


def test_where_not_even_a_letter_fits_the_error_says_what_is_too_long(decoder: Path, tmp_path: Path) -> None:
    limit = {"truncate_prompt_tokens": 10}
    templated = stored(decoder, tmp_path / "stored", prompt_template="Q: QZQZQZQZQZ {text}")
    with LLM(templated) as llm, pytest.raises(PromptError, match="the template alone is longer than 10 tokens"):
        llm.classify(["ZZZZZZ"], tokenization_kwargs=limit)
    scored = LLM(str(decoder), score_template="Q: {{ query }} D: {{ document }} A:")
    with scored as llm, pytest.raises(PromptError, match="no room for the document within 10 tokens"):
        llm.score("QZQZQZQZQZ", "ZZZZZZ", tokenization_kwargs=limit)


def test_a_prompt_as_long_as_the_limit_is_whole(decoder: Path) -> None:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(decoder)
    text = EACH_LETTER_IS_A_TOKEN[:20]
    with LLM(str(decoder), max_model_len=20) as llm:
        for prompt in (text, tokenizer(text)["input_ids"], [{"prompt_token_ids": tokenizer(text)["input_ids"]}]):
            (output,) = llm.classify(prompt)
            assert len(output.prompt_token_ids) == 20 and not output.truncated
        for prompt in (text + "Z", tokenizer(text + "Z")["input_ids"]):
            with pytest.raises(PromptError, match="maximum context length is 20 tokens.*21 input"):
                llm.classify(prompt)
            (output,) = llm.classify(prompt, tokenization_kwargs={"truncate_prompt_tokens": -1})
            assert output.prompt_token_ids == tokenizer(text)["input_ids"] and output.truncated
