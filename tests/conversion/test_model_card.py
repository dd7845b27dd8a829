"""Model cards of conversions of every form: what they claim is true, and the code in them runs, in a process of its own."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from vllm_cls import convert

from ..end_to_end.test_reward import checkpoint
from ..model.test_own_code import edit, with_code
from ..models import tiny

# The reward model names code of its own, as the published ones do.
pytestmark = pytest.mark.filterwarnings("ignore:.* brings code of its own, which is not run:UserWarning")

TOKENS = {"head": "tokens", "label_tokens": "bad= bad,good= good"}
PAIRS = "Query: {{ query }}\nDocument: {{ document }}\nRelevant:"
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"

# The name of the folder → the model, and the options of `convert`.
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "encoder": ("bert", {"head": "random", "labels": ["no", "yes"]}),
    "numbers of labels": ("bert", {"head": "random", "num_labels": 3}),
    "existing": ("classifier", {}),
    "cross-encoder": ("cross-encoder", {}),
    "template": ("lm", {**TOKENS, "prompt_template": 'Review: {text}\nIt\'s "very"'}),
    "chat": ("chat", {**TOKENS, "chat_template_prompt": True}),
    "template-in-chat": ("chat", {**TOKENS, "chat_template_prompt": True, "prompt_template": "Is it good? {text}"}),
    "pair-template": ("lm", {**TOKENS, "prompt_template": "{text} ### {text_pair} ###"}),
    "fields": ("lm", {**TOKENS, "prompt_template": "{title}: it is"}),
    "text-and-fields": ("lm", {**TOKENS, "prompt_template": "{title}: {text} is"}),
    "two-way": ("lm", {"head": "two-way", "label_tokens": "no= bad,yes= good", "score_template": PAIRS}),
    "concat": ("lm", {"head": "two-way", "label_tokens": "no= bad,yes= good", "score_template": "concat"}),
    "bare-two-way": ("lm", {"head": "two-way", "label_tokens": "no= bad,yes= good"}),
    "sequence": (
        "lm",
        {"head": "sequence", "label_tokens": "bad= very bad,good= good", "prompt_template": "{text} is"},
    ),
    "fitted": ("lm", {"head": "fit", "train": "rows.jsonl", "pooling": "mean"}),
    "calibrated": ("lm", {**TOKENS, "calibrate": "rows.jsonl"}),
    "ours": ("mamba", {"head": "random", "labels": ["a", "b", "c"]}),
    "tagger": ("bert", {"head": "random", "labels": ["O", "B-X"], "convert": "token_classify"}),
    "token-rows": ("lm", {**TOKENS, "convert": "token_classify"}),
    "reward": ("bert", {"head": "random", "convert": "reward"}),
    "reward-model": ("reward-model", {}),
    "steps": ("steps", {}),
    "merged": ("classifier", {"lora": "adapter"}),
    "one-head": ("lm", {**TOKENS, "head_name": "mood"}),
    "two-heads": ("one-head", {"head": "random", "labels": ["film", "code", "end"], "head_name": "topic"}),
    "own-code": ("own-code", {"head": "random", "num_labels": 2, "trust_remote_code": True}),
    "without-tokenizer": ("bare", {"head": "random", "num_labels": 2}),
}
# What is run of a card's two blocks of Python; ours gives an `output`, that of transformers gives `logits`.
RUN = """
import contextlib, json, sys
for name, blocks in json.loads(sys.stdin.read()).items():
    found = {}
    for block in blocks:
        values = {}
        with contextlib.redirect_stdout(sys.stderr):
            exec(block, values)
        if "logits" in values:
            found["logits"] = values["logits"].float().tolist()
        if "output" in values:
            outputs = values["output"].outputs
            found["ours"] = outputs.data.tolist() if hasattr(outputs, "data") else getattr(outputs, "logits", None)
            found["score"] = getattr(outputs, "score", None)
    print(json.dumps([name, found]))
