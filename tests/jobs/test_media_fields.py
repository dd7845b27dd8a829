"""`--image-field` and `--video-field`: what cells hold, in files of every format, and what a broken one costs."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow
import pyarrow.parquet
import pytest

import vllm_cls
from tests.media.samples import encoded, greys, video
from tests.models import tiny, vision
from tests.server.conftest import client_of
from vllm_cls import LLM, Client, ConfigError, JobError, classify_file
from vllm_cls.errors import PromptError
from vllm_cls.jobs.media_fields import items_in
from vllm_cls.jobs.rows import PromptFields

IMAGE, VIDEO = vision.IMAGE, vision.VIDEO
PICTURES = [vision.picture(24, 16, 0), vision.picture(40, 32, 1)]
PNGS = [encoded(each) for each in PICTURES]
TEXTS = [base64.b64encode(each).decode() for each in PNGS]
FILM = video(greys(9, 32, 16), rate=2)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vision.qwen2_5_vl(tmp_path_factory.mktemp("vision") / "lm")


@pytest.fixture(scope="module")
def llm(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    out = tmp_path_factory.mktemp("vision") / "out"
    vllm_cls.convert(str(source), out, head="random", num_labels=3, seed=0)
    with LLM(str(out), dtype="float32", limit_mm_per_prompt={"image": 3}) as llm:
        yield llm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the rows' files are, beside the images."""
    for name, data in (("a.png", PNGS[0]), ("b.png", PNGS[1]), ("film.mp4", FILM), ("broken.png", PNGS[0][:80])):
        (tmp_path / name).write_bytes(data)
    return tmp_path


def classified(llm: Any, path: Path, **options: Any) -> list[dict[str, Any]]:
    out = path.parent / "out.jsonl"
    classify_file(llm, path, out, keep_fields="none", overwrite=True, **options)
    return [json.loads(line) for line in out.read_text().splitlines()]


def probs(llm: LLM, text: str, **data: Any) -> Any:
    (found,) = llm.classify({"prompt": text, "multi_modal_data": data})
    return pytest.approx(found.outputs.probs, abs=1e-5)


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_json_lines(llm: LLM, folder: Path) -> None:
    rows = [
        {"text": "good", "image": "a.png"},
        {"text": "good", "image": str(folder / "b.png")},
        {"text": "good", "image": TEXTS[0]},
        {"text": "good", "image": "data:image/png;base64," + TEXTS[1]},
        {"text": "good", "image": {"bytes": None, "path": "a.png"}},
        {"text": "good", "image": {"base64": TEXTS[1]}},
        {"text": "good", "image": (folder / "a.png").as_uri()},
        {"text": "good", "image": ["a.png", TEXTS[1]]},
        {"image": "b.png"},
        {"text": f"this {IMAGE} is", "image": "b.png"},
        {"text": "good", "image": []},
        {"text": "good", "image": None},
        {"text": "good", "image": ""},
        {"text": None, "image": None},
        {"text": "good"},
    ]
    answers = classified(llm, lines(folder / "in.jsonl", *rows), image_field="image")
    found = [row["probs"] for row in answers]
    first, second = (probs(llm, IMAGE + "good", image=each) for each in PICTURES)
    assert first != second.expected
    assert found[:7] == [first, second, first, second, first, second, first]
    assert found[7] == probs(llm, IMAGE + IMAGE + "good", image=PICTURES)
    assert found[8] == probs(llm, IMAGE, image=PICTURES[1])
    assert found[9] == probs(llm, f"this {IMAGE} is", image=PICTURES[1])
    assert found[10:13] == [pytest.approx(llm.classify("good")[0].outputs.probs, abs=1e-5)] * 3  # a text alone
    assert [row["error"].partition(";")[0] for row in answers[13:]] == ["the field 'text' is null", "no field 'image'"]


def test_a_place_without_its_image_costs_the_row(llm: LLM, folder: Path) -> None:
    """Else the placeholder is read as a token of the text, and the row gets a label that looks like any other."""
    rows = [{"text": f"this {IMAGE} is", "image": each} for each in (None, "", [], "a.png")]
    answers = classified(llm, lines(folder / "in.jsonl", *rows), image_field="image")
    assert ["has 1 places for images" in (row.get("error") or "") for row in answers] == [True] * 3 + [False]


