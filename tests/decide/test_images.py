"""Images in states: the answers are those of transformers' decision pipeline with the model's processor."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner
from transformers.pipelines import DecisionPipeline

from tests.decide.chat_models import assert_same, chat_model
from tests.media.samples import encoded
from tests.models import vision
from vllm_cls import LLM, ConfigError, PromptError, decide_file
from vllm_cls.cli.main import vcls

CHAT_TEMPLATE = """{%- for m in messages -%}{{- m.role }}: {% if m.content is string -%}
{{- m.content -}}
{%- else -%}
{%- for part in m.content -%}{{- "IMAGE" if part.type == "image" else part.text -}}{%- endfor -%}
{%- endif %}
{% endfor %}assistant:"""
# All questions in one prompt, each image where its name stands.
TEMPLATE = """{%- macro write(value) -%}
{%- if value is mapping and value.type == "image" -%}IMAGE
{%- elif value is mapping and value.type == "text" -%}{{- value.text -}}
{%- elif value is mapping -%}{%- for each in value.values() -%}{{- write(each) }} {% endfor -%}
{%- elif value is string or value is not iterable -%}{{- value -}}
{%- else -%}{%- for each in value -%}{{- write(each) -}}{%- endfor -%}
{%- endif -%}{%- endmacro -%}
{{- write(state) }}
{% for q in questions %}{{ q.name }}: {{ write(q.instructions) }} {{ write(q.descriptions) }}?<|mark|>
{% endfor %}"""
RED, BLUE = vision.picture(24, 16, 0), vision.picture(40, 32, 1)
QUESTIONS: dict[str, Any] = {
    "cat": {"type": "noul", "instructions": "Is it a cat <image>?"},
    "like": {"type": "choice", "instructions": "Like <img-2>?", "criteria": {"much": "as <img-1>", "little": None}},
}
STATE = {"photo": "<img-1>", "notes": ["seen <img-1> at 9", 3, None, "<|mark|> <|split|>"]}
REQUESTS: list[dict[str, Any]] = [
    {"state": STATE, "questions": QUESTIONS, "assets": {"<img-1>": RED, "<img-2>": BLUE}},
    {"state": "no picture", "questions": QUESTIONS},
    {"state": STATE, "questions": {"cat": QUESTIONS["cat"]}, "assets": {"<img-1>": BLUE}},
]  # fmt: skip


def seer(make: Callable[[Path], tuple[Path, Any]], image: str, folder: Path, template: str | None = None) -> Any:
    """A checkpoint, and transformers' pipeline with its processor."""
    folder, processor = make(folder)
    processor.chat_template = processor.tokenizer.chat_template = CHAT_TEMPLATE.replace("IMAGE", image)
    processor.save_pretrained(folder)
    (folder / "decision.json").write_text(json.dumps({"labels": {"noul": ["Y", "N"]}, "temperature": {"choice": 2.0}}))
    if template is not None:
        (folder / "decision_template.jinja").write_text(template.replace("IMAGE", image))
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return folder, DecisionPipeline(model=model, tokenizer=processor.tokenizer, processor=processor)


@pytest.mark.parametrize(
    ("make", "image", "template"),
    [
        (vision.llava, "<image>", None),
        (vision.llava, "<image>", TEMPLATE),
        (vision.gemma3, "<start_of_image>", None),
    ],
    ids=["llava", "llava, one prompt", "gemma3"],
)
def test_answers_are_those_of_transformers(make: Any, image: str, template: str | None, tmp_path: Path) -> None:
    folder, pipeline = seer(make, image, tmp_path / "model", template)
    expected = [pipeline(each) for each in REQUESTS]
    with LLM(str(folder)) as llm:
        found = llm.decide(REQUESTS)
        assert_same([dict(each) for each in found], expected)
        (again,) = llm.decide(json.dumps({**REQUESTS[1], "assets": {}}))
        assert_same(dict(again), expected[1])
        files = {"<img-1>": tmp_path / "red.png", "<img-2>": {"data_base64": base64.b64encode(encoded(BLUE)).decode()}}
        RED.save(files["<img-1>"])
        streamed = list(
            llm.decide_iter([{**REQUESTS[0], "assets": files}, {**REQUESTS[0], "assets": {"<img-1>": "no.png"}}])
        )
        assert_same(dict(streamed[0]), expected[0])
        assert str(streamed[1].error).startswith("assets, <img-1>: ")
    assert found[0] != found[2]


