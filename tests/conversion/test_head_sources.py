"""Head sources say what they are and which options they take; a third party's has what the built-in ones have."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import vllm_cls
from vllm_cls import (
    LLM,
    ConfigError,
    Head,
    HeadOption,
    HeadRequest,
    HeadResult,
    HeadSource,
    LinearHead,
    PluginError,
    convert,
    hookimpl,
)
from vllm_cls.architecture import Target
from vllm_cls.cli import main
from vllm_cls.cli.heads import _option
from vllm_cls.head_source import EXISTING
from vllm_cls.registry import HEADS_GROUP, discover, registry

from ..models import tiny

Install = Callable[..., None]


@pytest.fixture
def install() -> Iterator[Install]:
    """Register hooks of a third party, as if its distribution were installed."""
    names: list[str] = []

    def install(name: str = "theirs", **hooks: Callable[..., Any]) -> None:
        registry()._manager.register(SimpleNamespace(**{key: hookimpl(each) for key, each in hooks.items()}), name)
        names.append(name)

    yield install
    for name in names:
        registry()._manager.unregister(name=name)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.causal_lm("qwen2", tmp_path_factory.mktemp("lm"))


def ones(request: HeadRequest) -> HeadResult:
    labels = list(request.labels) or ["one"]
    weight = torch.ones(len(labels), request.config.hidden_size)
    return HeadResult(Head("ones", LinearHead(weight)), labels, request.problem_type)


def rows(folder: Path) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": text[0]}) + "\n" for text in ("a good", "b bad") * 3))
    return str(path)


def test_what_a_source_takes_it_is_given(install: Install, lm: Path, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def make(request: HeadRequest) -> HeadResult:
        seen.update(request.options)
        return ones(request)

    source = HeadSource(
        make,
        "ones",
        takes=("train", "label_tokens", "bias", "head_weights"),
        options=(HeadOption("times", "how", int, 2),),
    )
    install(vcls_head_sources=lambda: {"ones": source})
    convert(
        str(lm), tmp_path / "out", head="ones", train=rows(tmp_path), label_tokens="a=b", bias=True, head_weights="x",
        labels=["a", "b"], seed=7, times=3,
    )  # fmt: skip
    assert seen["targets"] == [0, 1] * 3 and seen["train_name"] == "rows.jsonl"
    assert [each["prompt"] for each in seen["prompts"]] == ["a good", "b bad"] * 3
    expected = {"label_tokens": {"a": ["b"]}, "bias": True, "head_weights": "x", "seed": 7, "times": 3}
    assert {name: seen[name] for name in expected} == expected
    convert(str(lm), tmp_path / "again", head="ones", labels=["a", "b"])
    assert (seen["label_tokens"], seen["bias"], seen["head_weights"], seen["times"]) == (None, False, None, 2)


def test_a_head_for_tokens_alone(install: Install, lm: Path, tmp_path: Path) -> None:
    source = HeadSource(ones, "ones", tasks=("token_classify",), card="Every weight is 1.")
    install(vcls_head_sources=lambda: {"ones": source})
    with pytest.raises(
        ConfigError, match=r"--head ones labels tokens.*\(--head fit\|tokens\|two-way\|sequence\|file\|random\)"
    ):
        convert(str(lm), tmp_path / "out", head="ones", labels=["a", "b"])
    convert(str(lm), tmp_path / "out", head="ones", labels=["a", "b"], convert="token_classify")
    assert "Every weight is 1." in (tmp_path / "out" / "README.md").read_text()
    with LLM(str(tmp_path / "out")) as llm:
        assert torch.allclose(*llm.encode("good", pooling_task="token_classify")[0].outputs.data.T)
    for head in ("fit", "sequence"):
        with pytest.raises(
            ConfigError, match=rf"--head {head} gives a label a text.*tokens\|two-way\|file\|random\|ones"
        ):
            convert(
                str(lm), tmp_path / "no", head=head, train=rows(tmp_path), convert="token_classify", labels=["a", "b"]
            )


def test_a_head_of_the_language_models_words(install: Install, lm: Path, tmp_path: Path) -> None:
    """It is warned of bare prompts as `tokens` is, and has one label, so that pairs need a score template."""
    install(vcls_head_sources=lambda: {"ones": HeadSource(ones, "ones", reads_lm_head=True, one_label=True)})
    report = convert(str(lm), tmp_path / "out", head="ones")
    assert len(report.warnings) == 1 and "no prompt template" in report.warnings[0]
    assert "pairs are refused until --score-template" in report.warnings[0]
    assert "Another wording of the prompt" in (tmp_path / "out" / "README.md").read_text()
    assert convert(str(lm), tmp_path / "asked", head="ones", prompt_template="{text}?").warnings == []


@pytest.mark.parametrize(
    ("source", "error", "told"),
    [
        (ones, PluginError, "'theirs' gives the head 'mine' as a function, and has to give a vllm_cls.HeadSource"),
        (
            HeadSource(lambda request: 1, "one"),
            PluginError,
            "'theirs' gave a int for the head 'mine', not a HeadResult",
        ),
        (
            HeadSource(lambda request: HeadResult(ones(request).head.linear, ["a", "b"], None), "one"),
            PluginError,
            "'theirs' gave a HeadResult for the head 'mine', whose head is a LinearHead, not a Head",
        ),
        (
            HeadSource(lambda request: HeadResult(Head("mine", LinearHead(np.ones((2, 32)))), ["a", "b"], None), "one"),
            PluginError,
            "'theirs' gave a Head for the head 'mine', whose weight is a ndarray, not a torch tensor",
        ),
        (
            HeadSource(lambda request: HeadResult(ones(request).head, ["a", "b", "c"], None), "one"),
            PluginError,
            "'theirs' gave a Head for the head 'mine', which has 2 rows, and 3 labels",
        ),
        (
            HeadSource(lambda request: 1 / 0, "no"),
            PluginError,
            "'theirs' failed while it made the head 'mine': ZeroDiv",
        ),
        (HeadSource(ones, "seed", options=(HeadOption("seed", "x"),)), PluginError, "'mine' has options .*: --seed;"),
        (
            HeadSource(ones, "x", options=(HeadOption("x", "how"),), needs=("x",)),
            ConfigError,
            "--head mine needs --x: how",
        ),
    ],
    ids=["function", "number", "no Head", "no tensor", "rows", "failing", "taken name", "needed"],
)
def test_what_is_wrong_with_a_source_is_told_by_name(
    install: Install, lm: Path, tmp_path: Path, source: Any, error: type[Exception], told: str
) -> None:
    install(vcls_head_sources=lambda: {"mine": source})
    with pytest.raises(error, match=told):
        convert(str(lm), tmp_path / "out", head="mine", labels=["a", "b"])
    convert(str(lm), tmp_path / "fine", head="random", labels=["a", "b"])  # which does not need it


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: HeadSource(ones, "x", takes=("trian",)), "takes=.*Did you mean 'train'"),
        (lambda: HeadSource(ones, "x", takes="train"), "give a tuple"),
        (lambda: HeadSource(ones, "x", needs=("other",)), "needs="),
        (lambda: HeadSource(ones, "x", tasks=("embed",)), "tasks="),
        (lambda: HeadSource(ones, "x", options=(HeadOption("train", "x"),)), "have to differ"),
        (lambda: HeadOption("my-option", "x"), "a name of Python"),
        (lambda: HeadOption("option", "x", list), "one of str, int, float, bool"),
    ],
)  # fmt: skip
def test_a_source_that_contradicts_itself(make: Callable[[], Any], told: str) -> None:
    with pytest.raises(PluginError, match=told):
        make()


def test_one_option_of_two_types_is_refused() -> None:
    assert _option({"a": HeadOption("x", "how", float), "b": HeadOption("x", "how", float)}).name == "x"
    with pytest.raises(PluginError, match="--x is float for --head a and int for --head b"):
        _option({"a": HeadOption("x", "how", float), "b": HeadOption("x", "how", int)})


def test_the_built_in_heads_are_found_as_others_are() -> None:
    assert "heads" in {info.name for info in discover([HEADS_GROUP])}
    assert "heads" not in {info.name for info in discover(["vllm_cls"])}


def test_a_third_partys_answer_comes_before_the_built_in_one(install: Install, lm: Path, tmp_path: Path) -> None:
    """Of the hooks that take one answer; None leaves it to the built-in one. Here the built-in plugins came first or last."""
    for name in (
        "vcls_target",
        "vcls_named_head",
        "vcls_calibrate",
        "vcls_model_card",
        "vcls_write_checkpoint",
        "vcls_score_templates",
    ):
        (ours,) = getattr(registry()._manager.hook, name).get_hookimpls()
        assert ours.trylast, name
    asked: list[str] = []

    def vcls_target(result: HeadResult) -> Target | None:
        asked.append(result.head.method)
        return None

    def vcls_model_card(values: dict[str, Any]) -> str:
        return f"a card of {values['name']}"

    install(vcls_target=vcls_target, vcls_model_card=vcls_model_card)
    report = convert(str(lm), tmp_path / "out", head="random", labels=["a", "b"])
    assert asked == ["random"] and report.model_class == "Qwen2ForSequenceClassification"
    assert (tmp_path / "out" / "README.md").read_text() == "a card of out"


@pytest.mark.parametrize(
    ("hook", "options"),
    [
        ("vcls_target", {}),
        ("vcls_named_head", {"head_name": "topic"}),
        ("vcls_calibrate", {"calibrate": True}),
        ("vcls_model_card", {}),
        ("vcls_write_checkpoint", {}),
        ("vcls_score_templates", {"score_template": "mine"}),
    ],
)
def test_a_hook_that_fails_while_a_model_is_converted_names_its_plugin(
    install: Install, lm: Path, tmp_path: Path, hook: str, options: dict[str, Any]
) -> None:
    """Here the bare exception of a hook that takes one answer was told as a fault of ours."""
    install(**{hook: lambda: 1 / 0})
    options = {name: rows(tmp_path) if value is True else value for name, value in options.items()}
    with pytest.raises(PluginError, match=rf"plugin 'theirs' failed in {hook}: ZeroDivisionError.*VCLS_PLUGINS"):
        convert(str(lm), tmp_path / "out", head="random", labels=["a", "b"], **options)
    assert not (tmp_path / "out").exists()


def median(hidden: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    texts = zip(starts.tolist(), lengths.tolist(), strict=True)
    return torch.stack([hidden[start : start + length].median(0).values for start, length in texts])


def test_a_third_partys_pooling_in_our_own_format(lm: Path, tmp_path: Path) -> None:
    """Of a class that transformers has, with the states that transformers gives; without the plugin its name is told."""
    name, out, head_weights = "pools", str(tmp_path / "out"), str(tmp_path / "head.safetensors")
    plugin = SimpleNamespace(vcls_pooling_methods=hookimpl(lambda: {"median": median}))
    registry()._manager.register(plugin, name)
    try:
        save_file({"weight": torch.randn(3, 32, generator=torch.manual_seed(0))}, head_weights)
        report = convert(str(lm), out, head="file", head_weights=head_weights, num_labels=3, pooling="Median")
        assert report.pooling == "median"
        backbone = transformers.AutoModel.from_pretrained(lm, dtype=torch.float32).eval()
        with LLM(out, device="cpu") as llm, torch.no_grad():
            for ids in ([20, 21, 22, 23, 24], [30, 31]):
                states = backbone(torch.tensor([ids]))[0][0].median(0).values
                (output,) = llm.classify([ids])
                expected = load_file(head_weights)["weight"] @ states
                assert torch.allclose(torch.tensor(output.outputs.logits), expected, atol=1e-4)
    finally:
        registry()._manager.unregister(name=name)
    with pytest.raises(ConfigError, match="pooling 'median' is unknown; use one of CLS, LAST, MEAN"):
        LLM(out, device="cpu")


@pytest.mark.parametrize("name", ["mean", "ALL", "STEP", "MAX"])
def test_a_pooling_method_with_a_built_in_name_is_refused(install: Install, lm: Path, name: str) -> None:
    install(vcls_pooling_methods=lambda: {name: median})
    with pytest.raises(PluginError, match=rf"'theirs' gives '{name}' in vcls_pooling_methods, which is a built-in one"):
        LLM(str(lm), convert="none", device="cpu")


def test_the_core_and_the_commands_name_no_built_in_head() -> None:
    """But in the one example of `vcls --help`: what they say of heads, they ask the registry."""
    names = "|".join(name for name in registry().head_sources() if name != EXISTING)
    package, commands = Path(vllm_cls.__file__).parent, Path(main.__file__).parent
    told = [
        f"{path.name}:{number}: {line.strip()}"
        for path in [*package.rglob("*.py"), *commands.rglob("*.py")]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(rf"--head[ =]({names})\b", line)
    ]
    assert len(told) == 1 and told[0].startswith("main.py"), told
