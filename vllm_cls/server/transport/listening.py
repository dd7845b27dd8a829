"""The listening socket of a server: a TCP address, or a Unix socket at a path."""

from __future__ import annotations

import atexit
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import ConfigError

_LOCK_SECONDS = 5.0
"""That another server may take to look at the sockets of a folder."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        ConfigError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; see --host and --port."
        ) from error
    # For those it accepts, which asyncio does not set it for: an answer's body must not wait 40 ms for its head's receipt.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def listen_at(path: Path) -> socket.socket:
    """A Unix socket that listens at a path where nothing is, or one that a server left which was killed.

    It is removed when the process ends. Who may write to it may ask: its mode is by the umask.

    Raises:
        ConfigError: it cannot be had.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        with _alone_in(path.parent):
            if os.path.lexists(path):
                _remove_dead_socket(path)
            listener.bind(str(path))
            listener.listen(2048)
            made = path.lstat()
    except (OSError, ConfigError) as error:
        listener.close()
        if isinstance(error, ConfigError):
            raise
        reason = error.strerror or str(error) if path.parent.is_dir() else f"there is no folder {path.parent}"
        raise ConfigError(f"cannot listen at {path}: {reason}; see --uds.") from error
    atexit.register(_remove, path.absolute(), made)
    return listener


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Lock a folder, so that no other starting server looks at its sockets meanwhile."""
    import fcntl  # not on Windows

    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.01)
        yield
    finally:
        os.close(opened)


def _remove_dead_socket(path: Path) -> None:
    """Remove a socket file on which no process listens.

    Raises:
        ConfigError: it is something else.
    """
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise ConfigError(
            f"cannot listen at {path}: there is a file, a folder or a link, and no socket; choose another --uds."
        )
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # so many wait to be let in
            pass
    raise ConfigError(f"cannot listen at {path}: a server listens there; stop it, or choose another --uds.")


def _remove(path: Path, made: os.stat_result) -> None:
    """Remove a socket file, unless another one has replaced it."""
    with suppress(FileNotFoundError):
        if os.path.samestat(path.lstat(), made):
            path.unlink()


def address(listener: socket.socket, scheme: str = "http") -> str:
    """Where a client reaches what listens there."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
