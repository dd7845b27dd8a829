"""Many sequences → batches → one answer each, in the order given."""

from __future__ import annotations

import functools
import logging
import operator
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..errors import ConfigError, EngineDeadError, PromptError, RunError
from ..pooler.sequences import SequenceScorer
from .batch import ForwardItem, TokenSequence, fetch, media_of
from .cuda.pipeline import DEPTH, look_ahead
from .loadtime.equivalence import FAILURES
from .loadtime.media_form import choose_media_form
from .machine import memory, workers
from .prefixes.continuations import Continuations, chunks
from .prefixes.prefix_cache import PrefixCache
from .prefixes.sharing import MIN_TOKENS, Sharing
from .runner import Runner
from .schedule import Budget, plan_batches

if TYPE_CHECKING:
    from ..media.features import MediaInput

_logger = logging.getLogger("vllm_cls")

Execute = Callable[[Sequence[ForwardItem]], "list[Result]"]
Step = Callable[[Sequence[ForwardItem]], "torch.Tensor | list[torch.Tensor]"]
Wave = list[tuple[int, ForwardItem]]
"""Works that run together, with the indices of their sequences."""


@dataclass(frozen=True)
class SequenceResult:
    """What a sequence came to.

    Args:
        row: `(num_labels,)`, `(hidden,)` or `(num_tokens, num_labels)`, float32, on the CPU.
        num_cached_tokens: of the prompt's tokens, those whose keys and values were at hand.
    """

    row: torch.Tensor
    num_cached_tokens: int = 0


Result = SequenceResult | PromptError


