"""Which class a config has does not depend on what the process has loaded before."""

from __future__ import annotations

import subprocess
import sys

_CODE = """
from transformers import CONFIG_MAPPING
from vllm_cls.adapters.classifiers.families import text_class
print(text_class(CONFIG_MAPPING["mllama_text_model"]).__name__)
"""


def test_a_text_model_within_another_is_found_in_a_fresh_process() -> None:
    done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "MllamaTextModel", done.stderr[-500:]
