"""A server that answers as a ComfyUI does, save for what a test makes it do instead."""

import asyncio
import base64
import contextlib
import hashlib
import json
import struct
import threading
from collections.abc import Awaitable, Callable, Mapping

JOB = "00000000-0000-0000-0000-000000000000"
MEGABYTE = b" " * (1 << 20)
Answer = Callable[["HostileServer", asyncio.StreamWriter], Awaitable[None]]

# answers


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Writes ``data`` no faster than the client reads."""
    writer.write(data)
    await writer.drain()


def head(status: str, *lines: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1")


def plain(body: bytes, *lines: str, status: str = "200 OK") -> Answer:
    """An answer as it should be, with more lines in its head."""

    async def answer(server: "HostileServer", writer: asyncio.StreamWriter) -> None:
        writer.write(head(status, f"Content-Length: {len(body)}", "Connection: close", *lines) + body)

    return answer


def says(content: object) -> Answer:
    return plain(json.dumps(content).encode())


def raw(*parts: bytes, pause: float = 0, forever: bool = False) -> Answer:
    """Bytes, with seconds between them; the last ones again and again."""

    async def answer(server: "HostileServer", writer: asyncio.StreamWriter) -> None:
        for part in parts:
            await send(writer, part)
        while forever:
            await send(writer, parts[-1])
            await asyncio.sleep(pause)

    return answer


def frame(kind: int, data: bytes = b"", *, says: int | None = None, last: bool = True) -> bytes:
    """One of a websocket, which may claim to be longer than it is."""
    return bytes([kind | 0x80 * last, 127]) + struct.pack(">Q", len(data) if says is None else says) + data


def messages(*frames: bytes, forever: bool = False, pause: float = 0) -> Answer:
    """Frames for the client that listens; the job ends ``pause`` seconds after them."""

    async def answer(server: "HostileServer", writer: asyncio.StreamWriter) -> None:
        try:
            for each in frames:
                await send(writer, each)
            while forever:
                await send(writer, frames[-1])
            await asyncio.sleep(pause)
        finally:
            server.done = True
        await asyncio.sleep(0.3)

    return answer


class HostileServer:
    """Listens in a thread, inside ``with``. ``wrong`` holds answers to paths by how these begin.

    ``results`` are the names of the files that the job made. With an answer to "/ws" the job runs until it sets
    ``done``.
    """

    def __init__(self, wrong: Mapping[str, Answer], results: list[str]) -> None:
        self.wrong = wrong
        self.done = "/ws" not in wrong
        self.asked: list[str] = []
        self.port = 0
        items = [{"filename": name, "subfolder": "../..", "type": "output"} for name in results]
        self.entry = {"outputs": {"1": {"images": items}}, "status": {"status_str": "success", "messages": []}}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "HostileServer":
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._listener = asyncio.run_coroutine_threadsafe(starting, self._loop).result(5)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _end(self) -> None:
        self._listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lines = dict(line.lower().split(": ", 1) for line in request.splitlines()[1:] if line)
            await reader.readexactly(int(lines.get("content-length", 0)))
            path = request.split()[1]
            self.asked.append(path)
            if path.startswith("/ws") and "/ws?" not in self.wrong:
                writer.write(accept(request))
            wrong = next((answer for start, answer in self.wrong.items() if path.startswith(start)), None)
            await (wrong or self._right(path))(self, writer)
            await writer.drain()
        writer.close()

    def _right(self, path: str) -> Answer:
        if path.startswith("/ws"):
            return messages()
        if path.startswith("/object_info/"):
            inputs = {"required": {"images": ["IMAGE", {}], "filename_prefix": ["STRING", {}]}}
            return says({path.rpartition("/")[2]: {"input": inputs, "display_name": "Save"}})
        if path.startswith("/history/"):
            return says({JOB: self.entry} if self.done else {})
        if path.startswith("/queue"):
            return says({"queue_running": [] if self.done else [[0, JOB]], "queue_pending": []})
        if path.startswith("/view"):
            return plain(b"DATA")
        return says({"prompt_id": JOB, "node_errors": {}})


def accept(request: str) -> bytes:
    """The head that opens a websocket."""
    key = next(line.split(": ", 1)[1] for line in request.splitlines() if line.lower().startswith("sec-websocket-key"))
    sealed = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
    upgrade = ("Upgrade: websocket", "Connection: Upgrade")
    return head("101 Switching", *upgrade, f"Sec-WebSocket-Accept: {base64.b64encode(sealed).decode()}")