class Engine:
    """Runs sequences through one runner; safe to call from several threads.

    Args:
        runner: of the loaded model.
        max_num_batched_tokens: tokens in one forward, padding included.
        max_num_seqs: sequences in one forward.
        num_threads: of a CPU; None takes as many as torch uses, at most the physical cores and the container's share.
        prefix_cache_bytes: keys and values kept for prompts that begin alike; 0 shares nothing.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_num_batched_tokens: int,
        max_num_seqs: int,
        num_threads: int | None = None,
        prefix_cache_bytes: int = 0,
    ) -> None:
        self.runner = runner
        self.counters = runner.counters
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_num_seqs = max_num_seqs
        self.prefix_cache = PrefixCache(prefix_cache_bytes if runner.shares else 0, MIN_TOKENS)
        self._sharing = Sharing(self.prefix_cache, runner.mode.bytes_a_token, self._keep, self._sharing_group)
        self._workers = workers.for_device(runner.device, num_threads)
        self._looks_ahead = runner.device.type != "cpu"
        self._depth = DEPTH
        self._fetch = fetch
        self._lock = threading.Lock()
        self._closed = False

    @property
    def num_threads(self) -> int:
        """Threads of the CPU that forwards use together."""
        return self._workers.num_threads

    def logits(self, sequences: Sequence[TokenSequence], *, asked: bool = True) -> list[Result]:
        """Each `(num_labels,)`.

        Args:
            asked: False counts no prompts: nobody asked for them.
        """
        if self.runner.scorer is not None:
            return self._run(sequences, functools.partial(self._scored, self.runner.scorer), asked=asked)
        return self._run(sequences, functools.partial(self._execute, step=self.runner.mixed_logits), asked=asked)

    def states(self, sequences: Sequence[TokenSequence]) -> list[Result]:
        """Each the pooled state `(hidden,)`."""
        return self._run(sequences, functools.partial(self._execute, step=self.runner.states))

    def token_logits(self, sequences: Sequence[TokenSequence]) -> list[Result]:
        """Each `(n, num_labels)`: of the tokens of its `pooled_at`, or of all, those behind what is pooled too.

        Prompts share their beginnings up to the first token that is wanted.
        """
        whole = [replace(each, num_behind=0) for each in sequences]
        share = all(each.pooled_at is not None for each in whole)
        return self._run(whole, functools.partial(self._execute, step=self.runner.token_logits), share=share)

    def forget_prefixes(self) -> None:
        """Let go of the keys and values of earlier prompts."""
        self.prefix_cache.clear()

    def close(self) -> None:
        """End the worker threads and let go of the prefix cache, once what runs is done."""
        with self._lock:
            self._closed = True
            self._workers.close()
            self.prefix_cache.clear()
            if self.runner.media_form:
                self.runner.towers.clear()

    def _run(
        self, sequences: Sequence[TokenSequence], execute: Execute, *, share: bool = True, asked: bool = True
    ) -> list[Result]:
        """An answer to each sequence.

        Args:
            execute: answers to works, by forwards of batches.
            share: beginnings in common run once, where the model can.
        """
        distinct: dict[TokenSequence, int] = {}  # identical prompts run once
        places = [distinct.setdefault(each, len(distinct)) for each in sequences]
        unique = list(distinct)
        results: dict[int, Result] = {}
        with self._lock:
            if self._closed:
                raise ConfigError("this LLM is closed; make a new one.")
            if not self.runner.media_form and any(map(_media_of, unique)):
                choose_media_form(self.runner, unique)
            shares = share and self.prefix_cache.max_bytes > 0
            for wave in self._shared(unique) if shares else [list(enumerate(map(ForwardItem, unique)))]:
                answers = execute([work for _, work in wave])
                results.update(zip((index for index, _ in wave), answers, strict=True))
        if asked:
            self._count(sequences, unique, results)
        in_order = [results[place] for place in places]
        return in_order if len(unique) == len(sequences) else _apart(in_order)

    def _shared(self, sequences: Sequence[TokenSequence]) -> Iterator[Wave]:
        """Works for sequences whose beginnings in common run once.

        What finding these takes counts as planning, without the forwards that run for them.
        """
        waves = self._sharing.works(sequences)
        while True:
            device, began = self.counters.seconds["device"], time.perf_counter()
            wave = next(waves, None)
            elsewhere = self.counters.seconds["device"] - device
            self.counters.add_seconds("plan", max(0.0, time.perf_counter() - began - elsewhere))
            if wave is None:
                return
            yield wave

    def _scored(self, scorer: SequenceScorer, works: Sequence[ForwardItem]) -> list[Result]:
        """Logits of label texts: the states behind each prompt and behind each beginning of a text, then their scores."""
        texts = Continuations(scorer.beginnings, self.runner.sequence_form)
        results: list[Result] = []
        # Without keys and values to hold, the states alone say how many prompts go together.
        most_tokens = self._sharing.max_tokens if self.prefix_cache.max_bytes > 0 else sys.maxsize
        bytes_a_prompt = 4 * len(texts.ids) * self.runner.backbone.config.get_text_config().hidden_size
        for part in chunks(works, most_tokens, max(1, _STATES_BYTES // bytes_a_prompt)):
            states = self._continued(texts, part)
            good = [rows for rows in states if not isinstance(rows, PromptError)]
            with torch.inference_mode():
                logits = iter(scorer(torch.stack(good)).float().cpu() if good else ())
            for rows, work in zip(states, part, strict=True):
                cached = work.num_cached_tokens
                results.append(rows if isinstance(rows, PromptError) else SequenceResult(next(logits), cached))
        return results

    def _continued(self, texts: Continuations, works: Sequence[ForwardItem]) -> list[torch.Tensor | PromptError]:
        """States `(num_continuations, hidden)` of each prompt, or why there are none."""
        execute = functools.partial(self._execute, step=self.runner.states, remember=False)
        shares = [self._shares(texts, work.sequence) for work in works]
        answers: list[list[Result]] = [[]] * len(works)
        for together, run in (
            (True, functools.partial(texts.shared, ran=_ran, most_tokens=self._sharing.max_tokens)),
            (False, texts.whole),
        ):
            places = [place for place, each in enumerate(shares) if each is together]
            for place, found in zip(places, run([works[place] for place in places], execute), strict=True):
                answers[place] = found
        for work, found in zip(works, answers, strict=True):
            if isinstance(found[0], SequenceResult):
                self._sharing.finished(work)
        failures = [next((each for each in found if isinstance(each, PromptError)), None) for found in answers]
        return [
            failure or torch.stack([each.row for each in found if isinstance(each, SequenceResult)])
            for found, failure in zip(answers, failures, strict=True)
        ]

    def _shares(self, texts: Continuations, prompt: TokenSequence) -> bool:
        """Whether a prompt's keys and values serve all its continuations."""
        longest = texts.behind(prompt, texts.ids[-1])
        group = self._sharing_group(prompt)
        return self.prefix_cache.max_bytes > 0 and group is not None and group == self._sharing_group(longest)

    def _execute(self, works: Sequence[ForwardItem], step: Step, *, remember: bool = True) -> list[Result]:
        """Answers to all works, in their order.

        Args:
            remember: what works keep is for later calls.
        """
        batches = self._plan(works)
        filled = [[works[index] for index in batch] for batch in batches]
        parallel = len(batches) > 1 and self.runner.parallel
        if any(map(media_of, works)):
            parallel = parallel and self.runner.packs_media
            held = self._encode(works)  # noqa: F841  # until they have run
        began = time.perf_counter()
        if self._looks_ahead:
            ahead = functools.partial(look_ahead, functools.partial(self._begin, step), depth=self._depth)
            (answers,) = self._workers.run(ahead, [filled], parallel=False)
        else:
            run = functools.partial(self._answers, step)
            answers = self._workers.run(run, filled, parallel=parallel)
        self.counters.seconds["device"] += time.perf_counter() - began  # one call runs at a time
        results: list[Any] = [None] * len(works)
        for batch, given in zip(batches, answers, strict=True):
            for index, answer in zip(batch, given, strict=True):
                results[index] = answer
                if remember and works[index].keep is not None and isinstance(answer, SequenceResult):
                    self._sharing.finished(works[index])
        return results

    def _plan(self, works: Sequence[ForwardItem]) -> list[list[int]]:
        """Which works share a forward, by their indices; of different adapters only where rows are packed."""
        if len(works) == 1:  # as most calls of a server have it
            return [[0]]
        with self.counters.timed("plan"):
            packed = self.runner.mode.form == "packed"
            lengths = [each.num_tokens for each in works]
            sequences = [each.sequence for each in works]
            keys = [
                (
                    self.runner.key(index, len(each.token_ids), each.media is not None),
                    each.exact,
                    None if packed else each.adapter,
                    self.runner.masks_by_row and works[index].past is not None,
                )
                for index, each in enumerate(sequences)
            ]
            budget = Budget(self.max_num_batched_tokens, self.max_num_seqs, self.num_parallel)
            adapters = [id(each.adapter) for each in sequences]
            batches = plan_batches(lengths, keys, budget, padded=not packed)
            return [sorted(batch, key=adapters.__getitem__) for batch in batches]

    def _encode(self, works: Sequence[ForwardItem]) -> list[Any]:
        """Let the towers read what these works need, with all threads; what fails does so again with its prompt."""

        def encode(read: list[MediaInput]) -> list[Any]:
            try:
                return list(self.runner.towers.encode(read))
            except FAILURES:
                return []

        if self.runner.media_form == "pixels":
            return []
        read = list(dict.fromkeys(each for work in works for each in work.media_inputs()))
        with self.counters.timed("forward"), self.counters.timed("device"):
            return self._workers.run(encode, [read], parallel=False)

    def _keep(self, works: Sequence[ForwardItem]) -> list[ForwardItem]:
        """Run works for their keys and values; those that the model refuses are refused again with their prompts."""

        def step(batch: Sequence[ForwardItem]) -> list[torch.Tensor]:
            self.runner.keep(batch)
            return [_NOTHING] * len(batch)

        results = self._execute(works, step)
        return [work for work, result in zip(works, results, strict=True) if isinstance(result, SequenceResult)]

    def _answers(self, step: Step, works: Sequence[ForwardItem]) -> list[Result]:
        """One forward. Where memory ends, half a batch each; where the model refuses, one prompt each.

        So a prompt that cannot run costs itself alone.
        """
        return self._begin(step, works)()

    def _begin(self, step: Step, works: Sequence[ForwardItem]) -> Callable[[], list[Result]]:
        """Submit one forward; what it gives back waits for the answers."""
        if len(works) > 1 and self._num_tokens(works) > self.max_num_batched_tokens:  # memory ended since it was filled
            return functools.partial(self._each, step, _halves(works))
        try:
            return functools.partial(self._finish, step, works, self._fetch(step(works)))
        except (ValueError, IndexError, RuntimeError, MemoryError) as failure:
            return functools.partial(self._instead, step, works, _dropped(works, failure))

    def _finish(self, step: Step, works: Sequence[ForwardItem], rows: Callable[[], list[torch.Tensor]]) -> list[Result]:
        try:
            return [SequenceResult(row, work.num_cached_tokens) for work, row in zip(works, rows(), strict=True)]
        except (ValueError, RuntimeError, MemoryError) as failure:
            return self._instead(step, works, _dropped(works, failure))

    def _instead(self, step: Step, works: Sequence[ForwardItem], failure: Exception) -> list[Result]:
        """Answers to a batch that failed."""
        _logger.debug("a forward of %d prompts failed", len(works), exc_info=failure)
        exhausted = memory.is_exhausted(failure)
        if isinstance(failure, torch.AcceleratorError) and not exhausted:  # it answers nobody any more
            raise EngineDeadError(f"the device failed ({str(failure).splitlines()[0]}); start again.") from failure
        if exhausted:
            memory.release(self.runner.device)
        if len(works) > 1:
            if not exhausted:
                return self._each(step, [[work] for work in works])
            # Remembered, so that the next batch does not fail likewise.
            half = max(_FEWEST_TOKENS, self._num_tokens(works) // 2)
            self.max_num_batched_tokens = min(self.max_num_batched_tokens, half)
            return self._each(step, _halves(works))
        if exhausted and self.prefix_cache.num_bytes:
            self.prefix_cache.clear()
            memory.release(self.runner.device)
            return self._answers(step, works)
        reason = str(failure).strip().splitlines() or [type(failure).__name__]
        sequence = works[0].sequence
        told = sequence.media and any(
            span.input.told for span in sequence.media.spans
        )  # then the fault is the prompt's
        refused = (PromptError if told and not exhausted else RunError)(
            f"the model refuses this prompt of {len(sequence)} tokens{_AS_TOLD if told else ''}: {reason[0][:200]}"
        )
        refused.__cause__ = failure
        return [refused]

    def _each(self, step: Step, parts: Sequence[Sequence[ForwardItem]]) -> list[Result]:
        return [answer for part in parts for answer in self._answers(step, part)]

    def _num_tokens(self, works: Sequence[ForwardItem]) -> int:
        """Tokens of a batch, padding included."""
        if self.runner.mode.form == "packed":
            return sum(map(len, works))
        return max(map(len, works)) * len(works)

    @property
    def num_parallel(self) -> int:
        """Forwards that run at once."""
        return self._workers.count if self.runner.parallel else 1

    @property
    def window(self) -> tuple[int, int]:
        """Tokens and sequences that keep the device busy once: a batch a worker, or those that run and come next."""
        count = self.num_parallel + self._looks_ahead
        return count * self.max_num_batched_tokens, count * self.max_num_seqs

    def _sharing_group(self, sequence: TokenSequence) -> Hashable:
        if sequence.num_behind:  # what another prompt begins with may reach beyond the token that is pooled
            return None
        if sequence.media and (sequence.media.types[sequence.num_before] or not self.runner.shares_media):
            return None
        key = self.runner.sharing_key(len(sequence))
        # Weakly, so that an adapter that was let go does not live on in the prefix cache.
        adapter = None if sequence.adapter is None else weakref.ref(sequence.adapter)
        return None if key is None else (key, sequence.cache_salt, adapter, sequence.exact)

    def _count(
        self, sequences: Sequence[TokenSequence], unique: Sequence[TokenSequence], results: dict[int, Result]
    ) -> None:
        asked = [each for each in sequences if not each.exact]  # the others were, before int8 left them open
        answers = [results[place] for place, each in enumerate(unique) if not each.exact]
        self.counters.add(
            num_prompts=len(asked),
            num_prompt_tokens=sum([len(each.token_ids) for each in asked]),
            num_close_calls=len(sequences) - len(asked),
            num_duplicates=len(asked) - len(answers),
            num_shared_tokens=sum([each.num_cached_tokens for each in answers if isinstance(each, SequenceResult)]),
        )


_NOTHING = torch.empty(0)
_AS_TOLD = " with its mm_processor_kwargs"
_media_of = operator.attrgetter("media")
_STATES_BYTES = 1 << 28  # of the states behind label texts that are held at once; those of one prompt at least
_FEWEST_TOKENS = 8  # a batch is not made smaller for want of memory: who else uses it may stop


def _ran(result: Result) -> bool:
    return isinstance(result, SequenceResult)


def _dropped(works: Sequence[ForwardItem], failure: Exception) -> Exception:
    """A failure without its frames, which hold the forward's activations; what was kept of the forward is let go.

    Its `frames` say where it was.
    """
    noted: Any = failure
    noted.frames = traceback.extract_tb(failure.__traceback__)
    for work in works:
        if work.keep is not None:
            work.keep.layers.clear()
    return failure.with_traceback(None)


def _apart(results: list[Result]) -> list[Result]:
    """Answers of which no two share memory, outside inference mode: what one caller does to its own, no other sees."""
    seen: set[int] = set()
    for index, each in enumerate(results):
        if isinstance(each, SequenceResult):
            if id(each) in seen:
                results[index] = SequenceResult(each.row.clone(), each.num_cached_tokens)
            seen.add(id(each))
    return results


def _halves(works: Sequence[ForwardItem]) -> list[Sequence[ForwardItem]]:
    half = len(works) // 2
    return [works[:half], works[half:]]
