"""The WebSocket client against a server that says byte for byte what the test wants, on a real connection."""

import base64
import contextlib
import hashlib
import re
import socket
import struct
import threading
import time

import pytest

from scripts.comfy_socket import (
    ACCEPT_SUFFIX,
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WebSocket,
    WebSocketClosedError,
)


class OneClient:
    """Takes one connection, shakes hands (or answers ``answer``) and sends ``frames``, a pause between each two."""

    def __init__(self, *frames: bytes, answer: bytes | None = None, pause: float = 0) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(10)
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}/ws?clientId=me"
        self.request = b""
        self.received = b""
        self._frames, self._answer, self._pause = frames, answer, pause
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listener.close()
        self._thread.join(10)

    def _serve(self):
        connection, _ = self._listener.accept()
        connection.settimeout(10)
        with connection:
            while b"\r\n\r\n" not in self.request:
                self.request += connection.recv(4096)
            connection.sendall(self._answer or self._handshake())
            for frame in self._frames:
                connection.sendall(frame)
                time.sleep(self._pause)
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                while data := connection.recv(4096):
                    self.received += data

    def _handshake(self):
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", self.request)[1]
        accept = base64.b64encode(hashlib.sha1(key + ACCEPT_SUFFIX).digest())
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nsec-websocket-accept: " + accept + b"\r\n\r\n"
        )


def frame(opcode, payload=b"", final=True):
    head = bytes([opcode | (0x80 if final else 0)])
    if len(payload) < 126:
        return head + bytes([len(payload)]) + payload
    if len(payload) < 1 << 16:
        return head + b"\x7e" + struct.pack(">H", len(payload)) + payload
    return head + b"\x7f" + struct.pack(">Q", len(payload)) + payload


def unmask(data):
    """(opcode, payload) of the frames that a client sent."""
    while data:
        length, start = data[1] & 0x7F, 2
        assert data[1] & 0x80, "a client's frames are masked"
        if length > 125:
            start = 4 if length == 126 else 10
            length = int.from_bytes(data[2:start], "big")
        mask, body = data[start : start + 4], data[start + 4 : start + 4 + length]
        yield data[0] & 0x0F, bytes(byte ^ mask[i % 4] for i, byte in enumerate(body))
        data = data[start + 4 + length :]


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536, 200_001])
def test_messages_of_every_length_arrive(length):
    payload = bytes(i % 251 for i in range(length))
    with OneClient(frame(BINARY, payload)) as server, WebSocket(server.url) as client:
        assert client.receive(10) == (BINARY, payload)


@pytest.mark.parametrize("length", [0, 5, 125, 126, 65536])
def test_what_is_sent_is_masked_and_whole(length):
    with OneClient() as server:
        with WebSocket(server.url) as client:
            client.send_text("ä" * (length // 2))
        server._thread.join(10)
    assert list(unmask(server.received)) == [(TEXT, ("ä" * (length // 2)).encode()), (CLOSE, b"\x03\xe8")]


def test_parts_of_a_message_are_joined_and_pings_between_them_answered():
    frames = (
        frame(TEXT, b"one, ", final=False),
        frame(PING, b"there?"),
        frame(CONTINUATION, b"two, ", final=False),
        frame(PONG, b"unasked"),
        frame(CONTINUATION, b"three"),
        frame(TEXT, b"four"),
    )
    with OneClient(b"".join(frames)) as server:
        with WebSocket(server.url) as client:
            assert client.receive(10) == (TEXT, b"one, two, three")
            assert client.receive(10) == (TEXT, b"four")
        server._thread.join(10)
    assert next(unmask(server.received)) == (PONG, b"there?")


def test_a_frame_that_comes_in_pieces_survives_the_time_limit():
    whole = frame(TEXT, b"a slow message")
    with OneClient(whole[:1], whole[1:6], whole[6:], pause=0.2) as server, WebSocket(server.url) as client:
        answers = []
        while not answers or answers[-1] is None:
            answers.append(client.receive(0.05))
    assert answers[-1] == (TEXT, b"a slow message")
    assert len(answers) > 3


def test_no_message_in_time_is_none():
    with OneClient(frame(TEXT, b"late"), pause=0) as server, WebSocket(server.url) as client:
        assert client.receive(10) == (TEXT, b"late")
    with OneClient(b"", pause=1) as server, WebSocket(server.url) as client:
        began = time.monotonic()
        assert client.receive(0.1) is None
        assert time.monotonic() - began < 0.9


@pytest.mark.parametrize("last", [frame(CLOSE, b"\x03\xe8"), b"", frame(TEXT, b"cut")[:4]])
def test_the_end_of_the_connection_is_an_error(last):
    with OneClient(frame(TEXT, b"one"), last) as server, WebSocket(server.url) as client:
        assert client.receive(10) == (TEXT, b"one")
        with pytest.raises(WebSocketClosedError):
            client.receive(10)


def test_the_request_names_path_and_host():
    with OneClient() as server, WebSocket(server.url):
        pass
    assert server.request.startswith(b"GET /ws?clientId=me HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in server.request


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "404 Not Found"),
        (b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: bm8=\r\n\r\n", "not the one that was asked for"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "did not open a WebSocket"),
    ],
)
def test_another_kind_of_server_is_refused(answer, message):
    with OneClient(answer=answer) as server, pytest.raises(ConnectionError, match=message):
        WebSocket(server.url)


def test_nothing_that_listens_is_an_error_at_once():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        WebSocket(f"ws://127.0.0.1:{port}/ws")
