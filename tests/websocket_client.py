"""Listens to ComfyUI's events in a test."""

import contextlib
import json
import struct
import threading
import time
from collections.abc import Callable

from scripts.comfy_socket import TEXT, Message, WebSocket, WebSocketClosedError


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
        self._socket = WebSocket(f"ws://127.0.0.1:{port}/ws?clientId={client_id}", seconds=seconds)
        self._thread = threading.Thread(target=self._listen, name=f"events of {client_id}", daemon=True)
        self._thread.start()

    def __enter__(self) -> "EventStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()
        self._thread.join(5)

    def send(self, kind: str, data: dict) -> None:
        """Tells the server something, as the browser does with its ``feature_flags``."""
        self._socket.send_text(json.dumps({"type": kind, "data": data}))

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

    def _listen(self) -> None:
        with contextlib.suppress(WebSocketClosedError):  # whoever waits for a message is told that none came
            while True:
                self._keep(self._socket.receive())

    def _keep(self, message: Message) -> None:
        with self._changed:
            if message.kind == TEXT:
                self.events.append(json.loads(message.payload))
            else:
                self.previews.append((struct.unpack(">I", message.payload[:4])[0], message.payload[4:]))
            self._changed.notify_all()