print(json.dumps(["modules", "vllm_cls" in sys.modules]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model of `FORMS`, converted."""
    place = tmp_path_factory.mktemp("cards")
    models = place / "models"
    tiny.base_model("bert", models / "bert")
    tiny.classifier("bert", models / "classifier", id2label={0: "no", 1: "yes"}, num_labels=2)
    tiny.classifier("bert", models / "cross-encoder", num_labels=1)
    edit(models / "cross-encoder", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Sigmoid"})
    tiny.causal_lm("qwen2", models / "lm")
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tiny.causal_lm("llama", models / "chat"))
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(models / "chat")
    tiny.base_model("mamba", models / "mamba")
    checkpoint(models / "reward-model", "Qwen2ForRewardModel", 1)
    checkpoint(models / "steps", "Qwen2ForProcessRewardModel", 2)
    with_code(tiny.base_model("bert", models / "own-code"), "bert_of_its_own")
    model = transformers.AutoModel.from_pretrained(models / "bert")
    model.save_pretrained(models / "bare")
    adapted = peft.get_peft_model(
        transformers.AutoModelForSequenceClassification.from_pretrained(models / "classifier"),
        peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]),
    )
    adapted.save_pretrained(models / "adapter")
    rows = [{"text": f"{word} film {i}", "label": word} for i in range(12) for word in ("good", "bad")]
    (models / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, (source, options) in FORMS.items():
        paths = {key: str(models / options[key]) for key in ("train", "calibrate", "lora") if key in options}
        where = models / source if (models / source).exists() else place / source
        convert(str(where), place / name, **{**options, **paths})
    return place


def card(folder: Path, name: str) -> str:
    return (folder / name / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    found = re.finditer(r"^(`{3,})(\w*)\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)
    return [match[3] for match in found if match[2] == language]


def run(folder: Path, code: Mapping[str, list[str]]) -> dict[str, Any]:
    """What blocks of Python give, in a process of its own beside the folders."""
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=folder, input=json.dumps(code), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Any]:
    return run(folder, {name: blocks(card(folder, name), "python") for name in FORMS})


@pytest.mark.parametrize("name", FORMS)
def test_both_blocks_give_the_same(ran: dict[str, Any], name: str) -> None:
    found = ran[name]
    if name == "steps":  # which a text has to have
        assert "logits" not in found and found["ours"] == []
    elif FORMS[name][1].get("convert") == "token_classify":
        assert len(found["logits"][0][0]) == 2  # of each token, where ours gives spans
    elif found["score"] is not None:
        assert found["score"] == pytest.approx(torch.tensor(found["logits"][0][0]).sigmoid().item(), abs=1e-4)
    else:
        assert found["ours"] == pytest.approx(found["logits"][0], abs=1e-4)


def test_what_opens_in_plain_transformers_does_so(folder: Path, ran: dict[str, Any]) -> None:
    plain = {name: blocks(card(folder, name), "python")[1:] for name in FORMS if "With plain" in card(folder, name)}
    assert {"encoder", "template", "chat", "two-way", "tagger", "reward", "merged", "existing"} <= plain.keys()
    assert not {"sequence", "fitted", "ours", "two-heads", "steps"} & plain.keys()
    found = run(folder, plain)
    assert found.pop("modules") is False
    assert {name: each["logits"] for name, each in found.items()} == {name: ran[name]["logits"] for name in plain}


@pytest.mark.parametrize("name", FORMS)
def test_what_it_says(folder: Path, name: str) -> None:
    text, options = card(folder, name), FORMS[name][1]
    ours = "With transformers, after `import vllm_cls`" in text
    assert ("library_name: vllm-cls" in text) is (ours or name == "steps")
    assert (
        text.index("# " + name) and "None" not in text and "  " not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    )
    templated = {"prompt_template", "chat_template_prompt"} & options.keys() or name == "two-way"
    assert ("## Prompt" in text) is bool(templated)
    assert ("It does not apply the template by itself" in text) is ("## Prompt" in text)
    for command in blocks(text, "bash"):
        assert Path(shlex.split(command)[2]) == Path(name)
        assert shlex.split(command)[1] == ("score" if name in ("two-way", "concat", "cross-encoder") else "classify")