def test_questions_about_one_image_share_it(tmp_path: Path) -> None:
    folder = vision.qwen2_5_vl(tmp_path / "model")
    labels = {"noul": ["Y", "N"]}
    (folder / "decision.json").write_text(json.dumps({"labels": labels}))
    questions = {f"q{index}": {"type": "noul", "instructions": f"Is it {index}?"} for index in range(4)}
    with LLM(str(folder)) as llm:
        (found,) = llm.decide({"state": "Look: IMG. " + "x" * 40, "questions": questions, "assets": {"IMG": BLUE}})
        assert llm.counters.num_encoded == 1 and llm.counters.num_shared_tokens > 3 * 40
        asked = ". " + "x" * 40 + "\n\nIs it 2?\nY: true\nN: false\nAnswer Y or N only."
        content = [
            {"type": "text", "text": "Look: "},
            {"type": "image", "image": BLUE},
            {"type": "text", "text": asked},
        ]
        options = {"add_generation_prompt": True}
        ids = llm.token_ids({"messages": [{"role": "user", "content": content}], "chat_template_kwargs": options})
        assert found.num_prompt_tokens == 4 * len(ids)


def test_rows_of_files(tmp_path: Path) -> None:
    """A row's images are in its state under names that questions may use; a row that lacks them says so."""
    folder = vision.qwen2_5_vl(tmp_path / "model")
    (folder / "decision.json").write_text(json.dumps({"labels": {"noul": ["Y", "N"]}}))
    questions = {"like": {"type": "noul", "instructions": "Is <photo 1> like <photo 2>?"}}
    RED.save(tmp_path / "red.png")
    blue = {"base64": base64.b64encode(encoded(BLUE)).decode()}
    rows = [
        {"id": 1, "photo": ["red.png", blue]},
        {"id": 2, "photo": "red.png"},
        {"id": 3, "photo": "no.png"},
        {"id": 4},
    ]
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    command = ["decide", str(folder), str(file), "--questions", str(tmp_path / "questions.json"), "-o", str(out), "-q"]
    done = CliRunner().invoke(vcls, [*command, "--image-field", "photo"])
    assert done.exit_code == 3, done.output
    found = [json.loads(line) for line in out.read_text().splitlines()]
    names = [["<photo 1>", "<photo 2>"], ["<photo 1>"]]
    asked = [
        {"state": {"id": 1, "photo": names[0]}, "questions": questions, "assets": dict(zip(names[0], (RED, BLUE), strict=True))},
        {"state": {"id": 2, "photo": names[1]}, "questions": questions, "assets": {"<photo 1>": RED}},
    ]  # fmt: skip
    with LLM(str(folder)) as llm:
        expected = [each["like"]["noul"] for each in llm.decide(asked)]
    assert [each["like"] for each in found[:2]] == pytest.approx(expected, abs=1e-5)
    assert "no.png" in found[2]["error"] and "no field 'photo'" in found[3]["error"]


def test_a_model_of_texts_refuses_images(tmp_path: Path) -> None:
    with LLM(str(chat_model("llama", tmp_path / "model")), convert="decide") as llm:
        with pytest.raises(PromptError, match="Images need a model whose processor"):
            llm.decide(REQUESTS[0])
        file, questions = tmp_path / "rows.jsonl", {"cat": QUESTIONS["cat"]}
        file.write_text('{"photo": "x.png"}\n')
        with pytest.raises(ConfigError, match="image_field='photo': this model reads texts; leave it out"):
            decide_file(llm, file, tmp_path / "out.jsonl", questions=questions, image_field="photo")
