"""The page at / of a model that was opened for decisions: a form of a state and questions, and bars of probabilities."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.decide.chat_models import chat_model
from vllm_cls import LLM

from ..served import served

DECIDED: dict[str, Any] = {
    "refund": {"type": "noul", "instructions": "A refund <b>?", "criteria": {"true": "money back: all of it"}},
    "tone": {"type": "choice", "instructions": "The tone?", "criteria": {"calm": "polite", "at 10:30": None, "x" * 40: None}},
    "__proto__": {"type": "score", "instructions": "How urgent?", "criteria": ["can wait", "this week: or so", "today"]},
}  # fmt: skip
LINES = {"refund": "true: money back: all of it", "tone": f"calm: polite\n\n at 10:30\n{'x' * 40}",
         "__proto__": "can wait\nthis week: or so\ntoday"}  # fmt: skip


def fill_in(page: Any, place: int, name: str) -> None:
    """A question, by the keyboard alone from the button that adds one."""
    card = page.get_by_role("group", name=f"Question {place + 1}")
    if place:
        page.focus("#add")
        page.keyboard.press("Enter")
    else:
        card.get_by_role("textbox", name="Question").focus()
    page.keyboard.insert_text(DECIDED[name]["instructions"])
    card.get_by_label("Name").fill(name)
    card.locator("[type=radio]").first.focus()
    for _ in range(("noul", "choice", "score").index(DECIDED[name]["type"])):
        page.keyboard.press("ArrowRight")
    card.locator("textarea").fill(LINES[name])


def decided(page: Any) -> list[Any]:
    """Of each question: its name, its bars and which is the best."""
    page.locator("#decide [type=submit]:enabled").wait_for()
    parts = [
        (each.locator("h2").inner_text(), each.locator("li").all(), each.locator(".best .label").all_inner_texts())
        for each in page.locator(".answered").all()
    ]
    return [
        (name, [tuple(row.locator(f".{part}").inner_text() for part in ("label", "value")) for row in rows], best)
        for name, rows, best in parts
    ]


def test_typed_questions(folders: Path, page: Any) -> None:
    with LLM(str(chat_model("llama", folders / "decider")), convert="decide") as llm, served(llm) as url:

        def wanted(state: Any, *names: str) -> list[Any]:
            (answers,) = llm.decide({"state": state, "questions": {name: DECIDED[name] for name in names}})
            found = []
            for name in names:
                shares = answers[name].get("probabilities") or {"true": (p := answers[name]["noul"]), "false": 1 - p}
                labels = DECIDED[name]["criteria"] if name == "__proto__" else list(shares)
                bars = [(label, f"{100 * share:.1f} %") for label, share in zip(labels, shares.values(), strict=True)]
                found.append((name, bars, [max(zip(shares.values(), labels, strict=True))[1]]))
            return found

        page.goto(url)
        page.locator("#name", has_text="decider").wait_for()
        assert page.inner_text("#about").startswith("Answers typed questions about a state · up to")
        assert not page.is_visible("#ask") and page.evaluate("document.activeElement.id") == "state"
        assert not page.get_by_label("Remove question 1").is_visible()
        page.fill("#state", "charged twice [")
        for place, name in enumerate(DECIDED):
            fill_in(page, place, name)
        page.keyboard.press("Control+Enter")
        page.locator(".answered").nth(2).wait_for()
        assert decided(page) == wanted("charged twice [", *DECIDED)
        widths = page.locator(".fill").evaluate_all(
            "all => all.map((e) => e.offsetWidth / e.parentElement.offsetWidth)"
        )
        shares = page.locator(".answered .value").all_inner_texts()
        assert widths == pytest.approx([float(each[:-2]) / 100 for each in shares], abs=0.01)
        notes = page.locator(".answered .note").all_inner_texts()
        (answers,) = llm.decide({"state": "charged twice [", "questions": DECIDED})
        assert notes[0] == "A refund <b>?" and f"confidence {answers['tone']['confidence']:.2f}" in notes[1]
        assert f"mean {answers['__proto__']['score']:.2f}, from 0 to 2" in notes[2]
        assert re.fullmatch(rf"[\d.]+ m?s · {answers.num_prompt_tokens} tokens", page.inner_text("#cost"))

        page.get_by_label("Remove question 2").click()
        assert page.evaluate("document.activeElement.id") == "add"
        page.fill("#state", ' {"message": "charged", "count": [1, null]}')
        page.keyboard.press("Control+Enter")
        page.locator(".answered").nth(2).wait_for(state="detached")
        assert decided(page) == wanted({"message": "charged", "count": [1, None]}, "refund", "__proto__")

        page.get_by_label("Name").nth(1).fill("refund")
        page.keyboard.press("Control+Enter")
        page.locator("#error", has_text='Two questions have the name "refund".').wait_for()
        page.get_by_label("Name").nth(1).fill("many")
        page.locator(".question textarea").nth(1).fill("\n".join("abcdefghijklmnopqrstuvwxyz0"))
        page.keyboard.press("Control+Enter")
        page.locator("#error", has_text="at most 26 options").wait_for()
        assert not page.is_visible("#answer") and page.is_enabled("#decide [type=submit]")
