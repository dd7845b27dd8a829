"""JSON: an array, or values one after the other, read value by value."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from ...errors import JobError
from ..rows import InputRow, json_type
from .streams import LINE_LIMIT, Stream, without_mark


def read_json(stream: Stream) -> Iterator[InputRow]:
    """An array of objects or of texts, or objects one after the other, one in memory at a time.

    Raises:
        JobError: the text is not JSON, and what follows cannot be parsed; or all rows are in one object.
    """
    values = _JsonValues(stream)
    array = values.take("[")
    number, of_texts = 0, False
    while (mark := values.peek()) not in ("", "]"):
        if array and number and not values.take(","):
            raise JobError(f"not a JSON array: after row {number} there is {mark!r} in place of a comma.")
        number += 1
        value, error = values.next(number, array)
        if number == 1:
            of_texts = array and isinstance(value, str)
            if not array and not values.peek():
                _check_single(value)
        if of_texts and isinstance(value, str):
            value = {"text": value}
        elif not isinstance(value, dict):
            wanted = "a text" if of_texts else "an object"
            value, error = {}, error or f"the value is {json_type(value)}, not {wanted}"
        yield InputRow(value, number, stream.offset, error)
    if values.take("]") != array:
        raise JobError(f"not a JSON array: {'its end' if array else 'its beginning'} is missing (rows read: {number}).")
    if values.peek():
        raise JobError(f"not a JSON array: something follows its end, {values.peek()!r}.")


def _check_single(value: Any) -> None:
    """Refuse an object, the only one of its file, that holds all rows, by columns or deeper down."""
    if not isinstance(value, dict) or not value:
        return
    if all(isinstance(each, list | dict) for each in value.values()) or any(map(_holds_rows, value.values())):
        names = ", ".join(map(repr, [*value][:3])) + (" …" if len(value) > 3 else "")
        raise JobError(
            f"the file is one object with {names}, and its rows are inside it; write an array with an object a row, "
            '[{"text": "…"}, …], or JSON lines.'
        )


def _holds_rows(value: Any) -> bool:
    """Whether a value is a list of objects that are no chat messages."""
    return isinstance(value, list) and any(isinstance(each, dict) and "role" not in each for each in value)


_SKIPPED = '"[{'
_TOKENS = re.compile(r'\\.|["\[\]{}]', re.DOTALL)


class _JsonValues:
    """JSON values read from a stream bit by bit; `_text[_at:]` is what is decoded and not yet used."""

    def __init__(self, stream: Stream) -> None:
        # bytes that are not UTF-8 become lone surrogates, so that they can be blamed on their row
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._stream, self._text, self._at = stream, "", 0
        self._started = self._ended = False
        self._parse = json.JSONDecoder().raw_decode

    def _more(self, size: int = 2**16) -> bool:
        if self._ended:
            return False
        data = self._stream.read(size)
        self._ended = not data
        data = data if self._started else without_mark(data)
        self._started = True
        self._text, self._at = self._text[self._at :] + self._decode(data, self._ended), 0
        return True

    def peek(self) -> str:
        """The next character that is not space, unused; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def take(self, mark: str) -> bool:
        """Use the next character if it is `mark`."""
        found = self.peek() == mark
        self._at += found
        return found

    def next(self, number: int, array: bool) -> tuple[Any, str | None]:
        """The next value, and what is wrong with it; one that is longer than LINE_LIMIT is skipped, where an array goes on.

        Raises:
            JobError: it is not JSON.
        """
        self.peek()
        while True:
            failure: Exception | None = None
            try:
                value, end = self._parse(self._text, self._at)
                if end < len(self._text) or self._ended:  # else a number may go on
                    return self._checked(value, end)
            except (ValueError, RecursionError) as error:
                failure = error
            size = len(self._text) - self._at
            if size > LINE_LIMIT and array and self._text[self._at] in _SKIPPED:
                self._skip(number)
                return None, f"the value is longer than {LINE_LIMIT >> 20} MiB"
            if size > LINE_LIMIT or not self._more(max(size, 2**16)):
                where = f"row {number} is not JSON" if size <= LINE_LIMIT else f"row {number} is too long or not JSON"
                raise JobError(f"{where}: {getattr(failure, 'msg', failure)}.")

    def _skip(self, number: int) -> None:
        """Read on to the end of a text, an object or an array without keeping it."""
        depth, quoted = 0, False
        while True:
            for found in _TOKENS.finditer(self._text, self._at):
                token = found[0]
                self._at = found.end()
                if token == '"':
                    quoted = not quoted
                elif not quoted and token in "[{":
                    depth += 1
                elif not quoted and token in "]}":
                    depth -= 1
                if not depth and not quoted:
                    return
            cut = self._text.endswith("\\") and self._at < len(self._text)  # an escape whose second half comes
            self._at = len(self._text) - cut
            if not self._more():
                raise JobError(f"row {number} is too long or not JSON: its end is missing.")

    def _checked(self, value: Any, end: int) -> tuple[Any, str | None]:
        raw, self._at = self._text[self._at : end], end
        try:
            raw.encode()
        except UnicodeEncodeError:
            clean = raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            return json.loads(clean), "invalid UTF-8"
        return value, None
