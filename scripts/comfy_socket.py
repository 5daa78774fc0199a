"""The client's side of the WebSocket protocol (RFC 6455), as far as listening to a server needs it.

Only the standard library is used, so that the scripts run in any Python. No extensions and no subprotocols are offered,
and a server that answers with one is refused by the protocol's own rules.
"""

import base64
import contextlib
import hashlib
import os
import socket
import ssl
import struct
import time
import urllib.parse
from typing import NamedTuple

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
ACCEPT_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""What RFC 6455 appends to a client's key before hashing, to show that the answer comes from a WebSocket server."""
CHUNK = 1 << 16


class Message(NamedTuple):
    """One message: its kind, TEXT or BINARY, and its bytes."""

    kind: int
    payload: bytes


class WebSocketClosedError(ConnectionError):
    """The connection ended, by a closing frame or without one."""


class WebSocket:
    """An open connection to ``url`` (ws:// or wss://).

    ``seconds`` bounds connecting and the handshake. Raises OSError where nothing listens, ConnectionError where what
    listens does not speak the protocol. One thread may receive while another sends or closes.
    """

    def __init__(self, url: str, *, seconds: float = 10) -> None:
        parts = urllib.parse.urlsplit(url)
        secure = parts.scheme == "wss"
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        self._buffer = bytearray()
        self._kind = TEXT
        self._message = bytearray()
        self._socket = socket.create_connection((host, port), timeout=seconds)
        try:
            if secure:
                self._socket = ssl.create_default_context().wrap_socket(self._socket, server_hostname=host)
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            self._shake_hands(path, parts.netloc.rpartition("@")[2], time.monotonic() + seconds)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> "WebSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def receive(self, seconds: float | None = None) -> Message | None:
        """The next message, or None where none was complete after ``seconds``; None waits without end.

        Raises WebSocketClosedError once the connection has ended. A frame that was cut by the time limit is continued
        by the next call.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                message = self._handle(*self._read_frame(deadline))
            except TimeoutError:
                return None
            if message is not None:
                return message

    def send_text(self, text: str) -> None:
        self._send(TEXT, text.encode())

    def close(self) -> None:
        with contextlib.suppress(OSError):  # raised where the server was faster
            self._send(CLOSE, struct.pack(">H", 1000))
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _shake_hands(self, path: str, host: str, deadline: float) -> None:
        key = base64.b64encode(os.urandom(16))
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key.decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        while b"\r\n\r\n" not in self._buffer:
            self._fill(deadline)
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self._buffer = bytearray(rest)
        status, *lines = head.decode("latin-1").split("\r\n")
        if status.split(" ")[1:2] != ["101"]:
            raise ConnectionError(f"The server did not open a WebSocket: {status}")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        expected = base64.b64encode(hashlib.sha1(key + ACCEPT_SUFFIX).digest()).decode()
        if headers.get("sec-websocket-accept") != expected:
            raise ConnectionError("The server's answer to the WebSocket handshake is not the one that was asked for.")

    def _handle(self, final: bool, opcode: int, payload: bytes) -> Message | None:
        """What one frame completes: a message, or nothing yet."""
        if opcode == CLOSE:
            raise WebSocketClosedError("The server closed the connection.")
        if opcode == PING:
            with contextlib.suppress(OSError):  # what is wrong shows at the next read
                self._send(PONG, payload)
        if opcode in (PING, PONG):  # may come between the frames of one message
            return None
        if opcode != CONTINUATION:
            self._kind, self._message = opcode, bytearray()
        self._message += payload
        return Message(self._kind, bytes(self._message)) if final else None

    def _read_frame(self, deadline: float | None) -> tuple[bool, int, bytes]:
        """(is last of its message, opcode, payload). A server's frames are not masked."""
        start = 2
        while len(self._buffer) < start:
            self._fill(deadline)
        length = self._buffer[1] & 0x7F
        if length > 125:
            start += 2 if length == 126 else 8
            while len(self._buffer) < start:
                self._fill(deadline)
            length = int.from_bytes(self._buffer[2:start], "big")
        while len(self._buffer) < start + length:
            self._fill(deadline)
        first, payload = self._buffer[0], bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        return bool(first & 0x80), first & 0x0F, payload

    def _fill(self, deadline: float | None) -> None:
        """Adds what has arrived to the buffer; TimeoutError where nothing does until ``deadline``."""
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("The server sent nothing in time.")
        try:
            self._socket.settimeout(left)
            data = self._socket.recv(CHUNK)
        except TimeoutError:
            raise
        except OSError as error:
            raise WebSocketClosedError(f"The connection broke: {error}") from error
        if not data:
            raise WebSocketClosedError("The server closed the connection.")
        self._buffer += data

    def _send(self, opcode: int, payload: bytes) -> None:
        """One frame, masked as a client's have to be."""
        count = len(payload)
        if count < 126:
            length = bytes([0x80 | count])
        elif count < 1 << 16:
            length = bytes([0x80 | 126]) + struct.pack(">H", count)
        else:
            length = bytes([0x80 | 127]) + struct.pack(">Q", count)
        mask = os.urandom(4)
        stream = (mask * (count // 4 + 1))[:count]
        masked = (int.from_bytes(payload, "big") ^ int.from_bytes(stream, "big")).to_bytes(count, "big")
        self._socket.sendall(bytes([0x80 | opcode]) + length + mask + masked)
