"""A running ComfyUI, seen from a program: its HTTP requests, with errors that say what to do.

Whoever answers may mean harm: every answer has a longest size and a longest time, none leads to another address, and
what it holds is looked at before it is used.
"""

import asyncio
import re
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import aiohttp

from .texts import one_line, read_json

if sys.version_info >= (3, 11):
    from asyncio import timeout
else:
    from async_timeout import timeout  # aiohttp brings it where Python has none; asyncio.wait_for may lose its end

T = TypeVar("T")
CHUNK = 1 << 20
LOOPBACK = ("localhost", "127.0.0.1", "::1")
CONNECT_SECONDS = 10
"""How long the server may take to open its stream of messages."""
LARGEST_ANSWER = 32 << 20
"""Bytes of JSON that a server may answer a request with."""
LARGEST_MESSAGE = 32 << 20
"""Bytes of one message in its stream; pictures come through it as well."""
SLOWEST = 32 << 10
"""Bytes a second that a file has to move with on average, once it had the time that any answer has."""
JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")


class ServerError(RuntimeError):
    """The server could not be reached, or answered with something that it should not."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class UnreachableError(ServerError):
    """Nothing answers at the address of the server."""


class RefusedError(ServerError):
    """The server did not take a workflow. ``answer`` says why, per node."""

    def __init__(self, answer: dict) -> None:
        super().__init__("The server refused the workflow.")
        self.answer = answer


@dataclass(frozen=True)
class Result:
    """A file that a node made: where the server keeps it."""

    filename: str
    subfolder: str
    type: str


def expect(kind: type[T], value: object, what: str) -> T:
    """``value`` where it is a ``kind``; else ServerError, since no ComfyUI answers so."""
    if isinstance(value, kind):
        return value
    raise ServerError(
        f"The server answered as no ComfyUI does: {what} should be of the type {kind.__name__}, and is of the type "
        f"{type(value).__name__}."
    )


async def refuse_redirect(_session: object, _context: object, redirect: aiohttp.TraceRequestRedirectParams) -> None:
    """A server may not send us elsewhere: to another machine of the network, or to one that lies about the first."""
    place = redirect.response.headers.get("Location", "nowhere")
    raise ServerError(
        f"{redirect.url.origin()} sends this program on to {one_line(place, 200)}, and it goes to no other address "
        "than the one that it was given. If that is the right one, name it with --server."
    )


class Server:
    """The ComfyUI at ``url``, reachable inside ``async with``; ``seconds`` bounds how long it may take to answer."""

    def __init__(self, url: str, *, seconds: float = 60) -> None:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{url}' is no address of a server, such as http://127.0.0.1:8188.")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._seconds = seconds
        self._proxies = parts.hostname not in LOOPBACK  # a proxy cannot reach what listens on this machine only
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Server":
        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(refuse_redirect)
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._seconds, sock_read=self._seconds),
            trust_env=self._proxies,
            trace_configs=[trace],
            headers={"Accept-Encoding": "identity"},
            auto_decompress=False,  # a few bytes could become as many as they like
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    # requests

    async def get(self, path: str, **query: str) -> Any:
        """The JSON that GET ``path`` answers."""
        return await self._json("GET", path, params=query)

    async def post(self, path: str, payload: object) -> Any:
        return await self._json("POST", path, json=payload)

    async def _json(self, method: str, path: str, *, bytes_sent: int = 0, **options: Any) -> Any:
        """The JSON of an answer that is there, whole, in time."""
        try:
            async with timeout(self._seconds + bytes_sent / SLOWEST):
                answer, body = await self._read(method, path, options)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise self._unreachable(error) from error
        try:
            content = read_json(body) if body else None
        except ValueError as error:
            if answer.ok:
                raise ServerError(f"What answers at {self.url} is no ComfyUI: {path} is not JSON.") from error
            content = None
        if answer.ok:
            return content
        if path == "/prompt" and isinstance(content, dict) and "error" in content:
            raise RefusedError(content)
        doubt = "; is it a ComfyUI?" if answer.status == 404 else "."
        raise ServerError(f"{self.url} answered {path} with {answer.status} {answer.reason}{doubt}")

    async def _read(self, method: str, path: str, options: dict) -> tuple[aiohttp.ClientResponse, bytes]:
        async with self._session.request(method, self.url + path, **options) as answer:
            return answer, b"".join([data async for data in self._pieces(answer, LARGEST_ANSWER, path)])

    async def _pieces(self, answer: aiohttp.ClientResponse, most: int, what: str) -> AsyncIterator[bytes]:
        """The bytes of an answer as they come; ServerError where they are more than ``most``, packed, or too slow."""
        began, count = time.monotonic(), 0
        packed = answer.headers.get("Content-Encoding", "identity")
        if packed != "identity":
            raise ServerError(f"{self.url} answered {what} packed as {packed}, which it was not asked for.")
        if (answer.content_length or 0) > most:
            raise ServerError(f"{what} has {answer.content_length:,} bytes; at most {most:,} are taken.")
        async for data in answer.content.iter_chunked(CHUNK):
            count += len(data)
            if count > most:
                raise ServerError(f"{what} has more than the {most:,} bytes that are taken.")
            if time.monotonic() - began > self._seconds + count / SLOWEST:
                raise ServerError(f"{what} comes too slowly: {count:,} bytes in {time.monotonic() - began:.0f} s.")
            yield data

    def _unreachable(self, error: Exception) -> UnreachableError:
        reason = one_line(str(error), 300) or "it does not answer in time"
        return UnreachableError(
            f"No ComfyUI answers at {self.url} ({reason}). Start it with 'python main.py' in its folder, or name "
            "another one with --server."
        )

    # ComfyUI

    async def object_info(self, classes: Iterable[str]) -> dict[str, dict]:
        """The descriptions of the node classes that the server has, by class."""
        found: dict[str, dict] = {}
        for name in sorted(classes):
            answer = await self.get(f"/object_info/{urllib.parse.quote(name, safe='')}")
            if name in expect(dict, answer, "/object_info"):
                found[name] = expect(dict, answer[name], f"the description of {name}")
        return found

    async def submit(self, prompt: dict, *, prompt_id: str, client_id: str, workflow: dict | None) -> dict:
        """Queues an API workflow, and returns the server's {"prompt_id", "node_errors"}; RefusedError if it refuses.

        ``workflow``, the canvas form, is stored in the files that are made, as the editor does.
        """
        extra = {} if workflow is None else {"extra_pnginfo": {"workflow": workflow}}
        payload = {"prompt": prompt, "prompt_id": prompt_id, "client_id": client_id, "extra_data": extra}
        answer = expect(dict, await self.post("/prompt", payload), "the answer to a workflow")
        if not JOB_ID.fullmatch(expect(str, answer.get("prompt_id"), "the id of the job")):
            raise ServerError(
                "The server answered as no ComfyUI does: the id of the job is not one of letters and digits."
            )
        return answer | {"node_errors": expect(dict, answer.get("node_errors") or {}, "node_errors")}

    async def history(self, prompt_id: str) -> dict | None:
        """What became of a workflow, or None while it has not ended."""
        entry = expect(dict, await self.get(f"/history/{prompt_id}"), "the history").get(prompt_id)
        return None if entry is None else read_entry(entry)

    async def jobs_ahead(self, prompt_id: str) -> int | None:
        """How many jobs run before this one does: 0 while it runs, None where the queue does not hold it."""
        queue = expect(dict, await self.get("/queue"), "the queue")
        running, pending = read_jobs(queue, "queue_running"), sorted(read_jobs(queue, "queue_pending"))
        if any(name == prompt_id for _, name in running):
            return 0
        places = [place for place, (_, name) in enumerate(pending) if name == prompt_id]
        return len(running) + places[0] if places else None

    async def cancel(self, prompt_id: str) -> None:
        """Takes a job off the queue, or stops it where it runs; other people's jobs go on."""
        await self.post("/queue", {"delete": [prompt_id]})
        # Servers that are too old to know whom to interrupt stop whatever runs, so it has to be looked at first.
        if await self.jobs_ahead(prompt_id) == 0:
            await self.post("/interrupt", {"prompt_id": prompt_id})

    async def events(self, client_id: str) -> aiohttp.ClientWebSocketResponse:
        """The server's messages to ``client_id``; UnreachableError where there is no way to them."""
        address = f"{self.url}/ws?{urllib.parse.urlencode({'clientId': client_id})}"
        try:
            async with timeout(CONNECT_SECONDS):
                return await self._session.ws_connect(address, max_msg_size=LARGEST_MESSAGE)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise self._unreachable(error) from error

    # files

    async def upload(self, path: Path) -> str:
        """Puts a file into the server's input folder and returns its name there.

        A file of that name with other content is left alone; the new one gets a number.
        """
        form = aiohttp.FormData(quote_fields=False)  # the server takes names as they are
        form.add_field("type", "input")
        with path.open("rb") as file:
            form.add_field("image", file, filename=path.name)
            answer = await self._json("POST", "/upload/image", bytes_sent=path.stat().st_size, data=form)
        answer = expect(dict, answer, "the answer to an upload")
        parts = [expect(str, answer.get(key) or "", f"the {key} of an upload") for key in ("subfolder", "name")]
        return "/".join(part for part in parts if part)

    async def download(self, result: Result, file: BinaryIO, most: int) -> None:
        """Copies a result of at most ``most`` bytes into ``file``; ServerError where it does not arrive whole."""
        query = {"filename": result.filename, "subfolder": result.subfolder, "type": result.type}
        try:
            async with timeout(self._seconds):
                answer = await self._session.get(f"{self.url}/view", params=query, raise_for_status=True)
            async with answer:
                async for data in self._pieces(answer, most, "it"):
                    file.write(data)
        except aiohttp.ClientResponseError as error:
            reason = f"{error.status} {one_line(error.message, 300)}"
            raise ServerError(f"{self.url} does not give it out: {reason}.") from error
        except aiohttp.ClientPayloadError as error:
            raise ServerError("it did not arrive whole.") from error
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise self._unreachable(error) from error


