"""`RayWorkers`: the parts of a job over files are computed by a pool of processes that Ray starts again when they die."""

from __future__ import annotations

import functools
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import ConfigError, JobError, VclsError
from ..jobs.options import JobOptions
from ..jobs.pipeline.answers import RowWorker, WorkerPool, check_versions
from ..jobs.plan import Plan
from ..jobs.results.result_columns import RowResults
from ..jobs.resume.parts import Answered
from ..jobs.rows import InputRow
from .cluster import SECONDS_FOR_ROOM, check_installed, connected, model_path, room

TRIES = 3
"""How often a part is tried again whose worker has died: one that kills each of them would do so for ever."""

_PARTS_EACH = 2  # in flight, so that none waits for the driver


class RayWorkers(WorkerPool):
    """A model on a Ray cluster, as the `model` of `classify_file` and `score_file`.

    Reading, the order of rows, parts, resuming and writing stay in this process: the output is that of the same job without
    Ray, whose options `num_threads` and device are those of a worker. The model, and files that rows name, must be found under
    the same paths on every machine.

    Args:
        model: as for `LLM`; the options of `LLM` are those of `classify_file`.
        num_workers: None is one for each GPU of the cluster, or for each of its machines.
        address: of the cluster; None takes that of RAY_ADDRESS, else one of this machine, which is started where there is none.
        seconds_for_room: until the cluster must have room for all of them.

    Raises:
        ConfigError: Ray is not installed, or there would be no worker.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        num_workers: int | None = None,
        address: str | None = None,
        *,
        seconds_for_room: float = SECONDS_FOR_ROOM,
    ) -> None:
        check_installed()
        if num_workers is not None and num_workers < 1:
            raise ConfigError(f"num_workers={num_workers} must be 1 or more.")
        self.model = os.fspath(model)
        self._num_workers, self._address, self._seconds = num_workers, address, seconds_for_room

    @contextmanager
    def at_work(self, options: JobOptions, llm_options: Mapping[str, Any]) -> Iterator[_Pool]:
        """The workers of one job.

        Raises:
            JobError: there is no cluster, or no room on it.
        """
        device = str(llm_options.get("device") or "auto")
        with connected(self._address), room(self._num_workers, device, self._seconds) as (share, group):
            if not share.num_gpus:
                llm_options = {"num_threads": share.num_cpus, **llm_options}
            pool = _Pool(model_path(self.model), options, llm_options, share, group)
            try:
                yield pool
            finally:
                pool.close()


class _Actor:
    """A worker's process; the model is loaded for the first rows, those after a restart too."""

    def __init__(self, model: str, options: JobOptions, llm_options: Mapping[str, Any]) -> None:
        self._model, self._options, self._llm_options = model, options, llm_options

    @functools.cached_property
    def _worker(self) -> RowWorker:
        return RowWorker.opened(self._model, self._options, self._llm_options)

    def versions(self) -> dict[str, str]:
        return RowWorker.versions()

    def begin(self) -> tuple[Plan, dict[str, Any]]:
        return self._worker.plan, self._worker.fingerprint()

    def compute(self, rows: list[InputRow]) -> list[RowResults]:
        return [each.results for each in self._worker.compute(iter(rows))]


class _Pool:
    """Workers with a model, to which the parts of one job are dealt."""

    counters = None

    def __init__(self, model: str, options: JobOptions, llm_options: Mapping[str, Any], share: Any, group: Any) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self.ahead = _PARTS_EACH * share.num_workers - 1
        start: Any = ray.remote(_Actor).options(
            num_cpus=share.num_cpus,
            num_gpus=share.num_gpus,
            max_restarts=-1,
            max_task_retries=TRIES,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        )
        self._actors: list[Any] = [start.remote(model, options, dict(llm_options)) for _ in range(share.num_workers)]
        self._share, self._pending = share, dict[Any, int]()
        try:
            for each in [actor.versions.remote() for actor in self._actors]:
                check_versions(_gotten(each))
            began = [actor.begin.remote() for actor in self._actors]
            found = [_gotten(each) for each in began]
        except BaseException:
            self.close()
            raise
        self.plan: Plan = found[0][0]
        self._fingerprint: dict[str, Any] = found[0][1]

    def fingerprint(self) -> dict[str, Any]:
        """What the results depend on of the model."""
        return self._fingerprint

    def description(self) -> str:
        """Where the model runs."""
        return f"{self._share} of a Ray cluster"

    def compute(self, rows: Iterator[InputRow]) -> Generator[Answered, None, None]:
        """The rows of one part with their results; the part is at work when this returns."""
        import ray

        part = list(rows)
        if self._pending:
            done, _ = ray.wait([*self._pending], num_returns=len(self._pending), timeout=0, fetch_local=False)
            for each in done:
                del self._pending[each]
        busy = [*self._pending.values()]
        index = min(range(len(self._actors)), key=busy.count)
        found = self._actors[index].compute.remote(part)
        self._pending[found] = index
        return _answered(part, found)

    def close(self) -> None:
        """End the processes."""
        import ray

        for actor in self._actors:
            ray.kill(actor)


def _answered(part: list[InputRow], found: Any) -> Generator[Answered, None, None]:
    yield from map(Answered, part, _gotten(found))


def _gotten(found: Any) -> Any:
    """The value behind a reference.

    Raises:
        VclsError: that of the worker.
        JobError: it died too often, or the cluster failed.
    """
    import ray

    try:
        return ray.get(found)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, VclsError):
            raise cause from None
        raise JobError(f"a worker failed: {type(cause).__name__}: {cause}; this is a fault of vllm-cls.") from error
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
        raise _died(error) from error
    except ray.exceptions.RayError as error:
        raise JobError(f"the Ray cluster failed: {type(error).__name__}: {_first_line(error)}") from error


def _died(error: BaseException) -> JobError:
    told = _first_line(error)
    return JobError(f"a worker died, and so did those that tried its rows after it ({told}); is its memory enough?")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