def test_paths_begin_at_the_folder_of_their_file(llm: LLM, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "a.png").write_bytes(PNGS[1])
    monkeypatch.chdir(folder)
    rows = [lines(folder / name, {"text": "x", "image": "a.png"}) for name in ("in.jsonl", "other/in.jsonl")]
    classify_file(llm, ["in.jsonl", str(rows[1])], "out.jsonl", image_field="image", overwrite=True)
    found = [json.loads(line)["probs"] for line in (folder / "out.jsonl").read_text().splitlines()]
    assert found == [probs(llm, IMAGE + "x", image=each) for each in PICTURES]


def test_csv(llm: LLM, folder: Path) -> None:
    (folder / "in.csv").write_text('text,image\nx,a.png\nx,"[""a.png"", ""b.png""]"\nx,\n,b.png\n')
    found = classified(llm, folder / "in.csv", image_field="image")
    assert found[0]["probs"] == probs(llm, IMAGE + "x", image=PICTURES[0])
    assert found[1]["probs"] == probs(llm, IMAGE + IMAGE + "x", image=PICTURES)
    assert found[2]["probs"] == pytest.approx(llm.classify("x")[0].outputs.probs, abs=1e-5)
    assert found[3]["probs"] == probs(llm, IMAGE, image=PICTURES[1])


@pytest.mark.parametrize("form", ["bytes", "struct", "list of structs"])
def test_parquet(llm: LLM, folder: Path, form: str) -> None:
    """As Hugging Face data sets write images."""
    cells: list[Any] = list(PNGS)
    if form != "bytes":
        cells = [{"bytes": each, "path": "name.png"} for each in PNGS]
    if form == "list of structs":
        cells = [[each] for each in cells]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells, "text": ["x", "x"]}), folder / "in.parquet")
    found = [row["probs"] for row in classified(llm, folder / "in.parquet", image_field="image")]
    assert found == [probs(llm, IMAGE + "x", image=each) for each in PICTURES]
    for name in ("out.parquet", "out.jsonl", "out.csv"):
        report = classify_file(llm, folder / "in.parquet", folder / name, image_field="image", overwrite=True)
        assert report.failed == 0, report.failures
    kept = pyarrow.parquet.read_table(folder / "out.parquet").to_pylist()
    assert [row["image"] for row in kept] == cells


def test_videos(llm: LLM, folder: Path) -> None:
    rows = [
        {"text": "x", "film": "film.mp4"},
        {"text": "x", "film": base64.b64encode(FILM).decode()},
        {"text": "x", "film": ["film.mp4"], "image": "a.png"},
    ]
    found = classified(llm, lines(folder / "in.jsonl", *rows), video_field="film")
    assert [row["probs"] for row in found] == [probs(llm, VIDEO + "x", video=FILM)] * 3
    both = classified(llm, lines(folder / "in.jsonl", rows[2]), video_field="film", image_field="image")
    assert both[0]["probs"] == probs(llm, IMAGE + VIDEO + "x", video=FILM, image=PICTURES[0])


def test_a_broken_one_costs_its_row(llm: LLM, folder: Path) -> None:
    good = {"text": "x", "image": "a.png"}
    bad = {
        "broken.png": "the image is broken",
        "none.png": "cannot be read: No such file",
        "in.jsonl": "what is no image",
        "http://other.test/a": "host 'other.test' is not allowed",
        " ": "the field 'image' holds an empty text",
        "[1": "is not a JSON list",
    }
    wrong: list[Any] = [7, {"pixels": 1}, [None], ["a.png", "broken.png"], ["a.png"] * 4, True]
    said = [
        "holds int",
        "holds dict",
        "holds NoneType",
        "image 2 of 2: the image is broken",
        "4 items",
        "holds bool",
    ]
    rows = [{"text": "x", "image": each} for each in [*bad, *wrong]] + [{"text": "x"}]
    path = lines(folder / "in.jsonl", *(each for row in rows for each in (row, good)))
    found = classified(llm, path, image_field="image")
    assert len(found) == 2 * len(rows)
    for row, message in zip(found[::2], [*bad.values(), *said, "no field 'image'"], strict=True):
        assert message in row["error"] and row["probs"] is None
    assert [row["probs"] for row in found[1::2]] == [probs(llm, IMAGE + "x", image=PICTURES[0])] * len(rows)


