"""The socket that `vcls serve` listens on."""

from __future__ import annotations

import socket

from vllm_cls.server.lifecycle import listen


def test_no_part_of_an_answer_waits_for_the_receipt_of_another() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
