"""A WebSocket client in a few lines of standard library: enough to listen to ComfyUI's events in a test."""

import base64
import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


class EventStream:
    """Collects what a ComfyUI server sends to one client, in a thread, until ``close``.

    ``events`` are the JSON messages ``{"type": ..., "data": ...}`` in order; ``previews`` the binary ones as
    (type, payload) with the 4-byte type taken off.
    """

    def __init__(self, port: int, client_id: str, *, seconds: float = 10) -> None:
        self.client_id = client_id
        self.events: list[dict] = []
        self.previews: list[tuple[int, bytes]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self._reader = self._socket.makefile("rb")
        self._shake_hands(port)
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._listen, name=f"events of {client_id}", daemon=True)
        self._thread.start()

    def __enter__(self) -> "EventStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(OSError):  # raised where the server was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._reader.close()
        self._socket.close()

    def of_type(self, kind: str) -> list[dict]:
        """The data of all messages of one type so far."""
        with self._changed:
            return [event["data"] for event in self.events if event["type"] == kind]

    def wait_for(self, kind: str, where: Callable[[dict], bool] = lambda data: True, *, seconds: float = 60) -> dict:
        """The data of the first message of type ``kind`` for which ``where`` holds; TimeoutError if none comes."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                for event in self.events:
                    if event["type"] == kind and where(event["data"]):
                        return event["data"]
                left = deadline - time.monotonic()
                if left <= 0 or not self._thread.is_alive():
                    seen = [event["type"] for event in self.events]
                    raise TimeoutError(f"No message '{kind}' within {seconds:g} s; the messages were {seen}.")
                self._changed.wait(min(left, 0.5))

    def _shake_hands(self, port: int) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET /ws?clientId={self.client_id} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        status = self._reader.readline()
        if b" 101 " not in status:
            raise ConnectionError(f"The server did not open a WebSocket: {status!r}")
        while self._reader.readline().strip():
            pass

    def _listen(self) -> None:
        message = b""
        try:
            while True:
                final, opcode, payload = self._read_frame()
                if opcode == CLOSE:
                    return
                if opcode == PING:
                    self._send(PONG, payload)
                    continue
                if opcode in (TEXT, BINARY):
                    message, kind = b"", opcode
                message += payload
                if final and opcode != PONG:
                    self._keep(kind, message)
        except OSError:
            if not self._closed:
                raise

    def _keep(self, kind: int, message: bytes) -> None:
        with self._changed:
            if kind == TEXT:
                self.events.append(json.loads(message))
            else:
                self.previews.append((struct.unpack(">I", message[:4])[0], message[4:]))
            self._changed.notify_all()

    def _read_frame(self) -> tuple[bool, int, bytes]:
        first, second = self._read(2)
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack(">H", self._read(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self._read(8))
        return bool(first & 0x80), first & 0x0F, self._read(length)

    def _read(self, count: int) -> bytes:
        data = self._reader.read(count)
        if len(data) < count:
            raise ConnectionError("The server closed the connection.")
        return data

    def _send(self, opcode: int, payload: bytes) -> None:
        """One short masked frame, as a client has to send it."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._socket.sendall(bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked)