def test_with_the_chat_template(source: Path, folder: Path) -> None:
    vllm_cls.convert(str(source), folder / "m", head="random", num_labels=2, seed=0, chat_template_prompt=True)
    with LLM(str(folder / "m"), dtype="float32") as llm:
        path = lines(folder / "in.jsonl", {"text": "x", "image": ["a.png", "b.png"]}, {"image": "a.png"})
        found = classified(llm, path, image_field="image")
        parts = [{"type": "image", "image": each} for each in PICTURES]
        chat = [[*parts, {"type": "text", "text": "x"}], parts[:1]]
        options = {"add_generation_prompt": True}
        wanted = llm.classify(
            [{"messages": [{"role": "user", "content": each}], "chat_template_kwargs": options} for each in chat]
        )
    assert [row["probs"] for row in found] == [pytest.approx(each.outputs.probs, abs=1e-5) for each in wanted]


def test_with_a_stored_template(source: Path, folder: Path) -> None:
    template = f"See {IMAGE}: {{text}}"
    vllm_cls.convert(str(source), folder / "m", head="random", num_labels=2, seed=0, prompt_template=template)
    with LLM(str(folder / "m"), dtype="float32") as llm:
        cells = ("a.png", ["a.png", "b.png"], None)
        path = lines(folder / "in.jsonl", *({"text": "x", "image": each} for each in cells))
        first, *others = classified(llm, path, image_field="image")
        assert ["has 1 places for images" in each["error"] for each in others] == [True, True]
    with LLM(str(folder / "m"), dtype="float32", use_template=False) as llm:
        assert first["probs"] == probs(llm, f"See {IMAGE}: x", image=PICTURES[0])


