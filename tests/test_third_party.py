"""A plugin in a distribution of its own does what the built-in ones do: convert, save, reload, run."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TOY = HERE / "third_party" / "vcls_toy"
GUIDE = HERE.parent / "docs" / "plugins.md"


def run(
    command: Sequence[str | Path], cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    # An environment of its own: nothing but the virtual environment says what is importable.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VCLS", "COV"))}
    clean |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | (env or {})
    return subprocess.run([str(part) for part in command], cwd=cwd, env=clean, capture_output=True, text=True)


def succeed(command: Sequence[str | Path], cwd: Path) -> str:
    done = run(command, cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def vcls(python: Path | str, *arguments: str | Path) -> list[str | Path]:
    return [python, "-c", "from vllm_cls.cli.main import main; main()", *arguments]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("third_party")


@pytest.fixture(scope="module")
def python(place: Path) -> Path:
    """Python of a virtual environment that has the wheel of vcls-toy, and sees what this one has."""
    shutil.copytree(TOY, place / "source", ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    succeed([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", "wheels", "./source"], place)
    (wheel,) = (place / "wheels").glob("vcls_toy-*.whl")
    succeed([sys.executable, "-m", "venv", "--without-pip", "env"], place)
    python = place / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    packages = Path(succeed([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], place).strip())
    outer = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (packages / "outer.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in outer))
    succeed([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], place)
    return python


@pytest.fixture(scope="module")
def converted(python: Path, place: Path) -> Path:
    """A toy language model made there, and converted there by the command."""
    succeed([python, HERE / "third_party" / "make_model.py", "model"], place)
    succeed(
        vcls(python, "convert", "model", "out", "--head", "random", "--seed", "0", "--num-labels", "3"),
        place,
    )
    return place / "out"


def test_it_is_installed_only_there(python: Path, place: Path) -> None:
    assert "site-packages" in succeed([python, "-c", "import vcls_toy; print(vcls_toy.__file__)"], place)
    assert run([sys.executable, "-c", "import vcls_toy"], place).returncode != 0


def test_plugins_lists_it_beside_the_built_in_ones(python: Path, place: Path) -> None:
    listed = succeed(vcls(python, "plugins", "list"), place)
    assert "vcls-toy" in listed and "qwen2" in listed


def test_the_conversion_is_an_ordinary_checkpoint(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    assert config["model_type"] == "toy"
    assert config["architectures"] == ["ToyForSequenceClassification"]
    assert len(config["id2label"]) == 3


def test_convert_save_reload_and_run(python: Path, place: Path, converted: Path) -> None:
    answer = json.loads(succeed([python, HERE / "third_party" / "check_model.py", converted], place).splitlines()[-1])
    assert answer["llm"] < 1e-4, "LLM.classify differs from backbone and score computed directly"
    assert answer["load_classifier"] < 1e-4
    assert answer["auto_class"] < 1e-4
    assert answer["saved_again"] < 1e-4
    assert answer["execution"] == "packed"


def test_classify_runs_it_over_a_file(python: Path, place: Path, converted: Path) -> None:
    (place / "texts.txt").write_text("one\nanother text\n")
    succeed(vcls(python, "classify", converted, "texts.txt", "-o", "rows.jsonl"), place)
    rows = [json.loads(line) for line in (place / "rows.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["one", "another text"]
    assert all(sum(row["probs"]) == pytest.approx(1) for row in rows)


def test_without_the_plugin_the_error_says_which_to_write(converted: Path, place: Path) -> None:
    done = run(vcls(sys.executable, "inspect", converted), place)
    assert done.returncode == 1
    assert "'toy'" in done.stderr and "plugin" in done.stderr and "model_types" in done.stderr
    assert "Traceback" not in done.stderr


def test_vcls_plugins_can_leave_it_out(python: Path, converted: Path, place: Path) -> None:
    done = run(vcls(python, "inspect", converted), place, {"VCLS_PLUGINS": "qwen2,generic,heads,checkpoint"})
    assert done.returncode == 1
    assert "'toy'" in done.stderr


ROWS = [("a good film", "good"), ("very good", "good"), ("a bad film", "bad"), ("so bad", "bad"), ("it is", "neither")]


@pytest.fixture(scope="module")
def train(place: Path) -> Path:
    path = place / "train.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS))
    return path


def test_its_head_takes_labelled_rows_and_an_option_of_its_own(
    python: Path, place: Path, converted: Path, train: Path
) -> None:
    """The weights are those that its model gives directly, by the command and from Python, each in a process of its own."""
    head = ("--head", "nearest-mean", "--train", train)
    succeed(vcls(python, "convert", "model", "by-command", *head, "--sharpness", "3"), place)
    code = (
        "import vllm_cls; vllm_cls.convert('model', 'by-python', head='nearest-mean', train='train.jsonl', sharpness=3)"
    )
    succeed([python, "-c", code], place)
    check = HERE / "third_party" / "check_head.py"
    for folder in ("by-command", "by-python"):
        answer = json.loads(succeed([python, check, "model", folder, train, "3"], place).splitlines()[-1])
        assert answer["labels"] == ["bad", "good", "neither"]
        assert answer["weight"] < 1e-5 and answer["bias"] < 1e-5
    card = (place / "by-command" / "README.md").read_text()
    assert "how near a text is" in card and "The mean states of 5 rows of `train.jsonl`." in card
    succeed(vcls(python, "convert", "model", "plain", *head, "--no-lengths"), place)
    answer = json.loads(succeed([python, check, "model", "plain", train, "1"], place).splitlines()[-1])
    assert answer["weight"] < 1e-5 and answer["bias"] is None


def test_a_head_in_a_module_that_help_does_not_load(python: Path, place: Path, converted: Path) -> None:
    """`constant` is in a module that loads torch: it is found when --head names it."""
    options = ("--head", "constant", "--labels", "a,b", "--weight", "0.25")
    succeed(vcls(python, "convert", "model", "constant", *options), place)
    code = "from safetensors.torch import load_file; print(load_file('constant/model.safetensors')['score.weight'].unique())"
    assert succeed([python, "-c", code], place).strip() == "tensor([0.2500])"
    assert "--weight X" in succeed(vcls(python, "convert", "--head", "constant", "--help"), place)


def test_help_shows_its_head_without_loading_its_model(python: Path, place: Path) -> None:
    code = (
        "import sys\nfrom vllm_cls.cli.main import vcls\n"
        "vcls.main(['convert', '--help'], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers', 'vcls_toy'} & set(sys.modules)))"
    )
    shown = succeed([python, "-c", code], place)
    assert shown.splitlines()[-1] == "[]"
    options = shown[shown.index("Options of --head nearest-mean:") :]
    assert re.search(r"--sharpness N +Factor of the logits, at least 1.\s+\[default: 1\]", options)
    assert "--lengths / --no-lengths" in options
    examples, summaries = shown.split("Where each comes from:")
    assert "vcls convert my-toy-model my-classifier --head nearest-mean" in examples
    assert re.search(r"nearest-mean +the mean states of the rows of --train, by label", summaries)


REFUSED = {
    "--head nearest-mean": (1, "--head nearest-mean needs --train FILE with labelled rows."),
    "--head nearest-mean --train train.jsonl --sharpness x": (2, "'--sharpness': 'x' is not a valid int"),
    "--head nearest-mean --train train.jsonl --sharpness 0": (1, "--sharpness 0 must be at least 1"),
    "--head nearest-mean --train train.jsonl --sharpnes 3": (2, "'--sharpnes'. Did you mean '--sharpness'?"),
    "--head random --num-labels 2 --sharpness 3": (1, "--sharpness belongs to --head nearest-mean, not to random;"),
    "--head random --num-labels 2 --weight 3": (1, "--weight belongs to --head constant, not to random;"),
    "--head random --train train.jsonl": (1, "--train belongs to --head fit or nearest-mean, not to random;"),
    "--head nearest-mean --label-tokens a,b": (
        1,
        "--label-tokens belongs to --head tokens or two-way or sequence, not",
    ),
    "--head nearest-men --sharpness 3": (1, "random, constant, nearest-mean. Did you mean 'nearest-mean'?"),
    "--dtype float32": (1, "--head fit|tokens|two-way|sequence|file|random|constant|nearest-mean."),
}


def test_what_is_wrong_with_an_option_is_told(python: Path, place: Path, converted: Path, train: Path) -> None:
    code = """
