"""Classify texts over HTTP, with `requests`.

vcls serve MODEL
python examples/online_classification.py --url http://127.0.0.1:8000 "A text" "Another"
"""

from __future__ import annotations

import argparse

import requests

TEXTS = ["Hello, my name is", "The president of the United States is", "The capital of France is"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default="")
    parser.add_argument("texts", nargs="*", default=TEXTS)
    given = parser.parse_args()

    headers = {"Authorization": f"Bearer {given.api_key}"} if given.api_key else {}
    model = requests.get(f"{given.url}/v1/models", headers=headers, timeout=30).json()["data"][0]["id"]
    body = {"model": model, "input": given.texts}
    response = requests.post(f"{given.url}/classify", json=body, headers=headers, timeout=60)
    response.raise_for_status()
    for text, each in zip(given.texts, response.json()["data"], strict=True):
        print(f"{text!r}: {each['label']}, {[round(prob, 4) for prob in each['probs']]}")


if __name__ == "__main__":
    main()
