"""The page at /: the model in a browser, without the internet and without any model data in it."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from fastapi import APIRouter, Response

from ..served_model import ServedModel

_FOLDER = Path(__file__).parent.parent / "page"
_PLACES = re.compile(r'<(style|script) src="([\w. ]+)"></\1>')


def assembled(folder: Path = _FOLDER) -> tuple[str, str]:
    """The page with its style and its script put into it, and the policy that allows these and nothing else.

    One file: a page in parts would need routes that are open without a key, and addresses that hold wherever the app is
    mounted.
    """
    hashes: dict[str, str] = {}

    def put_in(place: re.Match[str]) -> str:
        kind, names = place.groups()
        text = "\n".join((folder / name).read_text(encoding="utf-8") for name in names.split())
        hashes[kind] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"<{kind}>{text}</{kind}>"

    page = _PLACES.sub(put_in, (folder / "index.html").read_text(encoding="utf-8"))
    allowed = "; ".join(f"{kind}-src 'sha256-{digest}'" for kind, digest in sorted(hashes.items()))
    rest = "connect-src 'self'; img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    return page, f"default-src 'none'; {allowed}; {rest}"


def routes(model: ServedModel) -> APIRouter:
    """The router of this family."""
    router = APIRouter(include_in_schema=False)
    page, policy = assembled()
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    @router.get("/")
    @router.head("/")
    async def shell() -> Response:
        """The page."""
        return Response(page, media_type="text/html", headers=headers)

    return router
