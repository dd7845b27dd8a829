"""A headless Chromium, where one is to be had: Playwright's own, else a build for servers from the npm registry."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PACKAGE = "@sparticuz/chromium@153.0.0"
FONTS = '<?xml version="1.0"?><fontconfig><dir>/usr/share/fonts</dir><dir>{folder}/fonts</dir></fontconfig>'

# Run by Playwright's node, since Python has no brotli.
UNPACK = """
const fs = require("fs"), zlib = require("zlib");
const [, , from, to] = process.argv;
for (const name of fs.readdirSync(from).filter((each) => each.endsWith(".br")))
  fs.writeFileSync(`${to}/${name.slice(0, -3)}`, zlib.brotliDecompressSync(fs.readFileSync(`${from}/${name}`)));
"""


@contextmanager
def browser() -> Iterator[Any]:
    """Playwright's handle of a running Chromium; the test is skipped where there is none."""
    pytest.importorskip("playwright")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        options = {} if own.exists() else _options(_folder())
        opened = playwright.chromium.launch(args=["--no-sandbox", "--no-zygote", "--disable-gpu"], **options)
        yield opened
        opened.close()


def _options(folder: Path) -> dict[str, Any]:
    settings = {"LD_LIBRARY_PATH": f"{folder}/lib", "FONTCONFIG_FILE": f"{folder}/fonts.conf", "HOME": str(folder)}
    return {"executable_path": folder / "chromium", "env": {**os.environ, **settings}}


def _folder() -> Path:
    """The unpacked package, fetched once and kept among the caches."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vllm-cls-tests"
    folder = caches / PACKAGE.replace("/", "-")
    caches.mkdir(parents=True, exist_ok=True)
    with open(caches / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=caches) as scratch:
                made = _fetched(Path(scratch))
                (made / "fonts.conf").write_text(FONTS.format(folder=folder))
                made.rename(folder)
    return folder


def _fetched(scratch: Path) -> Path:
    from playwright._impl._driver import compute_driver_executable

    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no Chromium: Playwright has none, and without npm none can be fetched")
    got = subprocess.run([npm, "pack", "--silent", PACKAGE], cwd=scratch, capture_output=True, text=True, timeout=300)
    if got.returncode:
        pytest.skip(f"no Chromium: Playwright has none, and npm gives none ({got.stderr.strip()[-200:]})")
    shutil.unpack_archive(next(scratch.glob("*.tgz")), scratch)
    made = scratch / "made"
    made.mkdir()
    (scratch / "unpack.js").write_text(UNPACK)
    node = compute_driver_executable()[0]
    subprocess.run([node, scratch / "unpack.js", scratch / "package/bin", made], check=True, timeout=300)
    for archive in made.glob("*.tar"):
        shutil.unpack_archive(archive, made)
        archive.unlink()
    (made / "chromium").chmod(0o755)
    return made