import contextlib, io, json, sys
from vllm_cls.cli.main import vcls
for options in sys.argv[1:]:
    with contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            vcls.main(["convert", "model", "refused", *options.split()])
        except SystemExit as end:
            print(json.dumps([end.code, " ".join(told.getvalue().split())]))
"""
    answers = [json.loads(line) for line in succeed([python, "-c", code, *REFUSED], place).splitlines()]
    for (options, (code, told)), (found, message) in zip(REFUSED.items(), answers, strict=True):
        assert found == code and told in message, (options, message)
        assert "Traceback" not in message
    assert not (place / "refused").exists()


def test_python_tells_it_too(python: Path, place: Path, converted: Path, train: Path) -> None:
    code = """
import sys, vllm_cls
for options in ({"sharpness": "3"}, {"sharpness": True}, {"lengths": 1}, {"sharpnes": 3}, {"weight": 1.0}):
    try:
        vllm_cls.convert("model", "refused", head="nearest-mean", train="train.jsonl", **options)
    except vllm_cls.ConfigError as error:
        print(error)
"""
    assert succeed([python, "-c", code], place).splitlines() == [
        "--sharpness '3' is not a whole number.",
        "--sharpness True is not a whole number.",
        "--lengths 1 is not true or false.",
        "there is no option 'sharpnes'. Did you mean 'sharpness'?",
        "--weight belongs to --head constant, not to nearest-mean; leave one of them out.",
    ]


def test_its_pooling_method_is_one_as_ours_are(python: Path, place: Path, converted: Path, train: Path) -> None:
    """By `--pooling` in any case, and by `PoolerConfig`; each in a process of its own."""
    head = ("--head", "nearest-mean", "--train", train)
    succeed(vcls(python, "convert", "model", "by-median", *head, "--pooling", "MEDIAN"), place)
    config = json.loads((place / "by-median" / "config.json").read_text())
    assert (config["architectures"], config["vcls"]["pooling"]) == (["ToyForSequenceClassification"], "median")
    check = HERE / "third_party" / "check_pooling.py"
    answer = json.loads(succeed([python, check, converted, place / "by-median"], place).splitlines()[-1])
    assert len(answer) == 4 and max(answer.values()) < 1e-4, answer


def test_a_pooling_that_nobody_has_is_told_with_the_names_of_plugins(
    python: Path, place: Path, converted: Path
) -> None:
    done = run(vcls(python, "convert", "model", "refused", "--head", "random", "--pooling", "medain"), place)
    assert done.returncode == 2 and "'medain' is not one of 'cls', 'last', 'mean', 'median'" in " ".join(
        done.stderr.split()
    )
    code = """
