"""Pooling methods, calibration and activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig

from tests.models import tiny
from vllm_cls import LLM, ConfigError, ModelError, PoolerConfig, PoolingParams
from vllm_cls.pooler.activations import activation_for
from vllm_cls.pooler.methods import POOLING_METHODS, named, step_rows

HIDDEN = torch.arange(24.0).view(8, 3)
STARTS, LENGTHS = torch.tensor([0, 4]), torch.tensor([2, 4])  # two rows of padding after the first


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("CLS", HIDDEN[[0, 4]]),
        ("LAST", HIDDEN[[1, 7]]),
        ("MEAN", torch.stack([HIDDEN[:2].mean(0), HIDDEN[4:8].mean(0)])),
    ],
)
def test_methods_never_read_padding(method: str, expected: torch.Tensor) -> None:
    assert torch.equal(POOLING_METHODS[method](HIDDEN, STARTS, LENGTHS), expected)


@pytest.mark.parametrize(
    ("methods", "modes"),
    [
        (["CLS"], "cls"),
        (["LAST"], "lasttoken"),
        (["MEAN"], "mean"),
        (["MAX"], "max"),
        (["MEAN_SQRT_LEN"], "mean_sqrt_len_tokens"),
        (["WEIGHTED_MEAN"], "weightedmean"),
        (["CLS", "MAX", "MEAN"], ("cls", "max", "mean")),
    ],
)
def test_methods_are_those_of_sentence_transformers(methods: list[str], modes: Any) -> None:
    states, mask = torch.randn(3, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    expected = Pooling(8, modes)({"token_embeddings": states, "attention_mask": mask})["sentence_embedding"]
    method, lengths = named("+".join(methods), POOLING_METHODS), mask.sum(1)
    padded = method(states.flatten(0, 1), torch.tensor([0, 5, 10]), lengths)
    packed = method(states[mask.bool()], torch.tensor([0, 3, 4]), lengths)
    torch.testing.assert_close(padded, expected)
    torch.testing.assert_close(packed, expected)


def test_step_filters_columns_then_rows() -> None:
    rows = torch.arange(12.0).view(4, 3)
    assert step_rows(rows, [5, 9, 5, 9], 9, [0, 2]).tolist() == [[3.0, 5.0], [9.0, 11.0]]
    assert step_rows(rows, [5, 9, 5, 9], None, None).shape == (4, 3)


ST = "torch.nn.modules.activation."


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"problem_type": "regression"}, lambda logits: logits),
        ({"problem_type": "single_label_classification"}, lambda logits: logits.softmax(-1)),
        ({"problem_type": "multi_label_classification"}, torch.sigmoid),
        ({}, lambda logits: logits.softmax(-1)),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, lambda logits: logits),
        ({"sentence_transformers": {"activation_fn": f"{ST}Tanh"}}, torch.tanh),
        ({"sentence_transformers": {"activation_fn": f"{ST}ReLU"}}, torch.relu),
        ({"sentence_transformers": {"activation_fn": f"{ST}Sigmoid"}}, lambda logits: logits.softmax(-1)),
        ({"sbert_ce_default_activation_function": f"{ST}Softmax"}, lambda logits: logits.softmax(-1)),
        ({"problem_type": "regression", "sbert_ce_default_activation_function": f"{ST}Sigmoid"}, lambda logits: logits),
    ],
)
def test_activations(values: dict[str, Any], expected: Any) -> None:
    """Of two labels, three and five; Sigmoid and Softmax mean "by the number of labels", as in vLLM."""
    for count in (2, 3, 5):
        logits = torch.randn(4, count)
        torch.testing.assert_close(activation_for(BertConfig(**values))(logits), expected(logits))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"problem_type": "single_label_classification"},
        {"sentence_transformers": {"activation_fn": f"{ST}Softmax"}},
        {"sbert_ce_default_activation_function": f"{ST}Sigmoid"},
    ],
)
def test_one_label_alone_is_yes_or_no(values: dict[str, Any]) -> None:
    logits = torch.randn(4, 1)
    torch.testing.assert_close(activation_for(BertConfig(**values))(logits), logits.sigmoid())


@pytest.mark.parametrize("name", ["os.system", "torch.nn.modules.nothing.Nothing", "torch.nn.functional.relu"])
def test_an_activation_from_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="torch.nn.modules"):
        activation_for(BertConfig(sbert_ce_default_activation_function=name))


def test_a_plugins_activation_goes_by_its_name() -> None:
    config = BertConfig(sbert_ce_default_activation_function="mine")
    assert activation_for(config, {"mine": lambda logits: logits * 2})(torch.ones(2)).tolist() == [2.0, 2.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.classifier("bert", tmp_path_factory.mktemp("bert"), num_labels=3)


def test_calibration_and_use_activation(folder: Path) -> None:
    raw = torch.tensor(LLM(str(folder)).classify("good")[0].outputs.logits)
    for name in ("logit_bias", "logit_mean"):
        llm = LLM(str(folder), pooler_config={name: 0.5, "logit_sigma": 2.0})
        calibrated = (raw - 0.5) / 2
        (output,) = llm.classify("good")
        assert output.outputs.probs == pytest.approx(calibrated.softmax(-1).tolist())
        assert output.outputs.logits == pytest.approx(calibrated.tolist())
        (output,) = llm.classify("good", pooling_params=PoolingParams(use_activation=False))
        assert output.outputs.probs == pytest.approx(calibrated.tolist())
    llm = LLM(str(folder), pooler_config=PoolerConfig(use_activation=False))
    assert llm.classify("good")[0].outputs.probs == pytest.approx(raw.tolist())
    both = llm.classify(["good", "good"], pooling_params=[PoolingParams(True), PoolingParams()])
    assert both[0].outputs.probs == pytest.approx(raw.softmax(-1).tolist())
    assert both[1].outputs.probs == pytest.approx(raw.tolist())


@pytest.mark.parametrize("pooling", ["CLS", "LAST", "MEAN"])
def test_another_pooling_than_the_models(tmp_path: Path, pooling: str) -> None:
    folder = tiny.classifier("qwen2", tmp_path)
    llm = LLM(str(folder), pooler_config={"pooling_type": pooling})
    prompts = [[20, 21, 22, 23], [30, 31]]
    model: Any = llm.model
    for ids, output in zip(prompts, llm.classify(prompts), strict=True):
        with torch.no_grad():
            model.set_attn_implementation("sdpa")
            hidden = model.model(input_ids=torch.tensor([ids]))[0][0]
            pooled = {"CLS": hidden[0], "LAST": hidden[-1], "MEAN": hidden.mean(0)}[pooling]
            assert torch.allclose(torch.tensor(output.outputs.logits), model.score(pooled), atol=1e-4)


def test_all_and_step(tmp_path: Path) -> None:
    folder = tiny.classifier("qwen2", tmp_path)
    ids = [20, 25, 21, 25, 22]
    (everything,) = LLM(str(folder)).encode(ids, pooling_task="token_classify")
    assert everything.outputs.data.shape == (5, 3)
    steps = LLM(str(folder), pooler_config={"pooling_type": "STEP", "step_tag_id": 25, "returned_token_ids": [0, 2]})
    (output,) = steps.encode(ids, pooling_task="token_classify")
    assert torch.allclose(output.outputs.data, everything.outputs.data[[1, 3]][:, [0, 2]], atol=1e-6)
    for column in (3, -1):  # one beyond the labels, and none
        with pytest.raises(ConfigError, match=r"returned_token_ids=.* must be columns, 0 to 2"):
            steps.encode(ids, PoolingParams(returned_token_ids=[0, column]), pooling_task="token_classify")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pooling_type": "FIRST"}, "use one of CLS"),
        ({"pooling_type": "CLS", "seq_pooling_type": "LAST"}, "contradicts"),
        ({"logit_bias": 1.0, "logit_mean": 1.0}, "one of them"),
        ({"task": "generate"}, "unknown"),
        ({"tok_pooling_type": "FIRST"}, "tok_pooling_type='FIRST' is unknown; use one of ALL, STEP"),
        ({"seq_pooling_type": 3}, "seq_pooling_type=3 is unknown"),
        ({"pooling_type": 3}, "pooling_type=3 is not a name"),
        ({"logit_sigma": 0}, "would divide by zero"),
        ({"logit_mean": float("nan")}, "logit_mean=nan is not a number"),
        ({"logit_bias": "1"}, "logit_bias='1' is not a number"),
        ({"use_activation": "yes"}, "use_activation='yes' is not true or false"),
    ],
)
def test_contradictions_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PoolerConfig(**values)


def test_explicit_values_win_over_stored_ones() -> None:
    merged = PoolerConfig(logit_mean=1.0).over(PoolerConfig(logit_bias=5.0, logit_sigma=2.0, pooling_type="MEAN"))
    assert (merged.mean, merged.logit_sigma, merged.seq_pooling_type) == (1.0, 2.0, "MEAN")
