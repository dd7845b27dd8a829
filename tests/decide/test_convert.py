"""`convert --questions`: a folder that `vcls decide` and transformers' pipeline open, with nothing beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from click.testing import CliRunner, Result
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from tests.decide import test_jev
from tests.decide.chat_models import QUESTIONS, STATES, assert_same, chat_model, pipeline
from tests.models import tiny
from vllm_cls import LLM, ConfigError, convert, decide_file
from vllm_cls.cli.main import vcls

ASKED = {name: QUESTIONS[name] for name in ("refund", "tone", "urgency")}
TEMPLATE = "{{ state if state is string else state|tojson }} {{ question.instructions }}<|mark|>"


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model("llama", tmp_path_factory.mktemp("decide") / "chat")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps({"state": state}) + "\n" for state in STATES))
    return path


def run(*args: Any) -> Result:
    return CliRunner().invoke(vcls, [str(each) for each in args])


def answers(path: Path) -> list[dict[str, Any]]:
    """What a row holds, in the System One form as far as columns tell it."""
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_folder_that_needs_nothing_else(chat: Path, rows: Path, tmp_path: Path, template: str | None) -> None:
    asked, out, made = tmp_path / "questions.json", tmp_path / "decided.jsonl", tmp_path / "decider"
    asked.write_text(json.dumps(ASKED))
    options = [] if template is None else ["--decision-template", tmp_path / "t.jinja"]
    (tmp_path / "t.jinja").write_text(template or "")
    done = run("convert", chat, made, "--questions", asked, *options)
    assert done.exit_code == 0 and "questions  refund, tone, urgency" in done.output, done.output
    assert f"next: vcls decide {made} INPUT -o OUTPUT" in done.output
    assert (made / "decision_template.jinja").exists() == (template is not None)
    decided = run("decide", made, rows, "--state-field", "state", "-o", out)
    assert decided.exit_code == 0, decided.output
    theirs = transformers.pipeline("decision", str(made))  # as their users open it
    for row, state in zip(answers(out), STATES, strict=True):
        expected: Any = theirs({"state": state, "questions": json.loads((made / "questions.json").read_text())})
        assert_same(row["refund"], expected["refund"]["noul"])
        assert_same(
            [row["tone"], row["tone_probabilities"]], [expected["tone"][key] for key in ("choice", "probabilities")]
        )
        assert_same(row["urgency"], expected["urgency"]["score"])
    with LLM(str(made)) as llm:
        decide_file(llm, rows, tmp_path / "open.jsonl", state_field="state")
    assert (tmp_path / "open.jsonl").read_text() == out.read_text()


def test_weights_are_those_of_the_model(chat: Path, tmp_path: Path) -> None:
    report = convert(str(chat), tmp_path / "half", questions=ASKED, dtype="bfloat16", link=True)
    assert report.questions == [*ASKED] and "generation_config.json" in report.files
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert str(model.dtype) == "torch.bfloat16"
    again = convert(str(tmp_path / "half"), tmp_path / "again", questions={"spam": QUESTIONS["spam"]})
    assert json.loads((tmp_path / "again" / "questions.json").read_text()) == {"spam": QUESTIONS["spam"]}
    assert again.warnings == []


def test_a_model_that_transformers_takes_for_another(tmp_path: Path) -> None:
    base = chat_model("qwen2", tmp_path / "chat")
    report = convert(str(base), tmp_path / "decider", questions=ASKED)
    assert len(report.warnings) == 1 and "JevForDecision with a random head" in report.warnings[0]
    request = {"state": "", "questions": ASKED}
    with LLM(str(tmp_path / "decider")) as llm:
        assert_same(llm.decide(request)[0], pipeline(tmp_path / "decider")(request))


def test_a_decision_model(tmp_path: Path) -> None:
    base = test_jev.jev(tmp_path / "jev", "qwen2")
    report = convert(str(base), tmp_path / "decider", questions=ASKED)
    assert report.model_class == "JevForDecision" and report.warnings == []
    request: Any = {"state": "a message", "questions": ASKED}
    with LLM(str(tmp_path / "decider")) as llm:
        found = llm.decide(request)[0]
    assert_same(found, test_jev.pipeline(base)(request))
    assert_same(found, transformers.pipeline("decision", str(tmp_path / "decider"))(request))


def test_errors(chat: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options, message in (
        ({"questions": ASKED, "labels": ["a", "b"], "train": "x"}, "--labels, --train: not with --questions"),
        ({"questions": "nope.yaml"}, "there is no file of questions 'nope.yaml'"),
        ({"questions": {"a": {"type": "choice", "criteria": {}}}}, "needs `criteria`"),
        ({"questions": {"a": {"type": "noul"}}, "decision_template": "nope"}, "nope cannot be read: No such file"),
        ({"decision_template": "nope", "head": "random", "num_labels": 2}, "--decision-template is for --questions"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert(str(chat), out, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="read a language model's output layer"):
        convert(str(tiny.classifier("bert", tmp_path / "bert")), out, questions=ASKED)
    with pytest.raises(ConfigError, match="a BertModel; give a causal language model"):
        convert(str(tiny.base_model("bert", tmp_path / "base")), out, questions=ASKED)
    assert not out.exists()
    without = run("decide", chat, rows)
    assert without.exit_code == 1 and "there are no questions: give a file of them, --questions FILE" in without.output


@pytest.fixture(scope="module")
def labelled(chat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose answers are drawn from the model's own, at twice the temperature for `noul` and half of it for `score`."""
    states = [f"message {index} " + "word " * (index % 9) for index in range(120)]
    theirs, generator = pipeline(chat), np.random.default_rng(0)
    path = tmp_path_factory.mktemp("labelled") / "rows.jsonl"
    rows = []
    for state in states:
        expected: Any = theirs({"state": state, "questions": ASKED})
        likely = np.array([1 - expected["refund"]["noul"], expected["refund"]["noul"]]) ** 0.5
        level = np.array([*expected["urgency"]["probabilities"].values()]) ** 2
        drawn = [int(generator.choice(len(each), p=each / each.sum())) for each in (likely, level)]
        rows.append({"body": state, "refund": bool(drawn[0]), "level": drawn[1], "tone": None})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_calibrated_temperatures_are_those_that_transformers_reads(chat: Path, labelled: Path, tmp_path: Path) -> None:
    made, asked = tmp_path / "decider", tmp_path / "questions.json"
    asked.write_text(json.dumps(ASKED))
    columns = ["--state-field", "body", "--label-field", "refund=refund,urgency=level"]
    done = run("convert", chat, made, "--questions", asked, "--calibrate", labelled, *columns)
    assert done.exit_code == 0, done.output
    temperature = json.loads((made / "decision.json").read_text())["temperature"]
    rows = [json.loads(line) for line in labelled.read_text().splitlines()]
    theirs, answers, losses = pipeline(chat), dict[str, Any](), dict[str, float]()
    for name, column, kind in (("refund", "refund", "noul"), ("urgency", "level", "score")):
        found = [theirs({"state": row["body"], "questions": {name: ASKED[name]}})[name] for row in rows]  # type: ignore[call-overload,index]
        probs = np.array(
            [[1 - e["noul"], e["noul"]] if kind == "noul" else [*e["probabilities"].values()] for e in found]
        )
        gold, logits = [int(row[column]) for row in rows], np.log(probs)

        def loss(value: float, logits: Any = logits, gold: list[int] = gold) -> float:
            return -float(log_softmax(logits / value, axis=1)[range(len(gold)), gold].mean())

        answers[kind] = minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x
        losses[kind] = loss(1.0)
        assert (
            f"{kind}: log loss {losses[kind]:.4f} → " in done.output and "on 120 rows, cross-validated" in done.output
        )
    kept = [kind for kind in answers if kind in temperature]
    assert kept and "choice" not in temperature and "choice" not in done.output
    for kind in kept:
        assert temperature[kind] == pytest.approx(answers[kind], rel=1e-3)
    calibrated: Any = transformers.pipeline("decision", str(made))
    request = {"state": "a message", "questions": ASKED}
    with LLM(str(made)) as llm:
        assert_same(llm.decide(request)[0], calibrated(request))


