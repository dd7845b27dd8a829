"""The page at /, as it is sent and as a browser shows it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

import vllm_cls.server
from tests.media.samples import encoded
from tests.models import tiny, vision
from vllm_cls import LLM
from vllm_cls.server import create_app

from ..conftest import LABELS, client_of
from ..served import served

CARD = """---
license: mit
---
# Film <b>critic</b>

Reads **reviews** and says `good` or `bad`. <img src=x onerror="document.title='owned'">

| label | F1 |
| --- | --- |
| good | 0.9 |

```sh
vcls serve film-critic
```
<script>document.title = "owned"</script>

- [a link](javascript:alert(1))
"""


@pytest.fixture(scope="module")
def critic(folders: Path) -> Iterator[LLM]:
    """A model with a card that wants to be HTML."""
    folder = tiny.classifier("bert", folders / "critic", id2label=LABELS, max_position_embeddings=256)
    (folder / "README.md").write_text(CARD)
    with LLM(str(folder), device="cpu") as llm:
        yield llm


def test_the_shell_is_open_and_holds_nothing_of_the_model(critic: LLM) -> None:
    with client_of(critic, api_keys=("secret",)) as client:
        shell = client.get("/")
        assert shell.status_code == 200 and shell.headers["content-type"] == "text/html; charset=utf-8"
        assert client.head("/").status_code == 200 and client.head("/").content == b""
        assert client.get("/model").status_code == 401
    for told in ("critic", *LABELS.values(), "license"):
        assert told not in re.sub(r"(?s)<(style|script)>.*?</\1>", "", shell.text)


def test_the_policy_allows_its_own_style_and_script_alone(critic: LLM) -> None:
    with client_of(critic) as client:
        shell = client.get("/")
    policy = dict(each.split(" ", 1) for each in shell.headers["content-security-policy"].split("; "))
    for kind in ("style", "script"):
        ((_, text),) = re.findall(rf"(?s)<({kind})>(.*?)</{kind}>", shell.text)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{kind}-src"] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert not re.search(r"""(?:src|href)="(?!data:,)|https?:|\bon\w+="|innerHTML|\bstyle=""", shell.text)


def test_what_the_model_is(critic: LLM, ranker: LLM, tagger: LLM, sees: LLM) -> None:
    with client_of(critic) as client:
        assert client.get("/model").json() == {
            "id": "critic", "task": "classify", "labels": list(LABELS.values()), "problem_type": None,
            "heads": [], "use_activation": True, "gives_probabilities": True, "scores": False, "decides": False,
            "takes_instruction": False, "modalities": [], "prompt_template": None,
            "chat_template_prompt": False,
            "max_model_len": critic.max_model_len, "card": CARD,
        }  # fmt: skip
        unknown = client.get("/model", params={"model": "other"})
        assert unknown.status_code == 404 and unknown.json()["error"]["param"] == "model"
    with client_of(ranker) as client:
        described = client.get("/model").json()
        assert described["scores"] is True and described["card"] is None
    with client_of(tagger) as client:
        assert client.get("/model").json()["task"] == "token_classify"
    with client_of(sees) as client:
        assert client.get("/model").json()["modalities"] == ["image", "video"]


def test_an_adapter_is_described_by_its_own_labels(llm: LLM, folders: Path) -> None:
    pytest.importorskip("peft")
    from tests.model.test_lora import train

    adapter = str(train(folders / "film-critic", folders / "one-label", ["query"], 1, seed=3))
    with client_of(llm, lora_modules={"stars": adapter}) as client:
        described = client.get("/model", params={"model": "stars"}).json()
    assert (described["id"], described["labels"], described["scores"]) == ("stars", ["LABEL_0"], True)


def shown(page: Any) -> list[tuple[str, str]]:
    """The labels with their values, in the order of the bars."""
    rows = page.locator("#results > .bars li")
    rows.first.wait_for()
    return [tuple(each.locator(f".{part}").inner_text() for part in ("label", "value")) for each in rows.all()]


def expected(llm: LLM, prompt: Any) -> list[tuple[str, str]]:
    scores = llm.classify([prompt])[0].outputs.scores
    return [(label, f"{100 * score:.1f} %") for label, score in sorted(scores.items(), key=lambda each: -each[1])]


def test_a_text_and_a_pair(critic: LLM, page: Any) -> None:
    with served(critic) as url:
        page.goto(url)
        page.locator("#name", has_text="critic").wait_for()
        assert (
            page.inner_text("#about")
            == f"Gives a text one of its labels · 3 labels · up to {critic.max_model_len} tokens"
        )
        page.fill("#text", "a good film <b>")
        page.keyboard.press("Control+Enter")
        assert shown(page) == expected(critic, "a good film <b>")
        assert re.fullmatch(r"[\d.]+ m?s · \d+ tokens", page.inner_text("#cost"))
        widths = [
            each.evaluate("e => e.offsetWidth / e.parentElement.offsetWidth") for each in page.locator(".fill").all()
        ]
        scores = sorted(critic.classify("a good film <b>")[0].outputs.probs, reverse=True)
        assert widths == pytest.approx(scores, abs=0.01)
        page.check("[value=pair]", force=True)
        page.fill("#text-pair", "the end")
        page.click("#go")  # which the button cannot be again before the answer is there
        page.locator("#go:enabled").wait_for()
        assert shown(page) == expected(critic, ("a good film <b>", "the end"))


def test_a_logit_is_no_share(folders: Path, page: Any) -> None:
    """Not even one between 0 and 1."""
    identity = {"activation_fn": "torch.nn.modules.linear.Identity"}
    folder = tiny.classifier("bert", folders / "raw", id2label=LABELS, sentence_transformers=identity)
    with LLM(str(folder), device="cpu") as llm, served(llm) as url:
        scores = llm.classify(["good"])[0].outputs.scores
        assert any(0 < score < 1 for score in scores.values())
        page.goto(url)
        page.locator("#name", has_text="raw").wait_for()
        page.fill("#text", "good")
        page.click("#go")
        ranked = sorted(scores.items(), key=lambda each: -each[1])
        assert shown(page) == [(label, f"{score:.4f}") for label, score in ranked]
        assert page.locator(".fill").count() == 0


def test_a_text_a_line(critic: LLM, page: Any) -> None:
    with served(critic) as url:
        page.goto(url)
        page.locator("#name", has_text="critic").wait_for()
        page.check("[value=lines]", force=True)
        page.fill("#text", "good\n\n  bad " + "bad " * 300 + "\n")
        page.click("#go")
        lines = page.locator(".line")
        lines.nth(1).wait_for()
        assert lines.first.locator(".said").inner_text() == "good"
        label, value = expected(critic, "good")[0]
        assert lines.first.locator("summary").inner_text().splitlines()[1:] == [label, value]
        assert "the text was cut" in page.inner_text("#cost")
        lines.first.click()
        assert lines.first.locator(".bars li").count() == 3
        page.fill("#text", " \n")
        page.click("#go")
        assert "no text" in page.inner_text("#error")


def test_a_key(critic: LLM, page: Any) -> None:
    with served(critic, api_keys=("secret",)) as url:
        page.goto(url)
        for key, told in (("wrong", "does not know this key"), ("secret", "")):
            page.locator("#key-form").wait_for()
            assert not page.is_visible("#ask")
            page.fill("#key", key)
            page.click("#key-form button")
            if told:
                page.locator("#error", has_text=told).wait_for()
        page.locator("#name", has_text="critic").wait_for()
        assert page.is_visible("#ask") and not page.is_visible("#key-form") and not page.is_visible("#error")
        page.reload()
        page.locator("#name", has_text="critic").wait_for()
        page.fill("#text", "good")
        page.click("#go")
        assert shown(page) == expected(critic, "good")


def test_the_card_is_text(critic: LLM, page: Any) -> None:
    with served(critic) as url:
        page.goto(url)
        page.locator("#card summary").click()
        card = page.locator("#card-text")
        assert card.locator("h2").inner_text() == "Film <b>critic</b>"
        assert card.locator("strong").inner_text() == "reviews" and card.locator("code").first.inner_text() == "good"
        assert [each.inner_text() for each in card.locator("th, td").all()] == ["label", "F1", "good", "0.9"]
        assert card.locator("pre").inner_text() == "vcls serve film-critic"
        assert card.locator("li").inner_text() == "a link (javascript:alert(1))"
        assert card.locator("img, script, a, b").count() == 0
        assert "license" not in card.inner_text()
        assert page.title() == "critic"


# Puts images of the page's own making into an event, as a browser does with those of a user.
HAND_OVER = """([name, text]) => {
  const files = new DataTransfer();
  files.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], "a.png", {type: "image/png"}));
  files.items.add(new File(["x"], "a.txt", {type: "text/plain"}));
  const event = name === "paste" ? new ClipboardEvent(name, {clipboardData: files, bubbles: true, cancelable: true})
    : new DragEvent(name, {dataTransfer: files, bubbles: true, cancelable: true});
  return !document.getElementById("text").dispatchEvent(event);
}"""


def test_images_are_chosen_dropped_and_pasted(sees: LLM, page: Any, tmp_path: Path) -> None:
    pictures = [vision.picture(24, 16, 0), vision.picture(40, 32, 1), vision.picture(16, 16, 2)]
    datas = [encoded(each) for each in pictures]
    (tmp_path / "a.png").write_bytes(datas[0])

    def wanted(numbers: list[int], text: str = "") -> list[tuple[str, str]]:
        parts = [{"type": "image", "image": pictures[number]} for number in numbers]
        content = [*parts, {"type": "text", "text": text}] if text else parts
        return expected(sees, {"messages": [{"role": "user", "content": content}]})

    def asked() -> list[tuple[str, str]]:
        page.click("#go")
        page.locator("#go:enabled").wait_for()
        return shown(page)

    with served(sees) as url:
        page.goto(url)
        page.locator("#name", has_text="seeing").wait_for()
        page.set_input_files("#image", tmp_path / "a.png")
        images = page.locator("#chosen img")
        images.nth(0).wait_for()
        assert asked() == wanted([0])
        for name, data in (("drop", datas[1]), ("paste", datas[2])):
            before = images.count()
            assert page.evaluate(
                HAND_OVER, [name, base64.b64encode(data).decode()]
            )  # not to be opened in place of the page
            images.nth(before).wait_for()
        assert images.count() == 3
        assert [each.evaluate("e => [e.naturalWidth, e.naturalHeight]") for each in images.all()] == [
            [24, 16],
            [40, 32],
            [16, 16],
        ]
        page.fill("#text", "What is it?")
        assert asked() == wanted([0, 1, 2], "What is it?")
        page.get_by_label("Remove image 2").click()
        assert asked() == wanted([0, 2], "What is it?")
        (tmp_path / "broken.png").write_bytes(datas[0][:60])
        page.set_input_files("#image", tmp_path / "broken.png")
        images.nth(2).wait_for()
        page.click("#go")
        page.locator("#error", has_text="the image is broken").wait_for()
        page.check("[value=lines]", force=True)
        assert not page.is_visible("#pictures")
        page.click("#go")  # the lines alone
        page.locator(".line").wait_for()


def test_a_model_of_texts_takes_no_images(critic: LLM, page: Any) -> None:
    with served(critic) as url:
        page.goto(url)
        page.locator("#name", has_text="critic").wait_for()
        assert not page.is_visible("#pictures")
        assert not page.evaluate(HAND_OVER, ["paste", base64.b64encode(b"x").decode()])
        assert page.locator("#chosen img").count() == 0 and page.evaluate("document.getElementById('text').required")


def test_light_and_dark(critic: LLM, page: Any) -> None:
    with served(critic) as url:
        page.goto(url)
        paper = "getComputedStyle(document.body).backgroundColor"
        page.emulate_media(color_scheme="light")
        light = page.evaluate(paper)
        page.emulate_media(color_scheme="dark")
        assert light == "rgb(251, 251, 250)" and page.evaluate(paper) == "rgb(20, 21, 24)"


def test_scores_and_tokens(ranker: LLM, tagger: LLM, page: Any) -> None:
    with served(ranker) as url:
        page.goto(url)
        page.locator("#name", has_text="ranker").wait_for()
        page.fill("#text", "what")
        page.fill("#text-pair", "a film")
        page.click("#go")
        (output,) = ranker.score("what", "a film")
        assert shown(page) == [("score", f"{100 * output.outputs.score:.1f} %")]
    with served(tagger) as url:
        page.goto(url)
        page.locator("#name", has_text="tagger").wait_for()
        page.fill("#text", "good film")
        page.click("#go")
        page.locator(".tokens").wait_for()
        assert page.locator(".tokens > *").count() == len(tagger.token_ids("good film")) - 2


TAGGED = " A lovely café 🎉 <b>in</b>\n\n Köln "


@pytest.fixture(scope="module")
def byte_tagger(folders: Path) -> Iterator[LLM]:
    """A tagger whose tokens are bytes: `Ġlovely`, and two of them in an é."""
    with LLM(str(tiny.token_classifier("roberta", folders / "byte-tagger")), device="cpu") as llm:
        yield llm


def pieces_of(llm: LLM, text: str) -> list[tuple[str, int]]:
    """What the page marks, with each one's best label: its tokens in the text, as transformers says where they stand."""
    tokenizer: Any = llm.get_tokenizer()
    encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    rows = llm.encode(text, pooling_task="token_classify")[0].outputs.data.argmax(dim=-1).tolist()
    found, done = [], 0
    places = zip(encoding["offset_mapping"], encoding["special_tokens_mask"], rows, strict=True)
    for (start, end), special, best in places:
        if not special and end > done:
            found.append((text[max(start, done) : end], best))
            done = end
    return found


