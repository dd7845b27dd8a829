from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.jobs.fake import FakeLLM
from tests.jobs.files import jsonl, write
from vllm_cls import Client
from vllm_cls.cli.commands import classify as command

Run = Callable[..., Result]


def test_rows_of_standard_input_go_to_standard_output(run: Run) -> None:
    result = run("classify", "model", "-", stdin='{"text": "Gut! 你好 good"}\n{"text": "bad"}\n')
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(row["text"], row["label"]) for row in rows] == [("Gut! 你好 good", "positive"), ("bad", "negative")]
    assert re.fullmatch(r"2 rows in \d+\.\d s \([\d,.]+ rows/s\), 0 failed, 0 truncated\n", result.stderr)


def test_a_file_with_true_labels(run: Run, tmp_path: Path) -> None:
    data = [("good", "positive"), ("good " * 20, "negative"), ("bad", "negative"), ("bad", "other")]
    path = jsonl(tmp_path / "in.jsonl", [{"text": text, "label": label} for text, label in data])
    result = run("classify", "model", path, "-o", tmp_path / "out.csv", "--label-field", "label")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert re.fullmatch(rf"4 rows in .*, 0 failed, 1 truncated → {tmp_path}/out\.csv", lines[0])
    assert lines[1].startswith("rows 3, accuracy 0.6667 (commonest label always 0.6667), macro F1 0.6667, log loss ")
    assert lines[3:6] == [
        "label     precision  recall     F1  rows",
        "negative      1.000   0.500  0.667     2",
        "positive      0.500   1.000  0.667     1",
    ]
    assert lines[7:] == [
        "true \\ predicted  negative  positive",
        "negative                 1         1",
        "positive                 0         1",
    ]
    assert "note: the input's field 'label' is kept as 'input_label'" in result.stderr
    assert "note: 1 rows are not measured, because their true label is none of the model's: 'other'" in result.stderr
    assert (tmp_path / "out.csv").read_text().startswith("text,input_label,label,score,probs,truncated,error\n")


def test_failed_rows_are_3_and_the_first_are_told(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", '{"text": "good"}\n' + "broken\n" * 7)
    result = run("classify", "model", path, "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 3
    assert "8 rows" in result.stdout
    assert "7 failed" in result.stdout
    failed = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 5
    assert failed[0] == f"failed: {path}, line 2: not JSON: Expecting value at character 1 of the line"
    assert "… and 2 more" in result.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 8


def test_quiet_says_errors_only(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "in.txt", "good\nBOOM\n")
    result = run("classify", "model", path, "-o", tmp_path / "out.jsonl", "-q")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr == f"failed: {path}, line 2: the tokenizer refuses this text\n"


def test_options_reach_the_job(run: Run, options_of_job: Callable[[str], dict[str, object]]) -> None:
    seen = options_of_job("vllm_cls.jobs.classify.classify_file")
    arguments = (
        "a b -o o --format csv --text-field x --text-pair-field y --messages-field z --keep-fields k,l --threshold 0.3 "
        "--top-k 4 --scores --logits --no-activation --label-field g --long-text error --truncation-side left "
        '--no-template --image-field i --video-field v --allowed-media-domains m,n --limit-mm-per-prompt {"image":2}'
    )
    assert run("classify", "model", *arguments.split()).exit_code == 1
    assert callable(seen["on_progress"])
    expected = {
        "model": "model",
        "inputs": ("a", "b"),
        "output": "o",
        "format": "csv",
        "text_field": "x",
        "text_pair_field": "y",
        "messages_field": "z",
        "keep_fields": ["k", "l"],
        "threshold": 0.3,
        "top_k": 4,
        "scores": True,
        "logits": True,
        "use_activation": False,
        "label_field": "g",
        "long_text": "error",
        "truncation_side": "left",
        "use_template": False,
        "image_field": "i",
        "video_field": "v",
        "allowed_media_domains": ("m", "n"),
        "limit_mm_per_prompt": {"image": 2},
    }
    assert {name: seen[name] for name in expected} == expected


def test_all_and_none_are_no_names(run: Run, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"text": "good", "id": 1}])
    assert '"id": 1' in run("classify", "model", path, "-q").stdout
    for keep, names in (("none", set()), ("id", {"id"})):
        (line,) = run("classify", "model", path, "-q", "--keep-fields", keep).stdout.splitlines()
        assert set(json.loads(line)) == {"label", "score", "probs"} | names


