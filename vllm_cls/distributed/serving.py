"""`serve_on_ray`: replicas of the server's app on a Ray cluster, behind Ray Serve's proxies."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ConfigError, JobError
from .cluster import check_installed, connected, model_path, room

NAME = "vllm-cls"
"""Of the application on the cluster; under a path of its own, with that behind it."""


@contextmanager
def serve_on_ray(
    model: str | os.PathLike[str],
    open_app: Callable[..., Any],
    *,
    num_replicas: int = 1,
    address: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    root_path: str = "",
    ssl_certfile: Path | None = None,
    ssl_keyfile: Path | None = None,
    ssl_ca_certs: Path | None = None,
    **llm_options: Any,
) -> Iterator[None]:
    """Replicas of the server's app, which answer within the context.

    serve_on_ray("my-classifier", functools.partial(vllm_cls.server.open_app, settings=settings), num_replicas=4)

    The connections are those of Ray Serve's proxies: `header_timeout`, `write_timeout`, `keep_alive_timeout`,
    `max_connections` and strict HTTP/1.1 are not there; keys, hosts, and the limits of bodies, time and prompts are the app's
    own, and hold in each replica.

    Args:
        model: as for `LLM`, found under this name on every machine.
        open_app: gives a replica's app, of the model and the options of `AsyncLLM`; it is sent to the replicas.
        num_replicas: each has a GPU, or an equal share of the CPUs.
        address: of the cluster; None takes that of RAY_ADDRESS, else one of this machine, which is started where there is none.
        host, port: of the proxies, on every machine that has a replica.
        root_path: what the proxies take off the paths, such as "/critic", so that a cluster serves several models.
        llm_options: options of `AsyncLLM`.

    Raises:
        JobError: there is no cluster, no room on it, another server under this path, or the replicas do not start.
        ConfigError: Ray is not installed.
    """
    check_installed()
    device = str(llm_options.get("device") or "auto")
    name = NAME + root_path.replace("/", "-")
    with connected(address):
        _check_free(name, root_path or "/")
        with room(num_replicas, device) as (share, _):  # given back for the replicas to take
            pass
        if not share.num_gpus:
            llm_options = {"num_threads": share.num_cpus, **llm_options}
        import ray
        from ray import serve

        tls = {"ssl_certfile": ssl_certfile, "ssl_keyfile": ssl_keyfile, "ssl_ca_certs": ssl_ca_certs}
        files = {name: str(file) for name, file in tls.items() if file is not None}
        _start({"host": host, "port": port, **files})
        deployment: Any = serve.deployment(
            serve.ingress(_builder(open_app, model_path(model), llm_options))(_Replica),
            name=name,
            num_replicas=num_replicas,
            max_ongoing_requests=llm_options.get("max_queued_requests", 1024),
            ray_actor_options={"num_cpus": share.num_cpus, "num_gpus": share.num_gpus},
        )
        try:
            serve.run(deployment.bind(), name=name, route_prefix=root_path or "/")
        except (RuntimeError, ray.exceptions.RayError) as error:
            serve.delete(name)
            raise JobError(f"the replicas did not start: {_last_line(error)}") from error
        try:
            yield
        finally:
            serve.delete(name)


def _check_free(name: str, path: str) -> None:
    """Refuse to take the place of another command's server.

    Raises:
        ConfigError: `path` is none.
        JobError: there is one.
    """
    if not path.startswith("/") or (path.endswith("/") and path != "/"):
        raise ConfigError(f"root_path={path!r} must begin with a slash and not end with one, such as '/critic'.")
    serve: Any = importlib.import_module("ray.serve")  # parts of it have no annotations
    if name in serve.status().applications:
        raise JobError(
            f"another server runs on this cluster under {path}: end that one, or give this one a path of its own (--root-path "
            f"/NAME). If its command is gone, `ray.serve.delete({name!r})` ends it."
        )


def _start(listening: dict[str, Any]) -> None:
    """Ray Serve's proxies, which listen as is asked.

    Raises:
        JobError: they cannot, or others run already, which listen otherwise: Serve would keep those, with or without TLS.
    """
    import ray

    serve: Any = importlib.import_module("ray.serve")  # parts of it have no annotations
    try:
        serve.start(http_options=listening)
    except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
        serve.shutdown()
        raise JobError(f"Ray Serve does not start: {_last_line(error)}") from error
    running = serve.context._get_global_client().http_config
    tls = dict.fromkeys(("ssl_certfile", "ssl_keyfile", "ssl_ca_certs"))
    found = {name: getattr(running, name) for name in {**tls, **listening}}
    if found != {**tls, **listening}:
        told = ", ".join(f"{name} {value!r}" for name, value in found.items() if value is not None)
        raise JobError(
            f"Ray Serve runs on this cluster already, with {told}; give the same, or `serve shutdown` first."
        )


class _Replica:
    """What Ray Serve asks of a replica beside its requests."""

    app: Any

    def check_health(self) -> None:
        """Raise where the engine has died: Serve then replaces the replica."""
        if not self.app.state.model.llm.is_alive:
            raise ConfigError("the engine has died.")


def _builder(open_app: Callable[..., Any], model: str, options: Mapping[str, Any]) -> Callable[[], Any]:
    """A function, as Ray Serve wants it."""

    def build() -> Any:
        return open_app(model, **options)

    return build


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1].strip()
