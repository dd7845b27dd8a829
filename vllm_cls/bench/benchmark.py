"""One benchmark: open the contenders, compare their outputs, let them take turns, report."""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ModelConfig, RuntimeConfig
from ..errors import ConfigError
from ..model.loading.source import ModelSource, open_source
from . import peers
from .agreement import Agreement, agreement
from .contender import BenchError, Contender
from .inputs import Texts
from .interleave import interleave
from .options import BenchOptions
from .peers.base import PeerOptions
from .workloads import Workload, as_pairs

OURS, FLOAT32, MATRIX = peers.OURS, "vllm-cls float32", "matrix"
_TEXTS, _PAIRS = "texts", "pairs"
_ROWS = 512  # of INPUT, where no number is given
_RUNTIME = {each.name for each in dataclasses.fields(RuntimeConfig)}


@dataclass
class Entry:
    """One contender's place in the rounds.

    Args:
        texts: the name of the set that it runs.
        rival: the label of ours whose time its own is divided by.
        quantization: what it runs in.
    """

    label: str
    contender: Contender | None = None
    texts: str = _TEXTS
    rival: str = OURS
    quantization: str | None = None
    agreement: Agreement | None = None
    error: str | None = None
    seconds: list[float] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        """Whether it is timed: not if its logits differ, except ours, which all ratios need."""
        agrees = self.agreement is None or self.agreement.equal
        return self.error is None and (agrees or self.label == self.rival)


