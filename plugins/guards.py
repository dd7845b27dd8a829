"""Published guard models: what they answer, and what their chat templates take, as their model cards have it."""

from __future__ import annotations

import re

from vllm_cls.head_source import Guard
from vllm_cls.hookspecs import hookimpl

# https://huggingface.co/Qwen/Qwen3Guard-Gen-0.6B
_QWEN3GUARD = (
    "Violent", "Non-violent Illegal Acts", "Sexual Content or Sexual Acts", "PII", "Suicide & Self-Harm", "Unethical Acts",
    "Politically Sensitive Topics", "Copyright Violation", "Jailbreak",
)  # fmt: skip
# https://huggingface.co/ibm-granite/granite-guardian-3.1-2b: those of a user's message
_GRANITE = ("harm", "social_bias", "jailbreak", "violence", "profanity", "sexual_content", "unethical_behavior")
# https://huggingface.co/google/shieldgemma-2b, of a user's message
SHIELDGEMMA = {
    "dangerous_content": (
        '"No Dangerous Content": The prompt shall not contain or seek generation of content that harming oneself and/or '
        "others (e.g., accessing or building firearms and explosive devices, promotion of terrorism, instructions for "
        "suicide)."
    ),
    "harassment": (
        '"No Harassment": The prompt shall not contain or seek generation of content that is malicious, intimidating, '
        "bullying, or abusive content targeting another individual (e.g., physical threats, denial of tragic events, "
        "disparaging victims of violence)."
    ),
    "hate_speech": (
        '"No Hate Speech": The prompt shall not contain or seek generation of content that targeting identity and/or '
        "protected attributes (e.g., racial slurs, promotion of discrimination, calls to violence against protected groups) "
        "or dehumanizing/belittling/vilifying on the bases of race, ethnicity, religion, disability, age, nationality, "
        "veteran status, sexual orientation, gender, gender identity, caste, or any other protected status. We do allow "
        "content that includes a reference to a protected individual or group in a positive manner."
    ),
    "sexually_explicit": (
        '"No Sexually Explicit Information": The prompt shall not contain or seek generation of content that contains '
        "references to sexual acts or other lewd content (e.g., sexually graphic descriptions, content aimed at causing "
        "arousal). Medical or scientific terms related to human anatomy or sex education are permitted."
    ),
}


def _llama_guard(template: str) -> Guard | None:
    """Of the versions 2 to 4, whose categories are S1, S2 …, as their templates list them."""
    if "UNSAFE CONTENT CATEGORIES" not in template or "<|start_header_id|>" not in template:
        return None
    numbers = list(dict.fromkeys(re.findall(r"\bS(\d+)\"?: ", template)))
    return Guard(
        "llama-guard",
        {"safe": "safe", "unsafe": "unsafe"},
        answer="\n\n",
        options={"add_generation_prompt": False},
        named={f"S{number}": number for number in numbers},
        names_after={"unsafe": "unsafe\nS"},
    )


def _qwen3guard(template: str) -> Guard | None:
    if "'Safety: Safe', 'Safety: Unsafe', 'Safety: Controversial'" not in template.replace("\\'", "'"):
        return None
    return Guard(
        "qwen3guard",
        {label: f" {label}" for label in ("Safe", "Unsafe", "Controversial")},
        answer="Safety:",
        options={"add_generation_prompt": False},
        named={name: f" {name}" for name in _QWEN3GUARD if name in template},
        names_after={label: f" {label}\nCategories:" for label in ("Unsafe", "Controversial")},
    )


def _granite_guardian(template: str) -> Guard | None:
    """Of the versions 3.0 to 3.2, which answer Yes or No; 3.3 writes a score."""
    if "guardian_config" not in template or "'Yes' or 'No'" not in template.replace("\\'", "'"):
        return None
    return Guard(
        "granite-guardian",
        {"No": "No", "Yes": "Yes"},
        options={"add_generation_prompt": True},
        asked={risk: {"guardian_config": {"risk_name": risk}} for risk in _GRANITE if risk in template},
    )


def _shieldgemma(template: str) -> Guard | None:
    if "guideline" not in template or "policy expert" not in template:
        return None
    return Guard(
        "shieldgemma",
        {"No": "No", "Yes": "Yes"},
        options={"add_generation_prompt": False, "guideline": "\n* ".join(SHIELDGEMMA.values())},
        asked={category: {"guideline": guideline} for category, guideline in SHIELDGEMMA.items()},
    )


@hookimpl(trylast=True)
def vcls_guards(chat_template: str) -> Guard | None:
    found = (each(chat_template) for each in (_llama_guard, _qwen3guard, _granite_guardian, _shieldgemma))
    return next((each for each in found if each is not None), None)
