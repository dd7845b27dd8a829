"""The accuracies that README states, measured again by the commands shown there (slow)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vllm_cls
from vllm_cls import convert
from vllm_cls.evaluation import ClassificationMetrics

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and rows from the packages, as the example scripts put them down."""
    folder = tmp_path_factory.mktemp("demo")
    for script in ("prepare_demo.py", "prepare_sentiment.py"):
        subprocess.run([sys.executable, str(ROOT / "examples" / script), "--out", str(folder)], check=True)
    return folder


def stated(data: str, head: str) -> float:
    """The accuracy in README's table of results."""
    rows = [line.split("|") for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    found = [row for row in rows if len(row) > 5 and data in row[2] and head in row[3]]
    assert len(found) == 1, f"README states {len(found)} results for {data} and {head}"
    return float(found[0][4])


def measured(model: Path, rows: Path, out: Path) -> vllm_cls.JobReport:
    report = vllm_cls.classify_file(str(model), rows, out, label_field="label", overwrite=True)
    assert report.failed == 0
    written = [json.loads(line) for line in out.read_text().splitlines()]
    right = sum(row["label"] == row["input_label"] for row in written)
    assert report.metrics is not None and report.metrics.accuracy == pytest.approx(right / len(written))
    return report


@pytest.mark.parametrize(("name", "at_least"), [("", 0.94), ("injection2_", 0.88)])
def test_minilm_with_a_fitted_head(demo: Path, name: str, at_least: float) -> None:
    report = convert(str(demo / "minilm"), demo / f"{name}model", head="fit", train=str(demo / f"{name}train.jsonl"))
    assert report.model_class == "BertForSequenceClassification" and report.format == "transformers"
    result = measured(demo / f"{name}model", demo / f"{name}test.jsonl", demo / f"{name}out.jsonl").metrics
    assert result is not None and result.accuracy is not None
    assert result.accuracy >= at_least
    assert result.accuracy == pytest.approx(stated(f"demo/{name}test.jsonl", "fit"), abs=0.02)


TEMPLATE = "Review: {text}\nSentiment:"
LABEL_TOKENS = "negative= negative,positive= positive"


@pytest.fixture(scope="module")
def zero_shot(demo: Path) -> ClassificationMetrics:
    """Of the test rows, with the head that README and docs/convert.md make of label tokens, as it is."""
    report = convert(
        str(demo / "smollm2.gguf"),
        demo / "zero-shot",
        head="tokens",
        labels=["negative", "positive"],
        label_tokens=LABEL_TOKENS,
        prompt_template=TEMPLATE,
    )
    assert report.model_class == "LlamaForSequenceClassification" and report.format == "transformers"
    metrics = measured(demo / "zero-shot", demo / "movies_test.jsonl", demo / "zero-shot.jsonl").metrics
    assert metrics is not None
    return metrics


def test_smollm2_with_label_tokens_and_a_fitted_head(demo: Path, zero_shot: ClassificationMetrics) -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"--label-tokens '{LABEL_TOKENS}'" in readme
    assert re.search(r"--prompt-template 'Review: \{text\}\\nSentiment:'", readme)
    convert(str(demo / "smollm2.gguf"), demo / "fitted", head="fit", train=str(demo / "movies_train.jsonl"))
    fitted = measured(demo / "fitted", demo / "movies_test.jsonl", demo / "fitted.jsonl").metrics
    assert fitted is not None
    assert zero_shot.accuracy == pytest.approx(stated("movies_test.jsonl", "tokens"), abs=0.02)
    assert fitted.accuracy == pytest.approx(stated("movies_test.jsonl", "fit"), abs=0.02)


def test_smollm2_calibrated_as_the_documentation_says(demo: Path, zero_shot: ClassificationMetrics) -> None:
    lines = (ROOT / "docs" / "convert.md").read_text().splitlines()
    table = {line.split("|")[1].strip(): line.split("|")[2:5] for line in lines if line.startswith("|")}
    documented = {name: told for name, told in table.items() if name == "as it is" or name.startswith("`--calibrate")}
    assert len(documented) == 3
    for name, told in documented.items():
        metrics = zero_shot if name == "as it is" else calibrated(demo, bias="--no-bias" not in name)
        found = [metrics.accuracy, metrics.log_loss, metrics.calibration_error]
        assert found == pytest.approx([float(each) for each in told], abs=0.02)


def calibrated(demo: Path, bias: bool) -> ClassificationMetrics:
    convert(
        str(demo / "smollm2.gguf"),
        demo / "calibrated",
        head="tokens",
        label_tokens=LABEL_TOKENS,
        prompt_template=TEMPLATE,
        calibrate=str(demo / "movies_train.jsonl"),
        bias=None if bias else False,
        overwrite=True,
    )
    metrics = measured(demo / "calibrated", demo / "movies_test.jsonl", demo / "calibrated.jsonl").metrics
    assert metrics is not None
    return metrics
