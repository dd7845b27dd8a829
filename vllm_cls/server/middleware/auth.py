"""Access control: API keys for all but the open paths, and the allowed host names."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...errors import ConfigError
from ..asgi import App, Receive, Scope, Send, has_body, header, routed_path
from ..errors import error_response

OPEN_PATHS = frozenset({"/", "/health", "/ping", "/ready"})
"""What needs no key: is the process alive, is it ready, and the page's static shell, which holds no model data."""

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
KEY_VARIABLE = "VCLS_API_KEY"

METRICS_PATHS = frozenset({"/metrics", "/load"})
"""What the keys open that are for metrics alone."""


class RequireKey:
    """Requires `Authorization: Bearer KEY`; other requests get 401, for unknown paths too.

    Closed unless open: a route, a mount or a socket that someone adds is guarded without a word about it.

    Of a request with a key, `scope["state"]["key"]` is the same as of every other with that key, and tells nothing of it;
    `scope["state"]["sees_texts"]` is whether its holder may see what metrics tell of all holders' texts: not where there are
    several, unless it is a key for metrics.

    Args:
        keys: the keys, any of which opens; none at all leaves everything open.
        metrics_keys: those that open `METRICS_PATHS` alone.
        open_paths: exact routed paths that need no key, for requests without a body: strangers fill no buffers.
    """

    def __init__(
        self, app: App, keys: Sequence[str], metrics_keys: Sequence[str] = (), open_paths: Iterable[str] = OPEN_PATHS
    ) -> None:
        self.app = app
        self.open_paths = frozenset(open_paths)
        self._secret = secrets.token_bytes(32)
        self._digests = [self._digest(key) for key in keys]
        self._of_metrics = [self._digest(key) for key in metrics_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self._digests or self._is_open(scope) or self._has_key(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            message = "This server needs an API key, sent as `Authorization: Bearer KEY`."
            await error_response(401, message, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _is_open(self, scope: Scope) -> bool:
        return scope["type"] == "http" and routed_path(scope) in self.open_paths and not has_body(scope)

    def _has_key(self, scope: Scope) -> bool:
        scheme, _, credentials = (header(scope, "authorization") or "").partition(" ")
        digest = self._digest(credentials.strip())
        # Every key is compared, and digests under a secret are: neither a key's place nor its beginning shows in the time.
        matches = [hmac.compare_digest(digest, each) for each in self._digests]
        of_metrics = [hmac.compare_digest(digest, each) for each in self._of_metrics]
        opens = any(matches) or (any(of_metrics) and routed_path(scope) in METRICS_PATHS)
        if scheme.lower() != "bearer" or not opens:
            return False
        state = scope.setdefault("state", {})
        state["key"], state["sees_texts"] = digest.hex(), any(of_metrics) or len(matches) == 1
        return True

    def _digest(self, key: str) -> bytes:
        return hmac.digest(self._secret, key.encode("utf-8", "surrogatepass"), hashlib.sha256)


def client_of(scope: Scope) -> str:
    """An identifier of the client: its API key, else its address."""
    return str(scope.get("state", {}).get("key") or (scope.get("client") or ("",))[0])


class AllowHosts:
    """Refuses other names in the Host header, so that a web page cannot reach a local server by rebinding DNS.

    Args:
        names: host names without ports; none at all answers to every name.
    """

    def __init__(self, app: App, names: Iterable[str]) -> None:
        self.app = app
        self.names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not self.names or host_name(header(scope, "host")) in self.names:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            message = "This server does not answer to that Host; --allowed-host adds one."
            await error_response(400, message, param="host")(scope, receive, send)


def host_name(value: str | None) -> str:
    """The name in a Host header, without port and brackets: `[::1]:8000` is `::1`."""
    text = (value or "").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def names_for(host: str) -> tuple[str, ...]:
    """The names that a server bound to `host` should answer to: those of this machine on loopback, else every one."""
    return LOOPBACK_NAMES if host in LOOPBACK_NAMES or host.startswith("127.") else ()


def collect_keys(options: Sequence[str], file: Path | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The keys of the command line, of a file (one a line; # begins a comment) and of VCLS_API_KEY, each once.

    Raises:
        ConfigError: a key is empty or could not be sent in a header, or the file has none: a server that was meant
            to be guarded must not start open.
    """
    keys = [(key, "--api-key") for key in options]
    if KEY_VARIABLE in environment:
        keys.append((environment[KEY_VARIABLE], KEY_VARIABLE))
    in_file = () if file is None else keys_in(file, "--api-key-file")
    return tuple(dict.fromkeys([*(_checked(key, where) for key, where in keys), *in_file]))


def keys_in(file: Path, option: str) -> tuple[str, ...]:
    """The keys of a file that an option names; raises as `collect_keys`."""
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ConfigError(f"{option} {file} holds no key; write one a line.")
    return tuple(_checked(key, f"{option} {file}") for key in found)


def _checked(key: str, where: str) -> str:
    if not key or not all("!" <= character <= "~" for character in key):
        raise ConfigError(f"a key of {where} is empty, or has spaces or characters beyond ASCII; choose another.")
    return key
