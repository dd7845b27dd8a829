"""`BatchClassifier`: the class that Ray Data's `map_batches` takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..jobs.options import JobOptions
from ..jobs.results.result_columns import ADDED_TYPES, KeptFields
from ..jobs.rows import InputRow, PromptFields


class BatchClassifier:
    """Classifies the rows of batches, in a data pipeline of one's own.

    dataset.map_batches(BatchClassifier, fn_constructor_kwargs={"model": "my-classifier"}, concurrency=2, num_gpus=1)

    A batch comes back in its form (an Arrow table, a pandas frame or a dict of arrays), with the columns of `vcls classify`
    beside its own: `label`, `score`, `probs` …, and always `truncated` and `error`. A column that has the name of one of these
    is kept as `input_` and its name. A bad row keeps its place, with `error` and null results.

    Args:
        model: as for `LLM`.
        text_field: the column of the text.
        text_pair_field: of a second text.
        messages_field: of chat messages, in place of a text.
        top_k, scores, logits, threshold, use_activation, head_name, aggregation, long_text, truncation_side: as for
            `classify_file`.
        llm_options: options of `LLM`; on CPUs give `num_threads`, as many as `num_cpus` of `map_batches`.

    Raises:
        ConfigError: the model does not do what the options ask.
        ModelError: the model cannot be loaded.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        text_field: str = "text",
        text_pair_field: str | None = None,
        messages_field: str | None = None,
        threshold: float = 0.5,
        top_k: int | None = None,
        scores: bool = False,
        logits: bool = False,
        use_activation: bool | None = None,
        head_name: str | None = None,
        aggregation: str | None = None,
        long_text: str = "truncate",
        truncation_side: str | None = None,
        **llm_options: Any,
    ) -> None:
        from ..jobs.pipeline.answers import RowWorker

        options = JobOptions(
            PromptFields(text_field, text_pair_field, messages_field),
            threshold=threshold,
            top_k=top_k,
            scores=scores,
            logits=logits,
            use_activation=use_activation,
            head_name=head_name,
            aggregation=aggregation,
            long_text=long_text,
            truncation_side=truncation_side,
        )
        self._worker = RowWorker.opened(os.fspath(model), options, llm_options)

    def __call__(self, batch: Any) -> Any:
        """A batch with its results."""
        import pyarrow as pa

        if isinstance(batch, pa.Table):
            return self._classified(batch)
        if isinstance(batch, Mapping):
            return {**self._kept(batch), **{name: _array(values) for name, values in self._results(batch).items()}}
        table = self._classified(pa.Table.from_pandas(batch, preserve_index=False))  # a pandas frame
        return table.to_pandas()

    def _classified(self, table: Any) -> Any:
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        names = self._names(columns)
        table = table.rename_columns([names[name] for name in table.column_names])
        for name, values in self._results(columns).items():
            table = table.append_column(name, values)
        return table

    def _kept(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        names = self._names(batch)
        return {names[name]: values for name, values in batch.items()}

    def _names(self, batch: Mapping[str, Any]) -> dict[str, str]:
        return KeptFields("all", [*self._worker.plan.columns.types, *ADDED_TYPES]).mapping(list(batch))

    def _results(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of the results, as Arrow's arrays."""
        columns = {name: [_plain(each) for each in values] for name, values in batch.items()}
        rows = [
            InputRow(dict(zip(columns, each, strict=True)), n)
            for n, each in enumerate(zip(*columns.values(), strict=True), 1)
        ]
        found = [each.results for each in self._worker.compute(iter(rows))]
        return self._worker.plan.arrays(found)


def _plain(value: Any) -> Any:
    """A value of a numpy array as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def _array(values: Any) -> Any:
    """An Arrow array as numpy's, in which null is None."""
    import numpy as np

    found = np.empty(len(values), object)
    found[:] = values.to_pylist()
    return found
