"""Reward models: of whole texts and of steps; the layouts of Qwen2.5-Math, and any classifier with one label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from vllm_cls import LLM, ConfigError, PoolerConfig, PoolingParams, classify_file, convert, load_classifier
from vllm_cls.jobs.formats.files import find_sources
from vllm_cls.jobs.formats.readers import read_rows

from ..models import tiny

# The checkpoints name code of their own, as the published ones do; that it is not run is what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.* brings code of its own, which is not run:UserWarning")

TEXTS = ["The film was good", "a boring end", "yes"]
STEP = 9


def checkpoint(folder: Path, name: str, num_labels: int) -> tuple[Path, nn.Module, nn.Module]:
    """A checkpoint of that layout, its backbone, and its head as the checkpoints' own code makes it."""
    tiny.base_model("qwen2", folder)
    base = transformers.AutoModel.from_pretrained(folder).eval()
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, num_labels))
    tensors = {f"model.{key}": tensor for key, tensor in load_file(folder / "model.safetensors").items()}
    tensors |= {f"score.{key}": tensor.detach() for key, tensor in head.named_parameters()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for key in ("id2label", "label2id"):
        config.pop(key, None)
    config |= {"architectures": [name], "auto_map": {"AutoModel": f"modeling.{name}"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, base, head


@torch.no_grad()
def by_hand(base: nn.Module, head: nn.Module, ids: list[int]) -> torch.Tensor:
    """Logits of every token, `(num_tokens, num_labels)`."""
    logits: torch.Tensor = head(base(torch.tensor([ids])).last_hidden_state[0])
    return logits


def test_a_reward_model_gives_the_last_tokens_number_as_it_is(tmp_path: Path) -> None:
    folder, base, head = checkpoint(tmp_path / "rm", "Qwen2ForRewardModel", 1)
    convert(str(folder), tmp_path / "converted")
    for path in (folder, tmp_path / "converted"):
        with LLM(str(path)) as llm:
            assert llm.describe()["plugin"] == "qwen2-reward"
            for output in llm.reward(TEXTS):
                wanted = by_hand(base, head, output.prompt_token_ids)[-1]
                torch.testing.assert_close(output.outputs.data, wanted, atol=1e-5, rtol=0)
                assert llm.classify({"prompt_token_ids": output.prompt_token_ids})[0].outputs.probs == pytest.approx(
                    wanted.tolist(), abs=1e-5
                )
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(
        load_classifier(str(folder))(ids).logits[0], by_hand(base, head, [5, 6, 7])[-1], atol=1e-5, rtol=0
    )


def test_a_file_of_texts_gets_a_value_each(tmp_path: Path) -> None:
    folder, base, head = checkpoint(tmp_path / "rm", "Qwen2ForRewardModel", 1)
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "good"}))
    classify_file(str(folder), tmp_path / "in.jsonl", tmp_path / "out.jsonl")
    row = json.loads((tmp_path / "out.jsonl").read_text())
    ids = transformers.AutoTokenizer.from_pretrained(folder)("good").input_ids
    assert row == {"text": "good", "value": pytest.approx(by_hand(base, head, ids)[-1].item(), abs=1e-5)}


def test_a_process_reward_model_gives_each_steps_probabilities(tmp_path: Path) -> None:
    folder, base, head = checkpoint(tmp_path / "prm", "Qwen2ForProcessRewardModel", 2)
    prompts = [[5, 6, STEP, 7, 8, 10, STEP], [11, STEP], [12, 13]]
    with LLM(str(folder), pooler_config=PoolerConfig(step_tag_id=STEP)) as llm:
        for prompt, output in zip(prompts, llm.reward(prompts), strict=True):
            steps = [place for place, token in enumerate(prompt) if token == STEP]
            wanted = by_hand(base, head, prompt).softmax(-1)[steps]
            torch.testing.assert_close(output.outputs.data, wanted, atol=1e-5, rtol=0)
        params = PoolingParams(use_activation=False, step_tag_id=7, returned_token_ids=[1])
        (output,) = llm.encode([prompts[0]], params)
        torch.testing.assert_close(output.outputs.data, by_hand(base, head, prompts[0])[3:4, 1:], atol=1e-5, rtol=0)
        with pytest.raises(ConfigError, match=r"LLM\.reward"):
            llm.classify("good")
    with LLM(str(folder)) as llm:
        assert llm.describe()["plugin"] == "qwen2-process-reward"
        assert llm.reward([prompts[0]])[0].outputs.data.shape == (0, 2)  # the step tag of the real vocabulary
    report = convert(str(folder), tmp_path / "converted", hf_overrides={"id2label": {0: "bad", 1: "good"}})
    assert report.labels == ["bad", "good"]
    with LLM(str(tmp_path / "converted"), pooler_config={"step_tag_id": STEP}) as llm:
        wanted = by_hand(base, head, prompts[1]).softmax(-1)[1:]
        torch.testing.assert_close(llm.reward([prompts[1]])[0].outputs.data, wanted, atol=1e-5, rtol=0)


