"""The Ray cluster: connected to, and room for workers on it, or why there is none."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, JobError

SECONDS_TO_CONNECT = 5.0
SECONDS_FOR_ROOM = 15.0
"""Until a cluster has had the time to make room for the workers."""


def check_installed() -> None:
    """Raise `ConfigError` if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("a Ray cluster needs Ray: pip install 'vllm-cls[ray]', here and on its machines.")


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to a cluster, which ends with the context if it began there.

    Args:
        address: of the cluster; None takes that of RAY_ADDRESS, else one of this machine, which is started where there is none.

    Raises:
        JobError: there is no cluster at this address.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    place = address or os.environ.get("RAY_ADDRESS")
    try:
        _check_listened_at(place)
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, OverflowError, RuntimeError, ValueError) as error:
        raise JobError(f"no Ray cluster answers at {place!r}: {error}.") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_listened_at(address: str | None) -> None:
    """Raise OSError where nothing listens: Ray would wait for minutes, and write lines of its own meanwhile."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if port.isdecimal():  # else a word of Ray's, such as "auto"
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_CONNECT).close()


@dataclass(frozen=True)
class Share:
    """What each worker has of the cluster: a GPU, or so many CPUs of one machine."""

    num_workers: int
    num_cpus: int
    num_gpus: int

    @property
    def bundle(self) -> dict[str, float]:
        return {"GPU": self.num_gpus, "CPU": self.num_cpus} if self.num_gpus else {"CPU": self.num_cpus}

    def __str__(self) -> str:
        what = "a GPU and a CPU" if self.num_gpus else f"{self.num_cpus} CPU{'s' if self.num_cpus > 1 else ''}"
        return f"{self.num_workers} worker{'s' if self.num_workers > 1 else ''} with {what} each"


def share_of(nodes: Sequence[Mapping[str, float]], num_workers: int | None, device: str) -> Share:
    """Divide a cluster.

    Args:
        nodes: the resources of its machines.
        num_workers: None is one for each GPU, or for each machine.
        device: as `LLM` takes it: "auto" takes GPUs where there are any.

    Raises:
        JobError: it is too small.
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes)) if device != "cpu" else 0
    if gpus or device.startswith("cuda"):
        share = Share(num_workers or max(1, gpus), 1, 1)
        if share.num_workers > gpus:
            raise JobError(
                f"{share} do not fit: the cluster has {gpus} GPUs. Take fewer workers (--num-workers), or add machines."
            )
        return share
    cpus = [math.floor(node.get("CPU", 0)) for node in nodes]
    workers = num_workers or max(1, sum(each > 0 for each in cpus))
    for each in range(max(cpus, default=0), 0, -1):
        if sum(cpu // each for cpu in cpus) >= workers:
            return Share(workers, each, 0)
    raise JobError(
        f"{Share(workers, 1, 0)} do not fit: the cluster has {sum(cpus)} CPUs. Take fewer workers (--num-workers), or add machines."
    )


@contextmanager
def room(num_workers: int | None, device: str, seconds: float = SECONDS_FOR_ROOM) -> Iterator[tuple[Share, Any]]:
    """Room for workers, all of it at once, and Ray's placement group of it; it is given back with the context.

    Raises:
        JobError: there is none in `seconds`, because the cluster is too small, or others use it.
    """
    ray: Any = importlib.import_module("ray")  # parts of it have no annotations
    from ray.util import placement_group, remove_placement_group

    share = share_of([node["Resources"] for node in ray.nodes() if node["Alive"]], num_workers, device)
    group = placement_group([share.bundle] * share.num_workers)
    try:
        if not group.wait(seconds):
            free = {name: ray.available_resources().get(name, 0) for name in share.bundle}
            told = ", ".join(f"{count:g} {name}" for name, count in free.items())
            raise JobError(
                f"the Ray cluster has no room for {share} within {seconds:g} s: free are {told}. Others use the rest; "
                "wait for them, or take fewer workers (--num-workers)."
            )
        yield share, group
    finally:
        remove_placement_group(group)


def model_path(model: str | os.PathLike[str]) -> str:
    """A model's name for another process, which may have another working directory."""
    return str(Path(model).absolute()) if Path(model).exists() else os.fspath(model)
