"""What a written checkpoint is put through: each check is a process of its own, which has seen nothing of the conversion."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .environment import Environment
from .formats import PAIR, TEXT, Format, Numbers

_LISTENING = "http://"
_ANSWERS = {
    "classify": "llm.classify([text])[0].outputs.probs",
    "reward": "llm.reward([text])[0].outputs.data.tolist()",
    "token_classify": "[s.score for s in llm.token_classify([text], aggregation_strategy='none')[0].outputs.spans]",
}
_AUTO = {"token_classify": "AutoModelForTokenClassification"}
# From the logits of a transformers model to what is expected.
_OF_LOGITS = {
    "classify": "(logits[0].softmax(-1) if logits.shape[1] > 1 else logits[0].sigmoid()).tolist()",
    "reward": "logits[0].tolist()",
    "token_classify": "logits[0].softmax(-1).max(-1).values.tolist()",
}


@dataclass(frozen=True)
class Written:
    """A converted checkpoint.

    Args:
        folder: where all that belongs to it is; the checkpoint itself is `out`.
        expected: what plain transformers gives for `TEXT`.
        score: what it gives for `PAIR`, or None.
    """

    format: Format
    folder: Path
    expected: Numbers
    score: float | None
    environment: Environment

    @property
    def out(self) -> Path:
        return self.folder / "out"


def close(found: Any, expected: Any) -> bool:
    return bool(found == pytest.approx(expected, abs=1e-4))


def inspect(written: Written) -> None:
    told = json.loads(written.environment.run("vcls", "inspect", written.out, "--json"))
    config = json.loads((written.out / "config.json").read_text())
    assert (config["model_type"] == "vcls") == written.format.own
    assert told["task"] == ("classify" if written.format.task == "reward" else written.format.task)


def classify(written: Written) -> None:
    assert close(_of_row(written, _classified(written, written.out)), written.expected)


def score(written: Written) -> None:
    if written.score is None:
        pytest.skip("it has more than one label, or answers for no pairs")
    row = json.dumps({"query": PAIR[0], "document": PAIR[1]})
    (line,) = written.environment.run("vcls", "score", written.out, "-", "-q", stdin=row).splitlines()
    assert close(json.loads(line)["score"], written.score)


def serve(written: Written) -> None:
    with _server(written) as address:
        if written.format.task == "token_classify":
            body, path = {"input": TEXT, "task": "token_classify"}, "/pooling"
        elif written.score is not None:
            body, path = {"text_1": PAIR[0], "text_2": PAIR[1]}, "/score"
        else:
            body, path = {"input": TEXT}, "/classify"
        request = urllib.request.Request(
            address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        (answer,) = json.loads(urllib.request.urlopen(request, timeout=60).read())["data"]
    if path == "/pooling":
        assert [max(each) for each in answer["data"]] == pytest.approx(written.expected, abs=1e-4)
    elif path == "/score":
        assert close(answer["score"], written.score)
    else:
        assert close(answer["probs"], written.expected)


def bench(written: Written) -> None:
    rows = written.folder / "two.jsonl"
    rows.write_text("\n".join(json.dumps({"text": text}) for text in (TEXT, "a boring end")))
    told = json.loads(written.environment.run("vcls", "bench", written.out, rows, "--rounds", "1", "--json"))
    assert told["workload"]["texts"] == told["ours"]["counters"]["num_prompts"] == 2


def convert_again(written: Written) -> None:
    """Converted once more, in a process of its own, it gives the same in yet another one."""
    again = written.folder / "again"
    written.environment.run("vcls", "convert", written.out, again, *written.format.again)
    assert close(_of_row(written, _classified(written, again)), written.expected)


def llm(written: Written) -> None:
    code = f"import vllm_cls\ntext = sys.argv[2]\nwith vllm_cls.LLM(sys.argv[1]) as llm: print(json.dumps({_answer(written)}))"
    assert close(written.environment.python(code, written.out, TEXT), written.expected)


def async_llm(written: Written) -> None:
    answer = _answer(written).replace("llm.", "(await llm.", 1).replace(")[0]", "))[0]", 1)
    code = f"""
import asyncio, vllm_cls
async def main(text):
    llm = vllm_cls.AsyncLLM(sys.argv[1])
    print(json.dumps({answer}))
    llm.close()
asyncio.run(main(sys.argv[2]))"""
    assert close(written.environment.python(code, written.out, TEXT), written.expected)


def load_classifier(written: Written) -> None:
    assert close(_of_transformers(written, "vllm_cls.load_classifier(sys.argv[1])"), written.expected)


def auto_classes(written: Written) -> None:
    """`AutoConfig`, `AutoTokenizer` and the Auto class of the model, after `import vllm_cls` and nothing else of it."""
    auto = _AUTO.get(written.format.task, "AutoModelForSequenceClassification")
    assert close(_of_transformers(written, f"transformers.{auto}.from_pretrained(sys.argv[1])"), written.expected)


CHECKS: dict[str, Callable[[Written], None]] = {
    each.__name__: each
    for each in (inspect, classify, score, serve, bench, convert_again, llm, async_llm, load_classifier, auto_classes)
}


def _classified(written: Written, model: Path) -> dict[str, Any]:
    command = ["vcls", "classify", str(model), "-", "-q"]
    if written.format.task == "token_classify":
        command += ["--aggregation", "none"]
    (line,) = written.environment.run(*command, stdin=json.dumps({"text": TEXT})).splitlines()
    row: dict[str, Any] = json.loads(line)
    return row


def _of_row(written: Written, row: dict[str, Any]) -> Any:
    if written.format.task == "token_classify":
        return [span["score"] for span in row["spans"]]
    return [row["value"]] if written.format.task == "reward" else row["probs"]


def _answer(written: Written) -> str:
    return _ANSWERS[written.format.task]


def _of_transformers(written: Written, model: str) -> Any:
    """What a transformers model gives for the text, alone in its batch."""
    code = f"""
import vllm_cls, transformers, torch
config = transformers.AutoConfig.from_pretrained(sys.argv[1])
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
model = {model}.eval()
assert type(model.config) is type(config)
with torch.no_grad():
    logits = model(**tokenizer(sys.argv[2], return_tensors="pt")).logits
print(json.dumps({_OF_LOGITS[written.format.task]}))"""
    return written.environment.python(code, written.out, TEXT)


@contextmanager
def _server(written: Written) -> Any:
    """The address of `vcls serve`, which ends with 0 after SIGTERM."""
    command = [str(written.environment.bin / "vcls"), "serve", str(written.out), "--port", "0"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=written.environment.cwd,
        env=written.environment.variables() | {"PYTHONFAULTHANDLER": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    try:
        said = ""
        for line in process.stderr:
            said += line
            if _LISTENING in line:
                break
        else:
            raise AssertionError(said)
        yield _LISTENING + line.split(_LISTENING)[1].split()[0].rstrip("/,.;)")
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # it says where each of its threads stands
            raise AssertionError(process.communicate()[1]) from None
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
