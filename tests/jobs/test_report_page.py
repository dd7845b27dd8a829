"""The HTML report: what is measured, what is shown, and that no text of a row is more than text."""

from __future__ import annotations

import base64
import io
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sklearn.metrics import f1_score

from tests.jobs.fake import FakeLLM
from tests.jobs.files import jsonl
from tests.server.chromium import browser
from vllm_cls import ConfigError, JobError
from vllm_cls.jobs.classify import classify_file
from vllm_cls.jobs.report import html_data as report_data
from vllm_cls.jobs.report import plots as report_plots
from vllm_cls.jobs.report.html_data import MOST_MISTAKES, MOST_POINTS, STEPS, ReportData
from vllm_cls.jobs.resume import parts
from vllm_cls.jobs.rows import InputRow, PromptFields

EVIL = '<script>document.title = "taken"</script><img src=x onerror="document.title=1">'
LABELS = ("</td><script>alert(1)</script>", "$\\frac{x$")


def row_of(number: int, **fields: Any) -> InputRow:
    return InputRow({"text": f"row {number}", **fields}, number, source="in.jsonl")


def data_of(labels: tuple[str, ...] = ("no", "yes"), kind: str | None = None) -> ReportData:
    return ReportData(labels, kind, 0.5, PromptFields())


def source_of(tmp_path: Path, count: int = 40) -> Path:
    rows = [
        {"text": f"{'good' if i % 2 else 'bad'} {i} {EVIL if i % 7 == 0 else ''}", "label": i % 3 % 2}
        for i in range(count)
    ]
    return jsonl(tmp_path / "in.jsonl", rows)


def test_the_worst_mistakes_are_kept_whatever_the_order() -> None:
    sure = [0.5 + place / 1000 for place in range(1, 400)]
    wanted = sorted(sure, reverse=True)[:MOST_MISTAKES]
    random.Random(0).shuffle(sure)
    data = data_of()
    for number, share in enumerate(sure):
        data.add([share, 1 - share], 1, row_of(number))
        data.add([share, 1 - share], 0, row_of(number))  # right
    assert [each.size for each in data.mistakes] == wanted
    assert {(each.true, each.predicted) for each in data.mistakes} == {("yes", "no")}
    assert (sum(data.right), sum(data.wrong), sum(data.bin_count), sum(data.bin_right)) == (399, 399, 798, 399)


@pytest.mark.parametrize("multi", [False, True])
def test_the_best_threshold_is_that_of_scikit_learn(multi: bool) -> None:
    chance = random.Random(1)
    true = [chance.random() < 0.4 for _ in range(300)]
    scores = [min(0.999, max(0.0, chance.gauss(0.65 if each else 0.4, 0.15))) for each in true]
    data = data_of(("a", "b"), "multi_label_classification") if multi else data_of()
    for number in range(0, 300, 2 if multi else 1):
        if multi:
            gold = frozenset(place for place in (0, 1) if true[number + place])
            data.add(scores[number : number + 2], gold, row_of(number))
        else:
            data.add([1 - scores[number], scores[number]], int(true[number]), row_of(number))
    found = [f1_score(true, [score >= place / STEPS for score in scores]) for place in range(STEPS)]
    best = max(range(STEPS), key=found.__getitem__)
    assert f">best F1 {found[best]:.3f} at {best / STEPS:.3f}<" in report_plots.threshold_curves(data)


def test_a_regression_keeps_a_sample_and_the_largest_errors() -> None:
    data = data_of(("v",), "regression")
    for number in range(3 * MOST_POINTS):
        data.add([number + (5.0 if number == 7000 else 1.0)], float(number), row_of(number))
    assert len(data.points) == MOST_POINTS == len(set(data.points))
    assert data.mistakes[0].text == "row 7000" and data.mistakes[0].size == 5.0
    assert 0.3 < sum(true >= 1.5 * MOST_POINTS for true, _ in data.points) / MOST_POINTS < 0.7  # of the whole file
    assert report_plots.scatter(data).startswith("<svg")


def test_many_labels_are_drawn_as_the_commonest() -> None:
    names = [f"label {index}" for index in range(100)]
    counts = [[int(i == j) * (i + 1) for j in range(100)] for i in range(100)]
    drawn = report_plots.confusion(names, counts)
    assert "label 99" in drawn and "label 70" in drawn and "label 69<" not in drawn