async def read_object_info(url: str) -> dict[str, dict]:
    """What the server at ``url`` says of all its node classes."""
    async with Server(url) as server:
        return await server.get("/object_info")


def read_jobs(queue: dict, name: str) -> list[tuple[float, str]]:
    """(place, id) of the jobs in one half of a queue."""
    jobs = [expect(list, job, "a job in the queue") for job in expect(list, queue.get(name), f"its {name}")]
    if not all(len(job) > 1 and isinstance(job[0], int | float) and isinstance(job[1], str) for job in jobs):
        raise ServerError("The server answered as no ComfyUI does: a job in its queue has no place or no id.")
    return [(job[0], job[1]) for job in jobs]


def read_entry(entry: object) -> dict:
    """A history entry with "outputs" (node -> name -> what was made) and "status", both as ComfyUI has them."""
    entry = expect(dict, entry, "the history of the job")
    status = expect(dict, entry.get("status") or {}, "the job's status")
    messages = expect(list, status.get("messages") or [], "the list of the job's messages")
    for message in messages:
        if not (isinstance(message, list) and list(map(type, message)) == [str, dict]):
            raise ServerError("The server answered as no ComfyUI does: a message about the job has no name or no data.")
    outputs = expect(dict, entry.get("outputs") or {}, "what the job made")
    for node, made in outputs.items():
        expect(dict, made, f"what node {node} made")
    return {"outputs": outputs, "status": status | {"messages": messages}}


def results_of(entry: dict) -> list[Result]:
    """The files that a history entry names, each once, in its order; files that were only read are not among them."""
    found: dict[Result, None] = {}
    for outputs in entry.get("outputs", {}).values():
        for items in outputs.values():
            for item in items if isinstance(items, list) else []:
                if isinstance(item, dict) and item.get("type") in ("output", "temp") and item.get("filename"):
                    name, folder = (sendable(item.get(key) or "") for key in ("filename", "subfolder"))
                    found[Result(name, folder, item["type"])] = None
    return list(found)


def sendable(value: object) -> str:
    """A text that can be part of an address, which half of a surrogate pair cannot."""
    return str(value).encode("utf-8", "replace").decode()


def texts_of(entry: dict) -> list[tuple[str, str]]:
    """(node, text) of what nodes show as text."""
    shown = []
    for node, outputs in entry.get("outputs", {}).items():
        texts = outputs.get("text") or []
        texts = texts if isinstance(texts, list) else [texts]
        shown += [(node, text) for text in texts if isinstance(text, str)]
    return shown
