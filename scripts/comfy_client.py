"""A running ComfyUI, seen from a program: its HTTP requests, with errors that say what to do."""

import contextlib
import json
import mimetypes
import secrets
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from .comfy_socket import WebSocket

CHUNK = 1 << 20
LOOPBACK = ("localhost", "127.0.0.1", "::1")


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
    """The ComfyUI at ``url``; ``seconds`` bounds how long one request may take to be answered."""

    def __init__(self, url: str, *, seconds: float = 60) -> None:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{url}' is no address of a server, such as http://127.0.0.1:8188.")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._seconds = seconds
        # A proxy cannot reach what listens on this machine only.
        handlers = [urllib.request.ProxyHandler({})] if parts.hostname in LOOPBACK else []
        self._opener = urllib.request.build_opener(*handlers)

    # requests

    def _open(self, request: urllib.request.Request) -> HTTPResponse:
        """The answer to a request; UnreachableError where there is none, HTTPError where it is a refusal."""
        try:
            return self._opener.open(request, timeout=self._seconds)
        except urllib.error.HTTPError:
            raise
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise UnreachableError(
                f"No ComfyUI answers at {self.url} ({reason}).\nStart it with 'python main.py' in its folder, or name "
                "another one with --server."
            ) from error

    def _read(self, answer: HTTPResponse, count: int | None = None) -> bytes:
        try:
            return answer.read(count)
        except (OSError, HTTPException) as error:
            raise UnreachableError(f"The connection to {self.url} broke: {error}.") from error

    def get(self, path: str, **query: str) -> Any:
        """The JSON that GET ``path`` answers."""
        address = self.url + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        return self._json(urllib.request.Request(address))

    def post(self, path: str, payload: object) -> Any:
        headers = {"Content-Type": "application/json"}
        return self._json(urllib.request.Request(self.url + path, json.dumps(payload).encode(), headers))

    def _json(self, request: urllib.request.Request) -> Any:
        try:
            with self._open(request) as answer:
                body = self._read(answer)
        except urllib.error.HTTPError as error:
            raise self._unexpected(request, error) from error
        try:
            return json.loads(body) if body else None
        except ValueError as error:
            raise ServerError(f"What answers at {self.url} is no ComfyUI: {request.selector} is not JSON.") from error

    def _unexpected(self, request: urllib.request.Request, error: urllib.error.HTTPError) -> ServerError:
        with contextlib.suppress(ValueError, OSError):
            answer = json.loads(error.read())
            if request.selector.endswith("/prompt") and isinstance(answer, dict) and "error" in answer:
                return RefusedError(answer)
        doubt = "; is it a ComfyUI?" if error.code == 404 else "."
        return ServerError(f"{self.url} answered {request.selector} with {error.code} {error.reason}{doubt}")

    # ComfyUI

    def object_info(self, classes: Iterable[str]) -> dict[str, dict]:
        """The descriptions of the node classes that the server has, by class."""
        found: dict[str, dict] = {}
        for name in sorted(classes):
            answer = self.get(f"/object_info/{urllib.parse.quote(name, safe='')}")
            if not isinstance(answer, dict):
                raise ServerError(f"What answers at {self.url} is no ComfyUI.")
            found |= answer
        return found

    def submit(self, prompt: dict, *, prompt_id: str, client_id: str, workflow: dict | None) -> dict:
        """Queues an API workflow, and returns the server's {"prompt_id", "node_errors"}; RefusedError if it refuses.

        ``workflow``, the canvas form, is stored in the files that are made, as the editor does.
        """
        extra = {} if workflow is None else {"extra_pnginfo": {"workflow": workflow}}
        payload = {"prompt": prompt, "prompt_id": prompt_id, "client_id": client_id, "extra_data": extra}
        return self.post("/prompt", payload)

    def history(self, prompt_id: str) -> dict | None:
        """What became of a workflow, or None while it has not ended."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def jobs_ahead(self, prompt_id: str) -> int | None:
        """How many jobs run before this one does: 0 while it runs, None where the queue does not hold it."""
        queue = self.get("/queue")
        running, pending = queue["queue_running"], sorted(queue["queue_pending"], key=lambda job: job[0])
        if any(job[1] == prompt_id for job in running):
            return 0
        places = [place for place, job in enumerate(pending) if job[1] == prompt_id]
        return len(running) + places[0] if places else None

    def cancel(self, prompt_id: str) -> None:
        """Takes a job off the queue, or stops it where it runs; other people's jobs go on."""
        self.post("/queue", {"delete": [prompt_id]})
        # Servers that are too old to know whom to interrupt stop whatever runs, so it has to be looked at first.
        if self.jobs_ahead(prompt_id) == 0:
            self.post("/interrupt", {"prompt_id": prompt_id})

    def events(self, client_id: str, *, seconds: float = 10) -> WebSocket:
        """The server's messages to ``client_id``; OSError where there is no way to them."""
        query = urllib.parse.urlencode({"clientId": client_id})
        return WebSocket(f"ws{self.url.removeprefix('http')}/ws?{query}", seconds=seconds)

    # files

    def upload(self, path: Path) -> str:
        """Puts a file into the server's input folder and returns its name there.

        A file of that name with other content is left alone; the new one gets a number.
        """
        boundary = secrets.token_hex(16)
        name = path.name.replace('"', "%22").replace("\r", "").replace("\n", "")
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="type"\r\n\r\ninput\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
            f"Content-Type: {kind}\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + path.stat().st_size + len(tail)),
        }
        with path.open("rb") as file:
            body = with_ends(head, file, tail)
            answer = self._json(urllib.request.Request(f"{self.url}/upload/image", body, headers, method="POST"))
        return "/".join(part for part in (answer.get("subfolder"), answer["name"]) if part)

    def download(self, result: Result, file: BinaryIO) -> None:
        """Copies a result into ``file``; ServerError where it does not arrive whole."""
        query = {"filename": result.filename, "subfolder": result.subfolder, "type": result.type}
        request = urllib.request.Request(f"{self.url}/view?{urllib.parse.urlencode(query)}")
        try:
            with self._open(request) as answer:
                count = 0
                while data := self._read(answer, CHUNK):
                    file.write(data)
                    count += len(data)
                expected = answer.headers.get("Content-Length")
        except urllib.error.HTTPError as error:
            reason = f"{error.code} {error.reason}"
            raise ServerError(f"{self.url} does not give out {result.filename}: {reason}.") from error
        if expected is not None and count != int(expected):
            raise ServerError(f"{result.filename} broke off after {count} of {expected} bytes.")


def with_ends(head: bytes, file: BinaryIO, tail: bytes) -> Iterator[bytes]:
    yield head
    while data := file.read(CHUNK):
        yield data
    yield tail


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
