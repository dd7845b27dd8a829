"""What must be exact or refused with a clear error, one test each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import vllm_cls
from vllm_cls import LLM, ConfigError, ModelError, PoolingParams, PromptError, convert

from ..models import tiny


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.causal_lm("qwen2", tmp_path_factory.mktemp("qwen2"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.classifier("bert", tmp_path_factory.mktemp("bert"))


def edit_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_weights(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors.pop(name)
    save_file(tensors if tensor is None else {**tensors, name: tensor}, path, {"format": "pt"})


# -- heads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"convert": "classify"}])
def test_no_head_and_none_asked_for(qwen2: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="without a classification head.*--head"):
        LLM(str(qwen2), **options)
    with pytest.raises(ModelError, match="never invented"):
        convert(str(qwen2), qwen2.parent / "out")
    assert not (qwen2.parent / "out").exists()


def test_a_head_that_is_missing_in_the_files_is_not_invented(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model")
    edit_weights(folder, "classifier.weight", None)
    with pytest.raises(ModelError, match="lacks classifier.weight"):
        LLM(str(folder))


def test_random_only_by_name_and_by_seed(qwen2: Path, tmp_path: Path) -> None:
    probs = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        convert(str(qwen2), tmp_path / name, head="random", num_labels=3, seed=seed)
        probs.append(LLM(str(tmp_path / name)).classify("The film was good")[0].outputs.probs)
    assert probs[0] == probs[1] != probs[2]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a= good| bad,b= unheardof", "' unheardof' is .* tokens .* not one token"),
        ("a= good,b= good", "share the token"),
        ("a=,b= good", "empty text"),
    ],
)
def test_label_tokens_that_split_or_collide(qwen2: Path, tmp_path: Path, texts: str, message: str) -> None:
    with pytest.raises((ModelError, ConfigError), match=message):
        convert(
            str(qwen2),
            tmp_path / "out",
            head="tokens",
            label_tokens=texts,
            prompt_template="Review: {text}\nSentiment:",
        )


def test_a_label_that_melts_into_the_prompt(qwen2: Path, tmp_path: Path) -> None:
    # "goo" + "d" is one token together, so "d" is not what the model would write next.
    with pytest.raises(ModelError, match="'d' melts into the end of the prompt"):
        convert(str(qwen2), tmp_path / "out", head="tokens", label_tokens="a=d,b= bad", prompt_template="{text}: goo")


def test_two_way_wants_two(qwen2: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exactly two"):
        convert(str(qwen2), tmp_path / "out", head="two-way", label_tokens="a= good,b= bad,c= great")


def test_encoders_have_no_next_token(bert: Path, tmp_path: Path) -> None:
    with pytest.raises((ModelError, ConfigError), match="--head fit"):
        convert(str(bert), tmp_path / "out", head="tokens", label_tokens="a=good,b=bad")


@pytest.mark.parametrize("shape", [(3, 31), (3, 33), (32,)])
def test_a_head_of_the_wrong_shape(qwen2: Path, tmp_path: Path, shape: tuple[int, ...]) -> None:
    save_file({"weight": torch.zeros(shape)}, tmp_path / "head.safetensors")
    with pytest.raises(ModelError, match="weight has shape"):
        convert(
            str(qwen2), tmp_path / "out", head="file", head_weights=str(tmp_path / "head.safetensors"), num_labels=3
        )


def test_a_checkpoint_whose_head_disagrees_with_its_config(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model")
    edit_weights(folder, "classifier.weight", torch.zeros(5, 32))
    with pytest.raises(ModelError, match=r"5 rows.*3 labels"):
        LLM(str(folder))


def test_a_bias_that_transformers_would_drop_is_kept(tmp_path: Path) -> None:
    folder = tiny.classifier("qwen2", tmp_path / "model")
    before = LLM(str(folder)).classify("The film was good")[0].outputs.logits
    edit_weights(folder, "score.weight", load_file(folder / "model.safetensors")["score.weight"])
    tensors = load_file(folder / "model.safetensors")
    bias = torch.tensor([1.0, -2.0, 3.0])
    save_file({**tensors, "score.bias": bias}, folder / "model.safetensors", {"format": "pt"})
    llm = LLM(str(folder))
    after = llm.classify("The film was good")[0].outputs.logits
    assert torch.allclose(torch.tensor(after), torch.tensor(before) + bias, atol=1e-5)
    report = convert(str(folder), tmp_path / "converted")
    assert report.format == "vcls"
    assert LLM(str(tmp_path / "converted")).classify("The film was good")[0].outputs.logits == pytest.approx(
        after, abs=1e-5
    )


@pytest.mark.parametrize(
    ("num_labels", "values"),
    [
        (3, {"problem_type": "multi_label_classification"}),
        (1, {"problem_type": "regression", "use_sep_token": False}),
        (1, {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity", "use_sep_token": False}),
    ],
)
def test_a_head_with_a_bias_keeps_its_activation_and_its_pairs(
    num_labels: int, values: dict[str, Any], tmp_path: Path
) -> None:
    folder = tiny.classifier("qwen2", tmp_path / "model", num_labels=num_labels, **values)
    with LLM(str(folder)) as llm:
        (plain,), described = llm.classify("good"), llm.describe()
    tensors = load_file(folder / "model.safetensors")
    tensors["score.bias"] = torch.zeros(num_labels)  # one that changes nothing but the class that holds it
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    convert(str(folder), tmp_path / "converted")
    for each in (folder, tmp_path / "converted"):
        with LLM(str(each)) as llm:
            assert llm.classify("good")[0].outputs.probs == pytest.approx(plain.outputs.probs, abs=1e-5)
            for name in ("problem_type", "activation", "score_template"):
                assert llm.describe()[name] == described[name]


def test_what_transformers_cannot_hold_is_refused_by_it(qwen2: Path, tmp_path: Path) -> None:
    report = convert(str(qwen2), tmp_path / "out", head="random", num_labels=2, pooling=None, logit_bias=None)
    assert report.format == "transformers"
    save_file({"weight": torch.randn(2, 32), "bias": torch.randn(2)}, tmp_path / "head.safetensors")
    report = convert(
        str(qwen2), tmp_path / "biased", head="file", head_weights=str(tmp_path / "head.safetensors"), num_labels=2
    )
    assert report.format == "vcls"
    assert json.loads((tmp_path / "biased" / "config.json").read_text())["model_type"] == "vcls"


# -- prompts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [0, 1], ids=["eos", "pad"])
def test_prompts_that_end_in_pad_or_eos(tmp_path: Path, ending: int) -> None:
    folder = tiny.classifier("qwen2", tmp_path / "model")
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    prompts = [[20, 21, 22, ending], [20, 21, 22], [30, ending, ending], [40] * 9]
    for ids, output in zip(prompts, LLM(str(folder)).classify(prompts), strict=True):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0]
        assert torch.allclose(torch.tensor(output.outputs.logits), expected, atol=1e-4)


def test_convert_writes_a_pad_token_that_prompts_do_not_end_in(qwen2: Path, tmp_path: Path) -> None:
    convert(str(qwen2), tmp_path / "out", head="random", num_labels=2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.pad_token_id == tokenizer.pad_token_id
    assert config.pad_token_id not in (None, tokenizer.eos_token_id)
    pipeline = transformers.pipeline("text-classification", model=str(tmp_path / "out"), top_k=None, device="cpu")
    texts = ["The film was good", "bad", "What are the best practices for secure coding?"]
    ours = LLM(str(tmp_path / "out")).classify(texts)
    for theirs, output in zip(pipeline(texts, batch_size=3), ours, strict=True):
        assert {each["label"]: each["score"] for each in theirs} == pytest.approx(output.outputs.scores, abs=1e-4)


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_rotary_variants_that_look_at_the_longest_text(tmp_path: Path, rope: str) -> None:
    values: dict[str, Any] = {"rope_type": rope, "rope_theta": 10000.0, "factor": 4.0}
    if rope == "longrope":
        values |= {"short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "original_max_position_embeddings": 16}
    options: dict[str, Any] = {"rope_parameters": values, "max_position_embeddings": 64 if rope == "longrope" else 16}
    folder = tiny.classifier("llama", tmp_path / "model", **options)
    llm = LLM(str(folder), max_model_len=None if rope == "longrope" else 16)
    prompts = [
        [10 + (i * 7) % 50 for i in range(n)] for n in ((40, 5, 20, 16, 33, 9) if rope == "longrope" else (16, 5, 12))
    ]
    expected = []
    for ids in prompts:  # a fresh model each time: the frequencies that it grew to would stay
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            expected.append(model(input_ids=torch.tensor([ids])).logits[0])
    for _ in range(2):
        for output, logits in zip(llm.classify(prompts), expected, strict=True):
            assert torch.allclose(torch.tensor(output.outputs.logits), logits, atol=1e-4)


def test_dynamic_rope_beyond_its_length_runs_alone_and_leaves_no_trace(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    folder = tiny.classifier("llama", tmp_path / "model", rope_parameters=rope, max_position_embeddings=64)
    llm = LLM(str(folder))
    prompts = [[10 + (i * 7) % 50 for i in range(n)] for n in (60, 5, 30, 16, 45)]
    for ids, output in zip(prompts, llm.classify(prompts), strict=True):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0]
        assert torch.allclose(torch.tensor(output.outputs.logits), expected, atol=1e-4)


def test_a_pad_token_inside_a_roberta_prompt(tmp_path: Path) -> None:
    folder = tiny.classifier("roberta", tmp_path / "model")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    prompts = [[0, 20, 1, 21, 2], [0, 20, 21, 2], [0, 30, 31, 32, 33, 1, 2]]
    for ids, output in zip(prompts, LLM(str(folder)).classify(prompts), strict=True):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).logits[0]
        assert torch.allclose(torch.tensor(output.outputs.logits), expected, atol=1e-4)


def test_token_types_of_pairs_reach_the_model(bert: Path) -> None:
    llm = LLM(str(bert))
    pair, joined = llm.classify([("The film was good", "and the music"), "The film was good and the music"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(bert).eval()
    encoding = tokenizer("The film was good", "and the music", return_tensors="pt")
    assert encoding["token_type_ids"].any()
    with torch.no_grad():
        expected = model(**encoding).logits[0]
        without = model(**{**encoding, "token_type_ids": torch.zeros_like(encoding["token_type_ids"])}).logits[0]
    assert torch.allclose(torch.tensor(pair.outputs.logits), expected, atol=1e-4)
    assert not torch.allclose(expected, without, atol=1e-3)
    assert pair.outputs.logits != joined.outputs.logits


def test_a_prompt_longer_than_the_model(qwen2: Path, tmp_path: Path) -> None:
    template = "Review: {text}\nSentiment:"
    convert(str(qwen2), tmp_path / "out", head="random", num_labels=2, prompt_template=template)
    llm = LLM(str(tmp_path / "out"))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "The film was good and the music was great. " * 20
    with pytest.raises(PromptError, match="maximum context length is 48"):
        llm.classify(text)
    for side in ("right", "left"):
        (output,) = llm.classify(text, tokenization_kwargs={"truncate_prompt_tokens": -1, "truncation_side": side})
        read = tokenizer.decode(output.prompt_token_ids)
        assert output.truncated
        assert len(output.prompt_token_ids) <= 48
        assert read.startswith("Review: ") and read.endswith("\nSentiment:")
        kept = read.removeprefix("Review: ").removesuffix("\nSentiment:")
        assert kept and (text.startswith(kept) if side == "right" else text.endswith(kept))
    assert not llm.classify("short")[0].truncated


def test_a_template_that_leaves_no_room(qwen2: Path, tmp_path: Path) -> None:
    convert(str(qwen2), tmp_path / "out", head="random", num_labels=2, prompt_template="{text}" + " good bad" * 40)
    with pytest.raises(PromptError, match="the template alone is longer than 48 tokens"):
        LLM(str(tmp_path / "out")).classify("a", tokenization_kwargs={"truncate_prompt_tokens": -1})


def test_a_bad_prompt_costs_itself_alone(bert: Path) -> None:
    llm = LLM(str(bert))
    prompts = ["good", 5, [99999], "bad " * 100, "\ud800", {"promt": "x"}, "good"]
    outputs = list(llm.classify_iter(prompts))
    assert [output.error is None for output in outputs] == [True, False, False, False, False, False, True]
    assert outputs[0].outputs.probs == outputs[-1].outputs.probs
    assert "out of vocabulary" in str(outputs[2].error)
    assert "Did you mean 'prompt'" in str(outputs[5].error)


def test_a_nan_for_one_prompt_is_an_error_of_that_prompt(bert: Path) -> None:
    llm = LLM(str(bert))
    embeddings = llm.model.get_input_embeddings()
    embeddings.weight.data[50] = float("nan")
    good, bad = llm.classify_iter([[2, 40, 41, 3], [2, 50, 41, 3]])
    assert good.error is None
    assert "NaN" in str(bad.error)


# -- weights and code --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    folder = tiny.classifier("bert", tmp_path / "model")
    name = "bert.encoder.layer.1.output.dense.weight"
    tensor = load_file(folder / "model.safetensors")[name]
    tensor[0, 0] = value
    edit_weights(folder, name, tensor)
    with pytest.raises(ModelError, match=name):
        LLM(str(folder))


def test_pickled_weights(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model")
    expected = LLM(str(folder)).classify("good")[0].outputs.probs
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pytorch_model.bin, a pickle.*--allow-pickle"):
        LLM(str(folder))
    assert LLM(str(folder), allow_pickle=True).classify("good")[0].outputs.probs == pytest.approx(expected)


def test_a_pickle_that_runs_code_is_refused_even_when_pickles_are_allowed(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    marker = tmp_path / "ran"
    torch.save({"x": _RunsCode(str(marker))}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        LLM(str(folder), allow_pickle=True)
    assert not marker.exists()


class _RunsCode:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (self.path, "w")


def test_remote_code(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model")
    edit_config(folder, model_type="of_its_own", auto_map={"AutoConfig": "configuration.Config"})
    (folder / "configuration.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="code of its own.*--trust-remote-code"):
        LLM(str(folder))


def test_remote_code_runs_when_trusted(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model")
    expected = LLM(str(folder)).classify("good")[0].outputs.logits
    (folder / "code_of_its_own.py").write_text(
        "from transformers import BertConfig, BertModel, BertForSequenceClassification\n"
        "class OwnConfig(BertConfig):\n    model_type = 'of_its_own'\n"
        "class OwnModel(BertModel):\n    config_class = OwnConfig\n"
        "class OwnForSequenceClassification(BertForSequenceClassification):\n    config_class = OwnConfig\n"
    )
    names = {
        "AutoConfig": "OwnConfig",
        "AutoModel": "OwnModel",
        "AutoModelForSequenceClassification": "OwnForSequenceClassification",
    }
    auto_map = {auto: f"code_of_its_own.{name}" for auto, name in names.items()}
    edit_config(folder, model_type="of_its_own", auto_map=auto_map, architectures=["OwnForSequenceClassification"])
    outputs = LLM(str(folder), trust_remote_code=True).classify("good")
    assert outputs[0].outputs.logits == pytest.approx(expected, abs=1e-5)


def test_an_unknown_architecture(tmp_path: Path) -> None:
    folder = tiny.classifier("bert", tmp_path / "model")
    edit_config(folder, model_type="unheard_of")
    with pytest.raises(ModelError, match="'unheard_of'.*write a plugin"):
        LLM(str(folder))


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        LLM(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match="has no config.json"):
        LLM(str(tmp_path))


# -- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["softmax", "activation", "normalize"])
def test_removed_pooling_params(name: str) -> None:
    with pytest.raises(ConfigError, match="use_activation"):
        PoolingParams(**{name: True})


def test_an_unknown_option_names_the_nearest(bert: Path) -> None:
    with pytest.raises(ConfigError, match="'max_modle_len'. Did you mean 'max_model_len'"):
        LLM(str(bert), max_modle_len=5)
    with pytest.raises(ConfigError, match="'use_activaton'. Did you mean 'use_activation'"):
        PoolingParams(use_activaton=True)
    with pytest.raises(ConfigError, match="'logit_bais'. Did you mean 'logit_bias'"):
        LLM(str(bert), pooler_config={"logit_bais": 1})


def test_an_option_of_vllm_without_meaning_here_warns_once(bert: Path) -> None:
    with pytest.warns(UserWarning, match="enforce_eager, gpu_memory_utilization") as caught:
        LLM(str(bert), enforce_eager=True, gpu_memory_utilization=0.5)
    assert len(caught) == 1


def test_a_sigma_of_zero(bert: Path) -> None:
    with pytest.raises(ConfigError, match="logit_sigma=0"):
        LLM(str(bert), pooler_config={"logit_sigma": 0})


def test_every_error_is_of_one_family() -> None:
    for name in ("ModelError", "PromptError", "ConfigError", "JobError", "PluginError"):
        assert issubclass(getattr(vllm_cls, name), vllm_cls.VclsError)
