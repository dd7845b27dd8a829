"""A varlen kernel in plain torch: it reads nothing but the plan's tensors, as a real one does."""

from __future__ import annotations

import torch

from vllm_cls.runtime.cuda.varlen import Varlen
from vllm_cls.runtime.cuda.windows import Window
from vllm_cls.runtime.row import VarlenLayout


def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: VarlenLayout,
    window: Window,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """`(num_queries, heads, head_dim)`; the last query lies on the last key, as flash attention has it."""
    groups = query.shape[1] // key.shape[1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = torch.zeros_like(query)
    ends = zip(plan.cu_queries.tolist(), plan.cu_keys.tolist(), strict=True)
    start, key_start = next(ends)
    for end, key_end in ends:
        assert end - start <= plan.max_queries and key_end - key_start <= plan.max_keys
        q = query[start:end].transpose(0, 1)
        k, v = (each[key_start:key_end].repeat_interleave(groups, 1).transpose(0, 1) for each in (key, value))
        scores = q @ k.transpose(1, 2) * scaling
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        places = torch.arange(end - start) + (key_end - key_start) - (end - start)
        distance = torch.arange(key_end - key_start)[None] - places[:, None]
        for hidden in (
            distance < -window[0] if window[0] >= 0 else None,
            distance > window[1] if window[1] >= 0 else None,
        ):
            if hidden is not None:
                scores = scores.masked_fill(hidden, float("-inf"))
        output[start:end] = (scores.softmax(-1) @ v).transpose(0, 1)
        start, key_start = end, key_end
    return output


class Counted(Varlen):
    """The kernel above, for float32, counting the layers that it ran and those that it did not take."""

    def __init__(self, *, softcaps: bool = True) -> None:
        super().__init__("reference", varlen, softcaps=softcaps, dtypes=[torch.float32])
        self.ran, self.refused = 0, 0

    def attend(self, *args: object) -> torch.Tensor | None:
        output = super().attend(*args)  # type: ignore[arg-type]
        if output is None:
            self.refused += 1
        else:
            self.ran += 1
        return output