def test_the_model_is_not_loaded_for_a_job_that_cannot_be(run: Run, tmp_path: Path) -> None:
    FakeLLM.made.clear()
    result = run("classify", "model", tmp_path / "*.jsonl", "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no file matches ")
    assert FakeLLM.made == []


def test_the_help_of_every_column(run: Run) -> None:
    assert '"label", is kept as "input_label"' in run("classify", "--help").output
    assert command.classify.name == "classify"


def test_a_server_in_place_of_a_model(
    run: Run, options_of_job: Callable[[str], dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = options_of_job("vllm_cls.jobs.classify.classify_file")
    made: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "vllm_cls.jobs.remote.RemoteModel", lambda client, name: made.append((client, name)) or "remote"
    )
    arguments = "--server http://host:1/ --server-model m --api-key k a.jsonl b.jsonl -o o.jsonl --scores"
    assert run("classify", *arguments.split()).exit_code == 1
    assert (seen["model"], seen["inputs"], seen["scores"]) == ("remote", ("a.jsonl", "b.jsonl"), True)
    assert not {"dtype", "device", "use_template", "convert", "server", "api_key"} & set(seen)
    ((client, name),) = made
    assert isinstance(client, Client) and client.base_url == "http://host:1" and name == "m"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("model", "MODEL comes first, or --server URL"),
        ("model in.jsonl --api-key k", "--api-key is for a server"),
        ("model in.jsonl --server-model m", "--server-model is for a server"),
        ("--server http://h in.jsonl --dtype float32 --no-template", "--dtype, --no-template: with --server"),
        ("--server http://h", "Missing argument"),
    ],
)
def test_a_model_or_a_server(run: Run, arguments: str, told: str) -> None:
    result = run("classify", *arguments.split())
    assert result.exit_code == 2 and told in result.stderr


def test_a_server_that_is_not_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_cls.cli.job.TRIES_OF_A_SERVER", 0)
    result = run("classify", "--server", "http://127.0.0.1:9", "-")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the server at http://127.0.0.1:9 gave no answer")
    assert run("classify", "--server", "127.0.0.1:9", "-").stderr.startswith("error: '127.0.0.1:9' is no address")


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [interrupt, lambda: os.kill(os.getpid(), signal.SIGTERM)], ids=["SIGINT", "SIGTERM"])
def test_a_job_that_ends_early_says_how_it_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Callable[[], None]
) -> None:
    monkeypatch.setattr("vllm_cls.jobs.resume.parts.PART_ROWS", 2)
    path = jsonl(
        tmp_path / "in.jsonl", [{"text": "good"}, {"text": ""}, {"text": ""}, {"text": "BOOM"}, {"text": "INT"}]
    )
    job = ("classify", "model", path, "-o", tmp_path / "out.jsonl")
    answer = FakeLLM._answer

    def interrupted(self: FakeLLM, prompt: dict[str, object], *rest: object) -> object:
        if prompt["prompt"] == "INT":
            stop()
        return answer(self, prompt, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(FakeLLM, "_answer", interrupted)
        result = run(*job)
    assert result.exit_code == 130 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    (said,) = [line for line in result.stderr.splitlines() if line]
    assert said.startswith("interrupted. ") and said.endswith(": the same command goes on from there.")
    result = run(*job, "--max-errors", 2)
    assert result.exit_code == 1 and "more than 2 rows failed" in result.stderr
    result = run(*job, "--top-k", 1)
    assert result.exit_code == 1 and "options top_k: null → 1" in result.stderr
    result = run(*job)
    assert result.exit_code == 3
    assert "2 failed: the field 'text' is empty\n1 failed: the tokenizer refuses this text\n" in result.stdout
    assert run(*job).exit_code == 1
    assert run(*job, "--overwrite", "--on-error", "fail").exit_code == 1