import vllm_cls
for refused in (lambda: vllm_cls.PoolerConfig(pooling_type="medain"),
                lambda: vllm_cls.PoolerConfig(seq_pooling_type="ALL"),
                lambda: vllm_cls.convert("model", "refused", head="random", num_labels=2, pooling="medain")):
    try:
        refused()
    except vllm_cls.ConfigError as error:
        print(error)
"""
    assert succeed([python, "-c", code], place).splitlines() == [
        "PoolerConfig.pooling_type='medain' is unknown; use one of CLS, LAST, MEAN, median, ALL, STEP.",
        "PoolerConfig.seq_pooling_type='ALL' is unknown; use one of CLS, LAST, MEAN, median.",
        "--pooling 'medain' is unknown; use cls, last, mean or median.",
    ]


def test_the_guide_shows_the_code_that_runs_here() -> None:
    blocks = re.findall(r"^```(python|toml)\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    files = (TOY / "vcls_toy.py", TOY / "vcls_toy_heads.py", HERE / "decide" / "families.py")
    python = "".join(file.read_text() for file in files)
    sources = {"python": python, "toml": (TOY / "pyproject.toml").read_text()}
    assert len(blocks) >= 4
    for language, block in blocks:
        assert block in sources[language], f"docs/plugins.md shows code that vcls_toy does not have:\n{block}"
