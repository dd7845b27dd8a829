"""The Dockerfile, which nothing here can build: what it says, and the commands in it that run anywhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_cls.cli.main import vcls

ROOT = Path(__file__).parent.parent
INSTRUCTIONS = "ARG FROM WORKDIR COPY RUN USER ENV EXPOSE HEALTHCHECK ENTRYPOINT".split()


@pytest.fixture(scope="module")
def lines() -> list[tuple[str, str]]:
    """The instructions with their arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    found = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, rest in found]


def test_it_parses(lines: list[tuple[str, str]]) -> None:
    assert {name for name, _ in lines} == set(INSTRUCTIONS)
    declared: set[str] = set()
    for name, rest in lines:
        if name == "ARG":
            declared.add(rest.partition("=")[0])
        assert set(re.findall(r"\$\{(\w+)\}", rest)) <= declared, rest
        if rest.startswith("["):
            assert all(isinstance(each, str) for each in json.loads(rest))


def test_what_runs_is_no_root_and_is_asked_for_its_health(lines: list[tuple[str, str]]) -> None:
    last = lines[max(index for index, (name, _) in enumerate(lines) if name == "FROM") :]
    names = [name for name, _ in last]
    user = dict(last)["USER"]
    assert user == "vcls" and any(f"useradd --create-home --uid 10001 {user}" in rest for _, rest in last)
    assert "RUN" not in names[names.index("USER") :]  # all is installed by root, whom nothing runs as
    check = dict(last)["HEALTHCHECK"]
    command = json.loads(check[check.index("CMD") + 3 :])
    assert command[0] == "python" and "/health" in command[2] and "--start-period" in check
    compile(command[2], "HEALTHCHECK", "exec")


def test_the_server_gets_its_options_and_its_signals(lines: list[tuple[str, str]], tmp_path: Path) -> None:
    shell, flag, script, *name = json.loads(dict(lines)["ENTRYPOINT"])
    (tmp_path / "vcls").write_text('#!/bin/sh\necho $$ "$@"\n')
    (tmp_path / "vcls").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "VCLS_MODEL": "/a model"}
    with subprocess.Popen(
        [shell, flag, script, *name, "--max-num-seqs", "7"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read().split(maxsplit=1)
    assert int(said[0]) == process.pid  # the shell has become the server
    assert said[1].strip() == "serve /a model --host 0.0.0.0 --port 8000 --max-num-seqs 7"
    command = vcls.get_command(vcls.make_context("vcls", ["serve", "m"], resilient_parsing=True), "serve")
    assert command is not None and {"host", "port", "max_num_seqs"} <= {each.name for each in command.params}


def test_what_it_copies_makes_a_wheel(lines: list[tuple[str, str]], tmp_path: Path) -> None:
    """By its command, of the files that .dockerignore lets through, which hold every package."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    source = tmp_path / "src"
    source.mkdir()
    for each in allowed:
        subprocess.run(["cp", "-r", ROOT / each, source / each], check=True)
    (build,) = [rest for name, rest in lines if name == "RUN" and rest.startswith("pip wheel")]
    arguments = build.replace("/wheels", str(tmp_path / "wheels")).split()[1:]
    offline = ["--no-build-isolation", "--no-index"]  # setuptools is here
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments, *offline], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").glob("vllm_cls-*.whl")
    listed = subprocess.run([sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True).stdout
    for each in (
        "vllm_cls/cli/commands/serve.py",
        "vllm_cls/plugins/qwen2.py",
        "vllm_cls/distributed/workers.py",
        "vllm_cls/adapters/",
    ):
        assert each in listed