def test_a_head_is_fitted_on_images(source: Path, folder: Path) -> None:
    """Rows that differ in their images alone."""
    rows = []
    for number in range(24):
        name, label = f"{number}.png", ("dark", "light")[number % 2]
        low = 128 * (number % 2)
        picture = vision.picture(16, 16, number).point(lambda value, low=low: low + value // 4)
        (folder / name).write_bytes(encoded(picture))
        rows.append({"image": name, "label": label})
    path = lines(folder / "train.jsonl", *rows)
    report = vllm_cls.convert(
        str(source), folder / "m", head="fit", train=str(path), image_field="image", labels=["dark", "light"]
    )
    assert report.report["rows"] == 24
    with LLM(str(folder / "m"), dtype="float32") as llm:
        measured = classify_file(
            llm, path, folder / "out.jsonl", image_field="image", label_field="label", overwrite=True
        )
    assert measured.metrics is not None and measured.metrics.accuracy > 0.9


def test_models_and_columns_that_do_not_go_with_it(llm: LLM, source: Path, folder: Path) -> None:
    path = lines(folder / "in.jsonl", {"text": "x", "image": "a.png", "text2": "y"})
    with LLM(str(tiny.classifier("qwen2", folder / "m"))) as texts, pytest.raises(ConfigError, match="reads texts"):
        classified(texts, path, image_field="image")
    for options in ({"text_pair_field": "text2"}, {"messages_field": "text"}):
        with pytest.raises(ConfigError, match="go with one text"):
            classified(llm, path, image_field="image", **options)
    (folder / "in.csv").write_text("text,image\nx,a.png\n")
    with pytest.raises(JobError, match="no field 'picture'"):
        classified(llm, folder / "in.csv", image_field="picture")


@pytest.fixture(scope="module")
def chats(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """A model whose prompts are chats."""
    out = tmp_path_factory.mktemp("chats") / "m"
    vllm_cls.convert(str(source), out, head="random", num_labels=2, seed=0, chat_template_prompt=True)
    with LLM(str(out), dtype="float32") as llm:
        yield llm


def asking(server: Any) -> Client:
    """A client of a server in this process."""

    def answered(request: httpx.Request) -> httpx.Response:
        found = server.request(request.method, str(request.url), content=request.content, headers=dict(request.headers))
        return httpx.Response(found.status_code, content=found.content)

    return Client("http://testserver", transport=httpx.MockTransport(answered))


def test_a_servers_model_gives_the_same_file(chats: LLM, folder: Path) -> None:
    (folder / "large.png").write_bytes(bytes(1 << 19))
    (folder / "huge.png").write_bytes(b"")
    os.truncate(folder / "huge.png", (64 << 20) + 1)  # a hole, which takes no room
    rows = [
        {"text": "x", "image": "a.png"}, {"text": "x", "image": TEXTS[1]}, {"image": ["b.png", "a.png"]}, {"text": "only"},
        {"text": "x", "image": None}, {"text": "y", "image": PNGS[1].hex()}, {"text": "z", "image": "a.png", "film": "film.mp4"},
        {"text": "x", "image": "broken.png"}, {"text": "x", "image": "large.png"}, {"text": "x", "image": "huge.png"},
    ]  # fmt: skip
    path = lines(folder / "in.jsonl", *({"film": None, **row} for row in rows))
    here = classified(chats, path, image_field="image", video_field="film")
    with client_of(chats, max_body_bytes=1 << 19) as server:
        there = classified(asking(server), path, image_field="image", video_field="film")
    assert [each.get("error") is None for each in here] == [each.get("error") is None for each in there]
    good = [index for index, each in enumerate(here) if each.get("error") is None]
    assert good == [0, 1, 2, 4, 6]
    for index in good:
        assert there[index]["probs"] == pytest.approx(here[index]["probs"], abs=1e-5)
    said = [each.get("error") or "" for each in there]
    assert "no field 'image'" in said[3] and "image: " in said[5]
    assert "the image is broken" in said[7] and "524288 bytes" in said[8].replace(",", "")
    assert said[9].startswith("image: more than the 67,108,864 bytes allowed")


def test_a_servers_model_whose_prompts_are_no_chats(llm: LLM, folder: Path) -> None:
    path = lines(folder / "in.jsonl", {"text": "x", "image": "a.png"})
    with (
        client_of(llm) as server,
        pytest.raises(ConfigError, match="sent as chats, and the prompts of the server's model"),
    ):
        classified(asking(server), path, image_field="image")


def test_options_of_media_reach_the_model(llm: LLM, source: Path, folder: Path) -> None:
    vllm_cls.convert(str(source), folder / "m", head="random", num_labels=2, seed=0)
    (folder / "inner").mkdir()
    path = lines(folder / "in.jsonl", {"text": "x", "image": "a.png"})
    (row,) = classified(str(folder / "m"), path, image_field="image", allowed_local_media_path=str(folder / "inner"))
    assert "is not a file under" in row["error"]


@pytest.mark.parametrize(
    ("value", "items"),
    [
        ("a.png", ["in/a.png"]),
        ("/a.png", ["/a.png"]),
        ("https://x.test/a", ["https://x.test/a"]),
        ("/9j/" + "A" * 96, [{"base64": "/9j/" + "A" * 96}]),
        ("/9j/a.jpg", ["/9j/a.jpg"]),
        ("B" * 100, ["in/" + "B" * 100]),
        ('["a", "b"]', ["in/a", "in/b"]),
        ({"bytes": b"x", "path": "a"}, [{"bytes": b"x", "path": "in/a"}]),
        ({"bytes": b"x", "path": None}, [{"bytes": b"x", "path": None}]),
        (b"x", [b"x"]),
    ],
)
def test_cells(value: Any, items: list[Any]) -> None:
    assert items_in("image", value, "in") == items


def test_a_prompt_without_media_needs_its_text() -> None:
    fields = PromptFields(image="image")
    with pytest.raises(PromptError, match="no field 'text'"):
        fields.prompt({"image": []})
    assert fields.prompt({"image": "a"}) == {
        "fields": {"image": "a"}, "multi_modal_data": {"image": ["a"]}, "prompt": ""
    }  # fmt: skip