def test_the_report_of_a_job_is_one_file_without_scripts(tmp_path: Path) -> None:
    out, page = tmp_path / "out.jsonl", tmp_path / "report.html"
    report = classify_file(FakeLLM(labels=LABELS), source_of(tmp_path), out, label_field="label", report=page)
    text = page.read_text(encoding="utf-8")
    assert report.metrics is not None and f"<b>{report.metrics.accuracy:.4f}</b>accuracy" in text
    for title in ("Confusion matrix", "Reliability", "Confidence", "Scores", "Thresholds", "Most confident mistakes"):
        assert f"<h2>{title}</h2>" in text
    assert "<script" not in text and "onerror=&quot;" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    assert not re.search(r"url\((?!#)", text)


def test_a_job_that_went_on_has_the_same_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 8)
    source, page = source_of(tmp_path), tmp_path / "report.html"
    (tmp_path / "clean").mkdir()
    classify_file(FakeLLM(), source, tmp_path / "clean" / "out.jsonl", label_field="label", report=page)
    clean = page.read_bytes()
    page.unlink()

    def stop(told: Any) -> None:
        if told.rows == 30:
            raise KeyboardInterrupt

    job = {"label_field": "label", "report": page}
    with pytest.raises(KeyboardInterrupt):
        classify_file(FakeLLM(), source, tmp_path / "out.jsonl", on_progress=stop, **job)
    assert not page.exists()
    llm = FakeLLM()
    classify_file(llm, source, tmp_path / "out.jsonl", **job)
    assert 0 < len(llm.seen) < 30
    assert page.read_bytes() == clean


def test_pictures_of_mistakes_are_small_and_inside(tmp_path: Path) -> None:
    image = Image.new("RGB", (900, 300), (200, 30, 30))
    image.save(tmp_path / "a.png")
    data = io.BytesIO()
    image.save(data, "PNG")
    held = ["a.png", data.getvalue(), base64.b64encode(data.getvalue()).decode(), {"bytes": data.getvalue()}]
    prompts = PromptFields(image="image")
    collected = ReportData(("no", "yes"), None, 0.5, prompts)
    for number, cell in enumerate([*held, held * 2, "https://example.com/a.png", "gone.png", b"no image"]):
        row = InputRow({"text": "t", "image": cell}, number, source=str(tmp_path / "in.jsonl"))
        collected.add([0.9 - number / 100, 0.1], 1, row)
    counts = [len(each.pictures) for each in collected.mistakes]
    assert counts == [1, 1, 1, 1, 3, 0, 0, 0]
    uri = collected.mistakes[0].pictures[0]
    small = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))
    assert small.size == (160, 53)


def test_a_long_text_is_shortened(tmp_path: Path) -> None:
    data = data_of()
    data.add([0.9, 0.1], 1, row_of(0, text="x" * 10_000_000))
    assert len(data.mistakes[0].text) == report_data.LONGEST_TEXT + 1


def test_what_cannot_be_is_refused_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out, page = source_of(tmp_path), tmp_path / "out.jsonl", tmp_path / "report.html"
    with pytest.raises(ConfigError, match="--label-field"):
        classify_file("no-model", source, out, report=page)
    with pytest.raises(JobError, match="a folder that exists"):
        classify_file("no-model", source, out, label_field="label", report=tmp_path / "no" / "report.html")
    for name in (out, source):
        with pytest.raises(JobError, match="is also the output or an input"):
            classify_file("no-model", source, out, label_field="label", report=name, overwrite=True)
    page.write_text("mine")
    with pytest.raises(JobError, match="is there already"):
        classify_file("no-model", source, out, label_field="label", report=page)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"vllm-cls\[report\]"):
        classify_file("no-model", source, out, label_field="label", report=page, overwrite=True)


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
def test_a_browser_shows_it_and_runs_nothing(tmp_path: Path, kind: str) -> None:
    labels = ("v",) if kind == "regression" else LABELS
    rows = [json.loads(line) for line in source_of(tmp_path).read_text().splitlines()]
    if kind == "multi_label_classification":
        rows = [{**row, "label": [row["label"], 1 - row["label"]]} for row in rows]
    if kind == "regression":
        rows = [{**row, "label": row["label"] + 0.5} for row in rows]
    page_file = tmp_path / "report.html"
    llm = FakeLLM(labels=labels, problem_type=kind)
    classify_file(
        llm, jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "o.jsonl", label_field="label", report=page_file
    )
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1200, "height": 900})
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("dialog", lambda dialog: (said.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        assert said == []
        assert asked == [page_file.as_uri()]
        assert page.title() == "Report of o.jsonl"
        boxes = [each.bounding_box() for each in page.query_selector_all("svg")]
        assert len(boxes) == {"regression": 1, "multi_label_classification": 4}.get(kind, 5)
        assert all(box["width"] > 250 and box["height"] > 150 for box in boxes)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert "<script>" in page.inner_text("table >> nth=-1")  # as text
