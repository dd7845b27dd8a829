"""Ask /classify, /pooling and /score through OpenAI's client, which sends any request to any route.

vcls serve MODEL
python examples/openai_pooling_client.py --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
from typing import Any

import openai


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default="none", help="OpenAI's client wants one, even where the server does not.")
    given = parser.parse_args()

    with openai.OpenAI(base_url=f"{given.url}/v1", api_key=given.api_key) as client:
        model = client.models.list().data[0].id
        # Paths that begin with http are taken as they are; these routes are not below /v1.
        classified: Any = client.post(f"{given.url}/classify", body={"model": model, "input": "A text"}, cast_to=object)
        print("classify:", classified["data"][0])

        body = {"model": model, "input": "A text", "encoding_format": "float"}
        pooled: Any = client.post(f"{given.url}/pooling", body=body, cast_to=object)
        print("pooling:", pooled["data"][0]["data"])

        try:
            client.post(f"{given.url}/classify", body={"model": model, "input": []}, cast_to=object)
        except openai.BadRequestError as error:
            print("an error:", error.body)


if __name__ == "__main__":
    main()