def test_rows_to_calibrate_on(chat: Path, labelled: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(f"{line}\n" for line in labelled.read_text().splitlines()[:3]))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"body": "a", "tone": "angyr"}\n')
    for path, label_field, message in (
        (few, "refund=refund", "3 true answers to noul questions are too few; give 5"),
        (labelled, "nothing=level", "there is no question 'nothing'"),
        (labelled, "tone", "the form NAME=COLUMN"),
        (bad, "tone=tone", "'angyr', which the answers to 'tone'"),
        (labelled, "tone=mood", "no row has a true answer"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert(str(chat), tmp_path / "out", questions=ASKED, calibrate=str(path), label_field=label_field)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_chat_template(rows: Path, tmp_path: Path) -> None:
    folder = chat_model("llama", tmp_path / "chat")
    (folder / "chat_template.jinja").unlink()
    asked = tmp_path / "questions.json"
    asked.write_text(json.dumps(ASKED))
    for command in (
        ["decide", folder, rows, "--questions", asked],
        ["convert", folder, tmp_path / "out", "--questions", asked],
    ):
        failed = run(*command)
        assert failed.exit_code == 1 and "tokenizer.chat_template is not set" not in failed.output
        assert (
            "this model's tokenizer has no chat template" in failed.output
            and "decision_template.jinja" in failed.output
        )
    (folder / "decision_template.jinja").write_text(TEMPLATE)
    assert run("convert", folder, tmp_path / "out", "--questions", asked).exit_code == 0
    assert run("decide", tmp_path / "out", rows).exit_code == 0


def test_a_state_that_is_too_long(chat: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"text": "long " * 2000}) + "\n")
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps(ASKED))
    done = run("decide", chat, path, "--questions", questions)
    assert done.exit_code == 3 and "truncate_prompt_tokens" not in done.output
    assert "a state is not cut: shorten it, or take one field of the row as the state (--state-field)" in done.output
