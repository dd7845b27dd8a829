"""Put documents in the order of their relevance, with Cohere's client.

vcls serve RERANKER
python examples/cohere_rerank_client.py --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse

import cohere

QUERY = "What is the capital of France?"
DOCUMENTS = [
    "The capital of Brazil is Brasilia.",
    "The capital of France is Paris.",
    "Horses and cows are both animals",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--api-key", default="none", help="Cohere's client wants one, even where the server does not.")
    parser.add_argument("--model", default="", help="A name that the server knows; none is its own model.")
    given = parser.parse_args()

    client = cohere.ClientV2(api_key=given.api_key, base_url=given.url)
    answer = client.rerank(model=given.model, query=QUERY, documents=DOCUMENTS, top_n=2)
    for each in answer.results:
        print(f"{each.relevance_score:.4f}  {DOCUMENTS[each.index]}")


if __name__ == "__main__":
    main()