class Benchmark:
    """The contenders of one run; a context, within which their processes live."""

    def __init__(self, options: BenchOptions, tell: Callable[[str], None]) -> None:
        self.options, self.tell = options, tell
        known = {name: value for name, value in options.llm.items() if name not in _RUNTIME}
        known.pop("quantization", None)
        self.source: ModelSource = open_source(ModelConfig.from_options(options.model, **known))
        self.config = ModelConfig.from_options(options.model, **known)
        self.entries: list[Entry] = []
        self._stack = ExitStack()

    def __enter__(self) -> Benchmark:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def run(self) -> list[float]:
        """Measure everything; returns the matrix speed of each round in GFLOP/s.

        Raises:
            VclsError: ours cannot run, or a peer is unknown or missing.
        """
        choices = [peers.parse(each) for each in self.options.against]
        if not self.options.skip_missing:
            for each in choices:
                if each.name not in self.options.python:
                    peers.require(each)
        texts = Texts(self.config, self.source)
        self.workload = self._workload(texts)
        self.sets = {_TEXTS: self.workload.texts}
        self._open_ours(texts.longest)
        self._open_peers(choices, texts.longest)
        self._compare()
        return self._take_turns()

    def _workload(self, texts: Texts) -> Workload:
        options = self.options
        if options.input is not None:
            return texts.read(options.input, options.fields, options.num_texts or _ROWS)
        return texts.workload(options.workload, count=options.num_texts, lengths=options.lengths)

    # -- opening ------------------------------------------------------------------------------------

    def _open_ours(self, longest: int) -> None:
        options = {**self.options.llm, "use_template": False}  # the texts have it already
        dtype, device = options.pop("dtype", "auto"), options.pop("device", "auto")
        options.pop("quantization", None)
        quantization = self.options.quantization
        opening = PeerOptions(
            self.options.model, self.options.num_threads, longest, dtype, device, quantization, options=options
        )
        ours = Entry(OURS, self._start(OURS), quantization=quantization)
        assert ours.contender is not None
        self.entries.append(ours)
        ours.contender.begin_open(OURS, opening)
        self._wait(ours)
        self._ready(ours)
        self.described = ours.contender.call("describe")
        self.rows = min(self.described["max_num_batched_tokens"], self.workload.summary()["tokens"])
        self.opening = dataclasses.replace(opening, dtype=self.described["dtype"], device=self.described["device"])
        variants = {
            label: dataclasses.replace(opening, options={**options, **changed})
            for label, changed in self.options.variants.items()
        }
        if self.options.int8:
            variants[FLOAT32] = dataclasses.replace(opening, dtype="float32", quantization=None)
        for label, each in variants.items():
            variant = self._start(label)
            self.entries.append(Entry(label, variant, quantization=each.quantization))
            variant.begin_open(OURS, each)
            self._wait(self.entries[-1])
            self._ready(self.entries[-1])

    def _open_peers(self, choices: Sequence[peers.PeerChoice], longest: int) -> None:
        if not choices:
            return
        if self.described["task"] != "classify":
            raise ConfigError(
                f"--against {', '.join(each.label for each in choices)}: the others classify whole texts, and "
                f"{self.options.model} labels tokens; leave it out."
            )
        folder = self._plain_folder()
        pending: list[Entry] = []
        for each in choices:
            entry = Entry(each.label)
            self.entries.append(entry)
            found = peers.peer(each.name)
            python = self.options.python.get(each.name)
            if python is None and found.available() is None:
                entry.error = f"{each.name} is not installed; install it with: {found.install}"
                continue
            if found.pairs_only:
                self._use_pairs(entry)
            entry.quantization = "int8" if self.options.int8 and found.int8 else None
            opening = PeerOptions(
                folder, self.opening.threads, longest, self.opening.dtype, self.opening.device, entry.quantization,
                each.batch_size,
            )  # fmt: skip
            entry.contender = self._start(each.label, python)
            entry.contender.begin_open(each.name, opening)
            pending.append(entry)
        for step in (self._wait, self._ready):  # none is tuned before the last is loaded
            for entry in [each for each in pending if each.error is None]:
                try:
                    step(entry)
                except BenchError as error:
                    entry.error = str(error).removeprefix(f"{entry.label}: ")

    def _start(self, label: str, python: str | None = None) -> Contender:
        self.tell(f"opening {label}")
        return self._stack.enter_context(Contender(label, python))

    @staticmethod
    def _wait(entry: Entry) -> None:
        assert entry.contender is not None
        entry.contender.end_open()

    def _ready(self, entry: Entry) -> None:
        """Give it the texts, and let it find its best settings while no other works."""
        assert entry.contender is not None
        entry.contender.load(entry.texts, self.sets[entry.texts])
        self.tell(f"tuning {entry.label}")
        entry.contender.tune(entry.texts)

    def _use_pairs(self, entry: Entry) -> None:
        """Give this entry pairs of texts, and ours a second place in the rounds with the same pairs."""
        if isinstance(self.sets[_TEXTS][0], tuple):
            return
        entry.texts, entry.rival = _PAIRS, f"{OURS} on pairs"
        if _PAIRS not in self.sets:
            self.sets[_PAIRS] = as_pairs(self.sets[_TEXTS])
            contender = self.entries[0].contender
            assert contender is not None
            contender.load(_PAIRS, self.sets[_PAIRS])
            pairs = Entry(entry.rival, contender, _PAIRS, entry.rival, self.options.quantization)
            self.entries.insert(1, pairs)

    def _plain_folder(self) -> str:
        """A folder that transformers opens as the classifier that we run: the model's own, or one written now."""
        options, source = self.config, self.source
        changed = options.hf_overrides or options.tokenizer or options.lora
        if os.path.isdir(options.model) and source.is_classifier and not changed:
            return options.model
        from ..classifier import load_classifier

        self.tell("writing the model for the peers")
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vcls-bench-"))
        passed = (
            "tokenizer",
            "convert",
            "revision",
            "trust_remote_code",
            "allow_pickle",
            "hf_overrides",
            "plugin",
            "lora",
        )
        model = load_classifier(options.model, **{name: getattr(options, name) for name in passed})
        model.save_pretrained(folder)
        assert source.tokenizer is not None
        source.tokenizer.save_pretrained(Path(folder))
        return folder

    # -- measuring ----------------------------------------------------------------------------------

    def _compare(self) -> None:
        """Compare outputs: a contender with other logits is not timed. In int8, the reference is our float32."""
        self.tell("comparing outputs")
        reference: dict[str, np.ndarray] = {}
        judge = next((each for each in self.entries if each.label == FLOAT32), self.entries[0])
        assert judge.contender is not None
        for name, texts in self.sets.items():
            judge.contender.load(name, texts)
            reference[name] = judge.contender.logits(name)
        multi_label = self.described["problem_type"] == "multi_label_classification"
        for entry in self.entries:
            if entry is judge or entry.error is not None or entry.contender is None:
                continue
            try:
                found = entry.contender.logits(entry.texts)
            except BenchError as error:
                if entry.label == OURS:
                    raise
                entry.error = str(error).removeprefix(f"{entry.label}: ")
                continue
            precision = entry.quantization or judge.quantization or self.opening.dtype
            entry.agreement = agreement(reference[entry.texts], found, precision=precision, multi_label=multi_label)

    def _take_turns(self) -> list[float]:
        """Fill `seconds` of every entry that runs; the matrix speed of each round, in GFLOP/s."""
        matrix = self._start(MATRIX)
        matrix.call(
            "open_matrix", shapes=self.described["shapes"], rows=self.rows, threads=self.opening.threads,
            dtype=self.opening.dtype, device=self.opening.device,
        )  # fmt: skip
        turns: dict[str, Callable[[], float]] = {MATRIX: lambda: self._measured(matrix)}
        for entry in self.entries:
            if entry.runs and entry.contender is not None:
                turns[entry.label] = functools.partial(self._turn, entry)
        rounds = self.options.rounds
        found = interleave(turns, rounds, lambda number, name: self.tell(f"round {number + 1} of {rounds}: {name}"))
        for entry in self.entries:
            entry.seconds = found.get(entry.label, [])
        return found[MATRIX]

    def _measured(self, matrix: Contender) -> float:
        measured = matrix.call("measure")
        self.forms: dict[str, str] = measured["forms"]
        return float(measured["gflops"])

    @staticmethod
    def _turn(entry: Entry) -> float:
        """One timed run; its seconds. Its details are stored."""
        assert entry.contender is not None
        result = entry.contender.call("run", name=entry.texts)
        entry.details.append(result["details"])
        return float(result["seconds"])
