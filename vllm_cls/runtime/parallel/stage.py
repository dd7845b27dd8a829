"""One stage of a pipeline: the rank that holds some of the layers, what comes to it and what leaves it.

Every rank makes each batch itself, so that positions, masks and rows are at hand everywhere; only states go from rank to
rank, and the last one's rows back to the first. No rank waits for what is behind it, so each works on another batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from ..batch import fetch
from ..engine import Engine
from ..layers.absent import AbsentLayer
from ..runner import Runner
from .rank_engine import RankEngine
from .ranks import Ranks


class PipelineStage:
    """What a rank exchanges with the others.

    Args:
        ranks: of which it is one; the layers are in their order.
        backbone: with `AbsentLayer`s where the other ranks hold the layers.
        layers: of the backbone.
    """

    def __init__(self, ranks: Ranks, backbone: nn.Module, layers: Sequence[nn.Module]) -> None:
        self.rank, self.size = ranks.rank, ranks.size
        self._sent: deque[tuple[Any, torch.Tensor]] = deque()
        own = [place for place, each in enumerate(layers) if not isinstance(each, AbsentLayer)]
        for place, crossing in ((own[0] - 1, self._receive), (own[-1] + 1, self._send)):
            if 0 <= place < len(layers):
                layers[place].crossing = crossing  # type: ignore[assignment]
        self._checks = backbone.register_forward_hook(self._tell_all)

    @property
    def last(self) -> int:
        """The rank that has the final states."""
        return self.size - 1

    def begin(self) -> None:
        """From here on the first rank alone gets results, as `fetch` says."""
        self._checks.remove()

    def fetch(self, rows: torch.Tensor | list[torch.Tensor]) -> Callable[[], list[torch.Tensor]]:
        """As `batch.fetch`: on the first rank the last one's rows, which have the form of these."""
        parts = [rows] if isinstance(rows, torch.Tensor) else rows
        if self.rank == self.last:
            for each in parts:
                self._send_to(0, each)
        if self.rank > 0:
            return fetch(rows)

        def wait() -> list[torch.Tensor]:
            received = [torch.empty(each.shape, dtype=each.dtype, device=each.device) for each in parts]
            for each in received:
                dist.recv(each, self.last)
            return fetch(received[0] if isinstance(rows, torch.Tensor) else received)()

        return wait

    def settle(self) -> None:
        """Wait until all that was sent has been taken."""
        while self._sent:
            self._sent.popleft()[0].wait()

    def _send(self, states: torch.Tensor) -> torch.Tensor:
        self._send_to(self.rank + 1, states)
        while len(self._sent) > self.size:  # which hold memory
            self._sent.popleft()[0].wait()
        return states

    def _send_to(self, rank: int, tensor: torch.Tensor) -> None:
        sent = tensor.contiguous()
        self._sent.append((dist.isend(sent, rank), sent))

    def _receive(self, states: torch.Tensor) -> torch.Tensor:
        received = torch.empty_like(states, memory_format=torch.contiguous_format)
        dist.recv(received, self.rank - 1)
        return received

    def _tell_all(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """While the model is checked, all ranks see the final states, and so decide alike."""
        states: torch.Tensor = output[0]
        told = states.contiguous()
        dist.broadcast(told, self.last)
        if told is not states:
            states.copy_(told)
        self.settle()


class StageEngine(RankEngine):
    """As `RankEngine`, of a pipeline: batches follow each other through the stages.

    Args:
        stage: of this rank.
    """

    def __init__(self, runner: Runner, ranks: Ranks, *, stage: PipelineStage, **options: Any) -> None:
        super().__init__(runner, ranks, **options)
        stage.begin()
        self._stage = stage
        self._fetch = stage.fetch
        self._looks_ahead, self._depth = True, stage.size + 1

    @property
    def num_parallel(self) -> int:
        """Batches that keep all stages busy."""
        return 2 * self._stage.size

    def _execute(self, *args: Any, **kwargs: Any) -> Any:
        results = Engine._execute(self, *args, **kwargs)
        self._stage.settle()
        return results
