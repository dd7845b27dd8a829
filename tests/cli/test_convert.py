from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import Result
from safetensors.torch import load_file

import vllm_cls.conversion.converter
from tests.models import tiny
from vllm_cls.cli.options import LabelTokens, NameListParam, Template
from vllm_cls.conversion.converter import ConversionReport
from vllm_cls.parsing.option_lists import parse_label_tokens

Run = Callable[..., Result]

REPORT = ConversionReport(
    out="my model",
    model_class="BertForSequenceClassification",
    format="transformers",
    head="fit",
    pooling="CLS",
    labels=["benign", "injection"],
    report={"rows": 400, "held_out_rows": 80, "accuracy": 0.925, "majority": 0.575, "regularisation_C": 0.1},
    warnings=["13 rows were cut"],
    files=["a", "b"],
    num_bytes=90_900_000,
)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `vllm_cls.convert` was called with."""
    seen: dict[str, Any] = {}

    def convert(model: str, out: str, **options: Any) -> ConversionReport:
        seen.update(options, model=model, out=out)
        return seen.pop("report", REPORT)

    monkeypatch.setattr(vllm_cls.conversion.converter, "convert", convert)
    return seen


def test_it_says_what_it_did_and_what_to_do_next(run: Run, given: dict[str, Any]) -> None:
    result = run("convert", "base", "my model", "--head", "fit", "--train", "rows.jsonl")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:5] == [
        "wrote my model",
        "  class      BertForSequenceClassification, opens in plain transformers",
        "  head       fit, on CLS states",
        "  labels     benign, injection",
        "  measured   on 80 of 400 rows, held out: accuracy 0.9250 (commonest label always 0.5750), "
        "regularisation C 0.1000",
    ]
    assert lines[5].startswith("  size       90.9 MB in 2 files, ")
    assert lines[6] == "next: vcls classify 'my model' INPUT -o OUTPUT"
    assert result.stderr == "warning: 13 rows were cut\n"


def test_a_dry_run_wrote_nothing(run: Run, given: dict[str, Any]) -> None:
    given["report"] = ConversionReport("out", "Own", "vcls", "random", "MEAN", ["x"] * 30, dry_run=True)
    result = run("convert", "base", "out", "--dry-run")
    assert result.stdout.startswith("would write out\n  class      Own, opens after `import vllm_cls`\n")
    assert "x, … (30)\n" in result.stdout
    assert "next:" not in result.stdout
    assert "measured" not in result.stdout
    assert given["dry_run"] is True


def test_quiet_says_nothing(run: Run, given: dict[str, Any]) -> None:
    result = run("convert", "base", "out", "--quiet")
    assert (result.stdout, result.stderr, result.exit_code) == ("", "", 0)


def test_options_reach_the_conversion(run: Run, given: dict[str, Any]) -> None:
    arguments = (
        "--head tokens --labels a,b --problem-type multi_label_classification --label-tokens a=x,b=y --pooling MEAN "
        "--text-field t --text-pair-field p --label-field l --validation-split 0.1 --seed 3 --bias --link "
        "--logit-bias 0.5 --dtype float16 --max-shard-size 1GB --overwrite --hf-overrides {} --device cpu --plugin x "
        "--chat-template-prompt --head-name sentiment --image-field i --video-field v --allowed-media-domains m"
    )
    assert run("convert", "base", "out", *arguments.split(), "--prompt-template", r"{text}\nIs:").exit_code == 0
    expected = {
        "model": "base",
        "out": "out",
        "convert": "auto",
        "head": "tokens",
        "labels": ["a", "b"],
        "problem_type": "multi_label_classification",
        "label_tokens": "a=x,b=y",
        "pooling": "mean",
        "text_field": "t",
        "text_pair_field": "p",
        "label_field": "l",
        "validation_split": 0.1,
        "seed": 3,
        "bias": True,
        "logit_bias": 0.5,
        "link": True,
        "head_name": "sentiment",
        "dtype": "float16",
        "max_shard_size": "1GB",
        "overwrite": True,
        "hf_overrides": {},
        "device": "cpu",
        "plugin": "x",
        "chat_template_prompt": True,
        "image_field": "i",
        "video_field": "v",
        "allowed_media_domains": ("m",),
        "prompt_template": "{text}\nIs:",
    }
    assert {name: given[name] for name in expected} == expected
    assert "head_weights" not in given


OPTIONS = (
    "convert head labels num-labels problem-type label-tokens train text-field label-field validation-split seed bias "
    "head-weights prompt-template chat-template-prompt pooling logit-bias head-name lora link dtype max-shard-size dry-run "
    "overwrite device max-model-len max-num-batched-tokens hf-overrides trust-remote-code revision plugin allow-pickle quiet"
).split()
HEADS = ("existing", "tokens", "two-way", "sequence", "fit", "file", "random")


def test_help_shows_every_option_in_groups_and_an_example_of_every_head(run: Run) -> None:
    shown = run("convert", "--help").output
    titles = ["Labels:", "Head:", "Labelled rows:", "Prompt:", "Output:", "Options:"]
    assert [line for line in shown.splitlines() if line in titles] == titles
    assert [name for name in OPTIONS if f"--{name}" not in shown] == []
    examples = shown[shown.index("An example of every --head") :]
    for head in HEADS:
        assert f"  {head:<10} vcls convert " in examples
        assert head == "existing" or f"--head {head} " in examples


def test_every_option_is_tried_with_a_model() -> None:
    """The keywords of calls of `convert`, and the keys of mappings that are given to it, in all other tests."""
    tried: set[str] = set()
    for path in Path(__file__).parents[1].rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())) if path != Path(__file__) else ():
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("convert", "warned", "dict"):
                tried |= {each.arg for each in node.keywords if each.arg}
            elif isinstance(node, ast.Dict):
                tried |= {str(each.value) for each in node.keys if isinstance(each, ast.Constant)}
    of_the_command = {"quiet", "revision", "trust_remote_code", "max_num_batched_tokens"}  # and of every opened model
    assert {name.replace("-", "_") for name in OPTIONS} - tried <= of_the_command


@pytest.mark.parametrize(
    ("written", "meant"), [(r"a\nb\tc", "a\nb\tc"), (r"a\\n", r"a\n"), ("a\nb", "a\nb"), (r"\x{text}", r"\x{text}")]
)
def test_escapes_of_a_template(written: str, meant: str) -> None:
    assert Template().convert(written, None, None) == meant


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"line=\n,b= bad", {"line": ["\n"], "b": [" bad"]}),
        (r"tab=\t,n=\\n,comma=\,", {"tab": ["\t"], "n": [r"\n"], "comma": [","]}),
        (r'{"line": "\n"}', {"line": ["\n"]}),
    ],
)
def test_escapes_of_label_tokens(written: str, meant: dict[str, list[str]]) -> None:
    assert parse_label_tokens(LabelTokens().convert(written, None, None)) == meant


def test_names_with_commas() -> None:
    assert (
        NameListParam().convert(r"a\,b, c", None, None)
        == NameListParam().convert('["a,b", "c"]', None, None)
        == ["a,b", "c"]
    )


def test_a_label_that_is_a_new_line(run: Run, tmp_path: Path) -> None:
    """Its row is that of the new line's token in the output layer; what is two tokens is shown as it was understood."""
    source = tiny.causal_lm("qwen2", tmp_path / "lm", tie_word_embeddings=False)
    result = run(
        "convert", source, tmp_path / "out", "--head", "tokens", "--label-tokens", r"line=\n,b= bad", "--prompt-template", "{text}:"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    ids = tokenizer.convert_tokens_to_ids(["Ċ", "Ġbad"])
    assert tokenizer.encode("\n") == ids[:1]
    rows = load_file(source / "model.safetensors")["lm_head.weight"][ids]
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["score.weight"], rows)
    assert "`line`" in (tmp_path / "out" / "README.md").read_text()
    result = run("convert", source, tmp_path / "no", "--head", "tokens", "--label-tokens", r"a=\nqx,b=\\n")
    assert result.exit_code == 1 and r"'a': its text '\nqx' is" in result.stderr, result.stderr