def test_a_file_of_texts_gets_the_scores_of_its_steps(tmp_path: Path) -> None:
    folder, base, head = checkpoint(tmp_path / "prm", "Qwen2ForProcessRewardModel", 2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tag = tokenizer("!").input_ids[0]
    texts = ["The film! was good!", "no step", "a boring end!", "yes " * 60 + "!"]
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))

    def run(out: str, **options: Any) -> list[Any]:
        config = {"step_tag_id": tag}
        report = classify_file(str(folder), tmp_path / "in.jsonl", tmp_path / out, pooler_config=config, **options)
        assert report.failed == 2 and report.truncated == 1  # one has no step, of the other its step is cut off
        return [dict(row.fields) for row in read_rows(find_sources(tmp_path / out))]

    rows = run("out.jsonl")
    for text, row in zip(texts, rows, strict=True):
        ids = tokenizer(text).input_ids
        if row["steps"] is None:
            assert "no step" in row["error"]
            continue
        wanted = by_hand(base, head, ids).softmax(-1)[[i for i in range(len(ids)) if ids[i] == tag]]
        assert [step["probs"] for step in row["steps"]] == [pytest.approx(each, abs=1e-5) for each in wanted.tolist()]
        assert [step["score"] for step in row["steps"]] == pytest.approx(wanted[:, 1].tolist(), abs=1e-5)
    assert len(rows[0]["steps"]) == 2 and rows[3]["truncated"]
    raw = run("raw.jsonl", use_activation=False)
    assert torch.tensor(raw[0]["steps"][0]["logits"]).softmax(-1).tolist() == pytest.approx(
        rows[0]["steps"][0]["probs"], abs=1e-5
    )
    for name, given, missing in (("probs", rows, "logits"), ("logits", raw, "probs")):
        table = run(f"{name}.parquet", use_activation=name == "probs")
        assert [row["steps"] for row in table] == [
            row["steps"] and [{**step, missing: None} for step in row["steps"]] for row in given
        ]
    for strange in ({"top_k": 1}, {"aggregation": "first"}, {"label_field": "text"}, {"text_pair_field": "text"}):
        with pytest.raises(ConfigError, match=next(iter(strange))):
            run("none.jsonl", **strange)


def test_a_token_classifier_that_judges_steps(tmp_path: Path) -> None:
    folder = tiny.token_classifier("qwen2", tmp_path, id2label={0: "bad", 1: "good"})
    with LLM(str(folder), pooler_config={"tok_pooling_type": "STEP", "step_tag_id": STEP}) as llm:
        (all_tokens,) = LLM(str(folder)).encode([[5, STEP, 6, STEP]])
        (steps,) = llm.reward([[5, STEP, 6, STEP]])
        torch.testing.assert_close(steps.outputs.data, all_tokens.outputs.data[[1, 3]], atol=1e-5, rtol=0)


def test_a_classifier_of_one_label_is_a_reward_model(tmp_path: Path) -> None:
    folder = tiny.classifier("qwen2", tmp_path / "one", num_labels=1)
    with LLM(str(folder)) as plain, LLM(str(folder), convert="reward") as reward:
        raw = [output.outputs.logits[0] for output in plain.classify(TEXTS)]
        assert [output.outputs.data.item() for output in plain.reward(TEXTS)] == pytest.approx(raw, abs=1e-6)
        assert [output.outputs.probs[0] for output in reward.classify(TEXTS)] == pytest.approx(raw, abs=1e-6)
        (squashed,) = plain.reward(TEXTS[0], pooling_params=PoolingParams(use_activation=True))
        assert squashed.outputs.data.item() == pytest.approx(torch.sigmoid(torch.tensor(raw[0])).item(), abs=1e-6)
    convert(str(folder), tmp_path / "out", convert="reward")
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert stored["problem_type"] == "regression" and stored["architectures"] == ["Qwen2ForSequenceClassification"]
    pipeline = transformers.pipeline("text-classification", model=str(tmp_path / "out"), device="cpu")
    assert [row["score"] for row in pipeline(TEXTS)] == pytest.approx(raw, abs=1e-5)


def test_a_reward_head_is_made(tmp_path: Path) -> None:
    base = tiny.causal_lm("qwen2", tmp_path / "base")
    report = convert(str(base), tmp_path / "random", convert="reward", head="random")
    assert len(report.labels) == 1
    rows = [{"text": text, "label": number / 3} for number, text in enumerate(TEXTS * 6)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    convert(str(base), tmp_path / "fit", convert="reward", head="fit", train=str(tmp_path / "train.jsonl"))
    with LLM(str(tmp_path / "fit")) as llm:
        assert llm.problem_type == "regression" and llm.reward("yes")[0].outputs.data.shape == (1,)


@pytest.mark.parametrize(("name", "count"), [("Qwen2ForRewardModel", 1), ("Qwen2ForProcessRewardModel", 2)])
def test_the_auto_class_of_transformers_takes_the_head_that_is_there(name: str, count: int, tmp_path: Path) -> None:
    auto: Any = transformers.AutoModelForSequenceClassification
    folder, base, head = checkpoint(tmp_path / "rm", name, count)
    model = auto.from_pretrained(folder).eval()  # plain transformers makes up a `score` of its own here
    assert type(model).__name__ == name
    with torch.no_grad():
        found = model(torch.tensor([[5, 6, 7]])).logits[0]
    torch.testing.assert_close(found, by_hand(base, head, [5, 6, 7])[-1], atol=1e-5, rtol=0)
    assert type(auto.from_config(model.config)) is type(model)
    plain = tiny.classifier("qwen2", tmp_path / "plain")
    assert type(auto.from_pretrained(plain)) is transformers.Qwen2ForSequenceClassification
    assert type(auto.from_config(tiny.config_of("qwen2"))) is transformers.Qwen2ForSequenceClassification


def test_several_labels_are_no_reward(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "three")
    with pytest.raises(ConfigError, match="one number"):
        LLM(str(folder), convert="reward")
    with LLM(str(folder)) as llm, pytest.raises(ConfigError, match="num_labels 1"):
        llm.reward("good")
    with pytest.raises(ConfigError, match="leave --problem-type out"):
        convert(str(folder), tmp_path / "out", convert="reward", problem_type="multi_label_classification")
