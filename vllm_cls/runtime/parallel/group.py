"""torch.distributed's process group, of which a process has one."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple


class MeetingPlace(NamedTuple):
    """A file by which the members of a group find each other.

    Args:
        path: under which all of them open it; None where they do not meet.
        files: numbers of open files that every member must have.
    """

    path: str | None
    files: Sequence[int] = ()


NOWHERE = MeetingPlace(None)


@contextmanager
def meeting_place() -> Iterator[MeetingPlace]:
    """A file that only this user reads. On Linux it has no name, so that nothing is left of it, whatever ends this process."""
    if sys.platform == "linux":
        with tempfile.TemporaryFile() as file:
            yield MeetingPlace(f"/dev/fd/{file.fileno()}", [file.fileno()])
    else:
        with tempfile.TemporaryDirectory(prefix="vllm_cls_ranks_", ignore_cleanup_errors=True) as folder:
            yield MeetingPlace(os.path.join(folder, "store"))


def is_used() -> bool:
    """Whether this process is in a group."""
    distributed = _distributed()
    return bool(distributed.is_available() and distributed.is_initialized())


def join(*, rendezvous: str, backend: str, size: int, rank: int, timeout: timedelta) -> None:
    """Meet the others.

    Args:
        rendezvous: a file that all know. A port would listen on every interface.
        timeout: of meeting and of every exchange.
    """
    import torch

    if backend == "gloo":  # of the host's interfaces it would else take the one of the host's name
        names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
        if names:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", names[0])
    device = torch.device("cuda", rank) if backend == "nccl" else None
    if device is not None:
        torch.cuda.set_device(device)
    distributed = _distributed()
    store = distributed.FileStore(rendezvous, size)
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout, device_id=device)


def leave() -> None:
    """Leave the group, without the others."""
    if is_used():
        with contextlib.suppress(RuntimeError):  # of a group whose members have gone
            _distributed().destroy_process_group()


def abort() -> None:
    """Have what waits for another rank fail; gloo does so by itself when a process ends."""
    if is_used() and _distributed().get_backend() == "nccl":
        with contextlib.suppress(RuntimeError):
            _distributed().distributed_c10d._abort_process_group()


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed
