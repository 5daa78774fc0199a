"""Listens to ComfyUI's events in a test."""

import asyncio
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp


class EventStream:
    """Collects what a ComfyUI server sends to one client, in a thread, until ``close``.

    ``events`` are the JSON messages ``{"type": ..., "data": ...}`` in order; ``previews`` the binary ones as
    (type, payload) with the 4-byte type taken off.
    """

    def __init__(self, port: int, client_id: str) -> None:
        self.client_id = client_id
        self.events: list[dict] = []
        self.previews: list[tuple[int, bytes]] = []
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"events of {client_id}", daemon=True)
        self._thread.start()
        self._session, self._socket = self._run(self._open(f"http://127.0.0.1:{port}/ws?clientId={client_id}"))
        self._listening = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)

    def __enter__(self) -> "EventStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._run(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def send(self, kind: str, data: dict) -> None:
        """Tells the server something, as the browser does with its ``feature_flags``."""
        self._run(self._socket.send_json({"type": kind, "data": data}))

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
                if left <= 0 or self._listening.done():
                    seen = [event["type"] for event in self.events]
                    raise TimeoutError(f"No message '{kind}' within {seconds:g} s; the messages were {seen}.")
                self._changed.wait(min(left, 0.5))

    def _run(self, work: Coroutine) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _open(self, address: str) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
        session = aiohttp.ClientSession()
        return session, await session.ws_connect(address, max_msg_size=0)

    async def _listen(self) -> None:
        async for message in self._socket:
            with self._changed:
                if message.type is aiohttp.WSMsgType.TEXT:
                    self.events.append(message.json())
                else:
                    self.previews.append((struct.unpack(">I", message.data[:4])[0], message.data[4:]))
                self._changed.notify_all()
