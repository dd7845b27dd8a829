"""`LLM.decide` answers what transformers' decision pipeline does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.decide.chat_models import QUESTIONS, REQUESTS, assert_same, chat_model, pipeline, tokenizer
from tests.models import tiny
from vllm_cls import LLM, AsyncLLM, ConfigError, ModelError, PromptError

ONE_PROMPT = (
    "{{ '<|im_start|>' }}{% for question in questions %}{{ question.instructions }} {{ question.options|join(',') }}"
    "<|mark|>\n{% endfor %}State: {{ state if state is string else state|tojson }}"
)
STATE_FIRST = (
    "State: {{ state if state is string else state|tojson }}{% for question in questions %}\n{{ question.instructions }} "
    "{{ question.options|join(',') }}<|mark|>{% endfor %}"
)
STATE_LAST = "Q: {{ question.instructions }} A:<|mark|> {{ state if state is string else state|tojson }}"


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model("qwen2", tmp_path_factory.mktemp("chat") / "qwen2")


@pytest.fixture(scope="module")
def llm(qwen2: Path) -> Iterator[LLM]:
    with LLM(str(qwen2), convert="decide") as opened:
        yield opened


def _with(folder: Path, copy: Path, settings: dict[str, Any] | None = None, template: str | None = None) -> Path:
    """The model with settings beside it."""
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    if settings is not None:
        (copy / "decision.json").write_text(json.dumps(settings))
    if template is not None:
        (copy / "decision_template.jinja").write_text(template)
    return copy


@pytest.mark.parametrize("name", ["qwen2", "llama", "gemma2", "gpt2"])
def test_equal_to_transformers(name: str, tmp_path: Path) -> None:
    folder = chat_model(name, tmp_path / name)
    with LLM(str(folder), convert="decide") as llm:
        found = llm.decide(REQUESTS)
    assert_same(found, [pipeline(folder)(request) for request in REQUESTS])


def test_bfloat16(qwen2: Path) -> None:
    """The rows for the labels stay float32."""
    with LLM(str(qwen2), convert="decide", dtype="bfloat16") as llm:
        assert_same(llm.decide(REQUESTS[1])[0]["refund"], pipeline(qwen2)(REQUESTS[1])["refund"], 0.02)


def test_one_request_as_json(qwen2: Path, llm: LLM) -> None:
    (found,) = llm.decide(json.dumps(REQUESTS[1]))
    assert [found] == llm.decide([REQUESTS[1]])
    assert found.num_prompt_tokens == sum(
        inputs["input_ids"].shape[1] for inputs, _ in pipeline(qwen2).preprocess(REQUESTS[1])["prompts"]
    )


SETTINGS = {
    "labels": {"choice": list("ZYXWVUTSRQPONMLKJIHGFEDCBA"), "noul": ["1", "0"]},
    "temperature": {"choice": 2.5, "score": 0.5, "noul": 3},
    "noul_options": ["false", "true"],
}


@pytest.mark.parametrize("template", [None, ONE_PROMPT, STATE_LAST], ids=["generic", "one prompt", "state last"])
def test_settings_beside_the_model(qwen2: Path, tmp_path: Path, template: str | None) -> None:
    folder = _with(qwen2, tmp_path / "settings", SETTINGS, template)
    expected = [pipeline(folder)(request) for request in REQUESTS]
    with LLM(str(folder)) as llm:  # the file says what it is for
        assert_same(llm.decide(REQUESTS), expected)
        assert folder / "decision.json" in llm.checkpoint_files
    assert abs(expected[0]["tone"]["confidence"] - pipeline(qwen2)(REQUESTS[0])["tone"]["confidence"]) > 1e-4


@pytest.mark.parametrize("causal", [True, False])
def test_marks_before_the_end_where_nothing_is_shared(tmp_path: Path, causal: bool) -> None:
    """BLOOM runs padded, and an attention that is not causal sees what is behind a mark."""
    name, values = ("bloom", {}) if causal else ("llama", {"is_causal": False})
    folder = _with(chat_model(name, tmp_path / name, **values), tmp_path / "settings", None, ONE_PROMPT)
    expected = [pipeline(folder)(request) for request in REQUESTS]
    with LLM(str(folder), convert="decide") as llm:
        assert_same(llm.decide(REQUESTS), expected)


def test_an_adapter_that_the_settings_name(qwen2: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = _with(qwen2, tmp_path / "settings", {"adapter": "lora"})
    torch.manual_seed(0)
    model = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(qwen2),
        peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    model.save_pretrained(folder / "lora")
    expected = pipeline(folder)(REQUESTS[1])
    with LLM(str(folder)) as llm:
        assert_same(llm.decide(REQUESTS[1]), [expected])
    assert abs(expected["refund"]["noul"] - pipeline(qwen2)(REQUESTS[1])["refund"]["noul"]) > 1e-4


def test_control_tokens_in_a_state_stay_text(llm: LLM) -> None:
    reader = llm._open.decisions
    assert reader is not None
    plain, written = (
        reader.read({"state": state, "questions": {"q": QUESTIONS["tone"]}})[0].token_ids
        for state in ("", "<|im_end|><|endoftext|><|mark|><|im_start|>")
    )
    for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        number = llm.get_tokenizer().convert_tokens_to_ids(token)  # type: ignore[union-attr]
        assert list(written).count(number) == list(plain).count(number)
    assert len(written) > len(plain) + 20
    assert "<|mark|>" not in llm.get_tokenizer().get_vocab()  # type: ignore[union-attr]  # the model's own is left alone


def test_questions_share_their_state(qwen2: Path) -> None:
    questions = {f"q{index}": {"type": "noul", "instructions": f"Is it {index}?"} for index in range(8)}
    with LLM(str(qwen2), convert="decide") as llm:
        (found,) = llm.decide({"state": "word " * 60, "questions": questions})
        counters = llm.counters
        (again,) = llm.decide({"state": "word " * 60, "questions": questions})
        computed_again = llm.counters.num_tokens - counters.num_tokens
    state = 60 * len(tokenizer().encode("word "))
    assert counters.num_shared_tokens >= 7 * state
    assert counters.num_tokens <= found.num_prompt_tokens - 7 * state
    assert counters.num_pruned_tokens == counters.num_tokens - 8  # the last layer runs at the marks alone
    assert again == found
    assert found.num_cached_tokens >= 8 * state
    assert computed_again <= found.num_prompt_tokens - 8 * state  # the state is known by now


def test_several_marks_share_their_state(qwen2: Path, tmp_path: Path) -> None:
    """One prompt for all questions, the state first: the last layer runs at the marks alone."""
    folder = _with(qwen2, tmp_path / "settings", None, STATE_FIRST)
    state = "word " * 60
    requests = [
        {"state": state, "questions": {name: {**each, "instructions": text} for name, each in QUESTIONS.items()}}
        for text in ("One?", "Another?")
    ]
    with LLM(str(folder)) as llm:
        found = llm.decide(requests)
        counters = llm.counters
        assert_same(found, [pipeline(folder)(request) for request in requests])
        one_by_one = [llm.decide(request)[0] for request in requests]
        assert_same(one_by_one, found)
    shared = 60 * len(tokenizer().encode("word "))
    assert [each.num_cached_tokens >= shared for each in found] == [True, True]
    assert counters.num_tokens <= sum(each.num_prompt_tokens for each in found) - shared
    assert counters.num_pruned_tokens == counters.num_tokens - 2 * len(QUESTIONS)


def test_a_stream_goes_on_after_a_bad_request(llm: LLM) -> None:
    requests = [REQUESTS[0], {"state": "no questions"}, REQUESTS[1]] * 7
    found = list(llm.decide_iter(iter(requests)))
    expected = llm.decide([REQUESTS[0], REQUESTS[1]])
    assert_same(found[0::3], [expected[0]] * 7)
    assert_same(found[2::3], [expected[1]] * 7)
    assert all(each == {} and "A request is" in str(each.error) for each in found[1::3])


def test_async(llm: LLM) -> None:
    async def both() -> tuple[Any, Any]:
        async with AsyncLLM(llm) as shared:
            return await asyncio.gather(shared.decide(REQUESTS[0]), shared.decide(REQUESTS[1:]))

    one, others = asyncio.run(both())
    assert_same([one, *others], llm.decide(REQUESTS))


def test_a_model_that_was_not_opened_for_it(qwen2: Path, tmp_path: Path) -> None:
    with LLM(str(tiny.classifier("qwen2", tmp_path / "classifier"))) as llm, pytest.raises(ConfigError) as caught:
        llm.decide(REQUESTS[0])
    assert "convert='decide'" in str(caught.value)
    with pytest.raises(ConfigError, match="output layer, and .*classifier is a Qwen2ForSequenceClassification"):
        LLM(str(tmp_path / "classifier"), convert="decide")
    with pytest.raises(ConfigError, match="encoder is a BertModel; give a causal language model"):
        LLM(str(tiny.base_model("bert", tmp_path / "encoder")), convert="decide")
    with pytest.raises(ModelError, match="typed questions with convert='decide'"):
        LLM(str(qwen2))  # a plain language model is nothing by itself


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"state": "x"}, "A request is"),
        ({"state": "x", "questions": {}}, "at least one question"),
        ({"state": "x", "questions": {"a": {"type": "noul"}, "b": {"type": "what"}}}, "Question 'b': `type` must be one of"),
        ({"state": "x", "questions": {"a": {"type": "choice", "criteria": dict.fromkeys(map(str, range(27)))}}}, "26 options"),
        ({"state": "x", "questions": {"a": {"type": "noul"}}, "assets": {"i": "x.png"}}, "Images need a model"),
        ({"state": object(), "questions": {"a": {"type": "noul"}}}, "not JSON serializable"),
        ({"state": "long " * 1000, "questions": {"a": {"type": "noul"}}}, "maximum context length is 1024"),
        ("{not json", "has to be JSON"),
    ],
)  # fmt: skip
def test_bad_requests(llm: LLM, request_: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        llm.decide(request_)
    assert not str(caught.value).startswith("request")
    with pytest.raises(PromptError, match=r"^request 1: "):
        llm.decide([REQUESTS[0], request_])


def test_labels_that_are_no_tokens(qwen2: Path, tmp_path: Path) -> None:
    some = _with(qwen2, tmp_path / "some", {"labels": {"choice": ["A", "several tokens"]}})
    with LLM(str(some)) as llm:
        llm.decide({"state": "x", "questions": {"q": {"type": "choice", "criteria": {"one": None}}}})
        with pytest.raises(PromptError, match="not distinct single tokens"):
            llm.decide({"state": "x", "questions": {"q": {"type": "choice", "criteria": {"one": None, "two": None}}}})
    none = {kind: ["several tokens", "and more"] for kind in ("choice", "score", "noul")}
    with pytest.raises(ConfigError, match="no label of its decisions is one token"):
        LLM(str(_with(qwen2, tmp_path / "none", {"labels": none})))


@pytest.mark.parametrize(
    "settings", ["[]", "{", '{"labels": 3}', '{"temperature": {"noul": 0}}', '{"noul_options": []}']
)
def test_settings_that_cannot_be_read(qwen2: Path, tmp_path: Path, settings: str) -> None:
    folder = _with(qwen2, tmp_path / "bad", {})
    (folder / "decision.json").write_text(settings)
    with pytest.raises(ModelError, match=r"decision\.json or decision_template\.jinja cannot be read"):
        LLM(str(folder), convert="decide")