def test_a_tagger_shows_the_text(byte_tagger: LLM, page: Any) -> None:
    with served(byte_tagger) as url:
        page.goto(url)
        page.locator("#name", has_text="byte-tagger").wait_for()
        page.fill("#text", TAGGED)
        page.click("#go")
        page.locator(".tokens").wait_for()
        without = "e => { e = e.cloneNode(true); e.querySelectorAll('small').forEach((s) => s.remove()); return e.textContent; }"
        assert page.locator(".tokens").evaluate(without) == TAGGED
        found = [
            (each.evaluate(without), each.locator("small").all_inner_texts())
            for each in page.locator(".tokens > *").all()
        ]
    expected = pieces_of(byte_tagger, TAGGED)
    assert [text for text, _ in found] == [text for text, _ in expected]
    labels = [byte_tagger.id2label[best] for _, best in expected]
    assert [told[0].split()[0] if told else "O" for _, told in found] == labels and len(set(labels)) > 1


def pieces_by_the_script(text: str, offsets: Any, rows: Any) -> list[dict[str, Any]]:
    """What the page's script makes of an answer, without a browser."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node")
    script = (Path(vllm_cls.server.__file__).parent / "page" / "app.js").read_text()
    (function,) = re.findall(r"(?ms)^function pieces\(.*?^}$", script)
    call = f"{function}; console.log(JSON.stringify(pieces(...JSON.parse(require('fs').readFileSync(0)))))"
    ran = subprocess.run(
        [node, "-e", call], input=json.dumps([text, offsets, rows]), capture_output=True, text=True, check=True
    )
    return list(json.loads(ran.stdout))


def test_the_script_cuts_the_text_by_what_the_server_says(byte_tagger: LLM) -> None:
    with client_of(byte_tagger) as client:
        body = {"input": TAGGED, "task": "token_classify", "offsets": True, "truncate_prompt_tokens": -1}
        (data,) = client.post("/pooling", json=body).json()["data"]
        (cut,) = client.post("/pooling", json={**body, "truncate_prompt_tokens": 6}).json()["data"]
    assert len(data["offsets"]) == len(data["data"]) and data["offsets"][0] is data["offsets"][-1] is None
    found = pieces_by_the_script(TAGGED, data["offsets"], data["data"])
    assert "".join(each["text"] for each in found) == TAGGED
    marked = [(each["text"], max(range(5), key=each["row"].__getitem__)) for each in found if each.get("row")]
    assert marked == pieces_of(byte_tagger, TAGGED)
    assert len(cut["offsets"]) == 6 and cut["offsets"][:-1] == data["offsets"][:5] and cut["offsets"][-1] is None
    found = pieces_by_the_script(TAGGED, cut["offsets"], cut["data"])
    assert "".join(each["text"] for each in found) == TAGGED and "row" not in found[-1]
    assert [each["text"] for each in pieces_by_the_script("ab", None, [[1], [2]])] == ["1", " ", "2", " "]


def test_mounted_in_another_app(critic: LLM, page: Any) -> None:
    outer = Starlette()
    outer.mount("/models/critic", create_app(critic))
    with TestClient(outer) as client:
        assert client.get("/models/critic/").status_code == 200
    with served(outer) as url:
        page.goto(f"{url}/models/critic/")
        page.locator("#name", has_text="critic").wait_for()


def test_a_server_that_has_gone(critic: LLM, page: Any) -> None:
    with served(critic) as url:
        page.goto(url)
        page.locator("#name", has_text="critic").wait_for()
    page.fill("#text", "good")
    page.click("#go")
    page.locator("#error", has_text="no answer").wait_for()
    assert page.is_enabled("#go")
