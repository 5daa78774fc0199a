"""A running ComfyUI, seen from a program: its HTTP requests, with errors that say what to do."""

import asyncio
import json
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import aiohttp

CHUNK = 1 << 20
LOOPBACK = ("localhost", "127.0.0.1", "::1")
CONNECT_SECONDS = 10
"""How long the server may take to open its stream of messages."""


class ServerError(RuntimeError):
    """The server could not be reached, or answered with something that it should not."""


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

    @property
    def name(self) -> str:
        """The name without any folder, whatever the server called the file."""
        return PurePosixPath(self.filename.replace("\\", "/")).name


class Server:
    """The ComfyUI at ``url``, reachable inside ``async with``; ``seconds`` bounds how long it may stay silent."""

    def __init__(self, url: str, *, seconds: float = 60) -> None:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{url}' is no address of a server, such as http://127.0.0.1:8188.")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)
        self._proxies = parts.hostname not in LOOPBACK  # a proxy cannot reach what listens on this machine only
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Server":
        self._session = aiohttp.ClientSession(timeout=self._timeout, trust_env=self._proxies)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    # requests

    async def get(self, path: str, **query: str) -> Any:
        """The JSON that GET ``path`` answers."""
        return await self._json("GET", path, params=query)

    async def post(self, path: str, payload: object) -> Any:
        return await self._json("POST", path, json=payload)

    async def _json(self, method: str, path: str, **options: Any) -> Any:
        try:
            async with self._session.request(method, self.url + path, **options) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise self._unreachable(error) from error
        try:
            content = json.loads(body) if body else None
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

    def _unreachable(self, error: Exception) -> UnreachableError:
        reason = str(error) or "it does not answer in time"
        return UnreachableError(
            f"No ComfyUI answers at {self.url} ({reason}).\nStart it with 'python main.py' in its folder, or name "
            "another one with --server."
        )

    # ComfyUI

    async def object_info(self, classes: Iterable[str]) -> dict[str, dict]:
        """The descriptions of the node classes that the server has, by class."""
        found: dict[str, dict] = {}
        for name in sorted(classes):
            answer = await self.get(f"/object_info/{urllib.parse.quote(name, safe='')}")
            if not isinstance(answer, dict):
                raise ServerError(f"What answers at {self.url} is no ComfyUI.")
            found |= answer
        return found

    async def submit(self, prompt: dict, *, prompt_id: str, client_id: str, workflow: dict | None) -> dict:
        """Queues an API workflow, and returns the server's {"prompt_id", "node_errors"}; RefusedError if it refuses.

        ``workflow``, the canvas form, is stored in the files that are made, as the editor does.
        """
        extra = {} if workflow is None else {"extra_pnginfo": {"workflow": workflow}}
        payload = {"prompt": prompt, "prompt_id": prompt_id, "client_id": client_id, "extra_data": extra}
        return await self.post("/prompt", payload)

    async def history(self, prompt_id: str) -> dict | None:
        """What became of a workflow, or None while it has not ended."""
        return (await self.get(f"/history/{prompt_id}")).get(prompt_id)

    async def jobs_ahead(self, prompt_id: str) -> int | None:
        """How many jobs run before this one does: 0 while it runs, None where the queue does not hold it."""
        queue = await self.get("/queue")
        running, pending = queue["queue_running"], sorted(queue["queue_pending"], key=lambda job: job[0])
        if any(job[1] == prompt_id for job in running):
            return 0
        places = [place for place, job in enumerate(pending) if job[1] == prompt_id]
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
            return await asyncio.wait_for(self._session.ws_connect(address, max_msg_size=0), CONNECT_SECONDS)
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
            answer = await self._json("POST", "/upload/image", data=form)
        return "/".join(part for part in (answer.get("subfolder"), answer["name"]) if part)

    async def download(self, result: Result, file: BinaryIO) -> None:
        """Copies a result into ``file``; ServerError where it does not arrive whole."""
        query = {"filename": result.filename, "subfolder": result.subfolder, "type": result.type}
        try:
            async with self._session.get(f"{self.url}/view", params=query, raise_for_status=True) as answer:
                async for data in answer.content.iter_chunked(CHUNK):
                    file.write(data)
        except aiohttp.ClientResponseError as error:
            reason = f"{error.status} {error.message}"
            raise ServerError(f"{self.url} does not give out {result.filename}: {reason}.") from error
        except aiohttp.ClientPayloadError as error:
            raise ServerError(f"{result.filename} broke off after {file.tell()} bytes.") from error
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise self._unreachable(error) from error


async def read_object_info(url: str) -> dict[str, dict]:
    """What the server at ``url`` says of all its node classes."""
    async with Server(url) as server:
        return await server.get("/object_info")


def results_of(entry: dict) -> list[Result]:
    """The files that a history entry names, each once, in its order; files that were only read are not among them."""
    found: dict[Result, None] = {}
    for outputs in entry.get("outputs", {}).values():
        for items in outputs.values():
            for item in items if isinstance(items, list) else []:
                if isinstance(item, dict) and item.get("type") in ("output", "temp") and item.get("filename"):
                    found[Result(item["filename"], item.get("subfolder") or "", item["type"])] = None
    return list(found)


def texts_of(entry: dict) -> list[tuple[str, str]]:
    """(node, text) of what nodes show as text."""
    shown = []
    for node, outputs in entry.get("outputs", {}).items():
        texts = outputs.get("text") or []
        shown += [(node, text) for text in ([texts] if isinstance(texts, str) else texts) if isinstance(text, str)]
    return shown
