"""The ComfyUI that the tests run against: where it is, a server process of it, and its own Python for in-process tests.

Nothing here changes the ComfyUI that it finds: models, inputs, outputs, settings and database live in a folder of the
test, and the pytest that runs inside its Python comes from a folder of ours, put on the path for that one process.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from websocket_client import EventStream

ROOT = Path(__file__).resolve().parent.parent
PACK_NAME = "ComfyUI-HappyHorse"
INSIDE = "HAPPYHORSE_TESTS_IN_COMFYUI"
"""Environment variable that is set in the process that runs tests/nodes in ComfyUI's own Python."""
START_SECONDS = float(os.environ.get("COMFYUI_START_SECONDS", "180"))
TAIL = 40


class ComfyUINotFoundError(LookupError):
    """Says in one line why the tests against ComfyUI can't run."""


class PromptRefusedError(AssertionError):
    """The server did not accept a workflow. ``errors`` is its answer."""

    def __init__(self, text: str, errors: dict) -> None:
        super().__init__(text)
        self.errors = errors


class PromptFailedError(AssertionError):
    """A workflow was accepted and then failed. ``entry`` is what the history says of it."""

    def __init__(self, text: str, entry: dict) -> None:
        super().__init__(text)
        self.entry = entry


class PromptInterruptedError(PromptFailedError):
    """A workflow was stopped by an interrupt."""


@dataclass(frozen=True)
class ComfyUI:
    """An installed ComfyUI and the Python that it runs in."""

    path: Path
    python: Path


def find_comfyui(environ: Mapping[str, str] = os.environ, pack: Path = ROOT) -> ComfyUI:
    """COMFYUI_PATH, else the ComfyUI whose custom_nodes holds the pack, else ~/ComfyUI; Python likewise.

    Raises ComfyUINotFoundError.
    """
    hint = "set COMFYUI_PATH to a ComfyUI to run the tests against it"
    if "COMFYUI_PATH" in environ:
        path = Path(environ["COMFYUI_PATH"]).expanduser().absolute()
    elif pack.parent.name == "custom_nodes" and is_comfyui(pack.parent.parent):
        path = pack.parent.parent
    else:
        path = Path.home() / "ComfyUI"
    if not is_comfyui(path):
        raise ComfyUINotFoundError(f"no ComfyUI at {path}; {hint}")
    return ComfyUI(path, find_python(path, environ))


def is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy").is_dir()


def find_python(path: Path, environ: Mapping[str, str]) -> Path:
    """COMFYUI_PYTHON, else the Python of .venv or venv in the ComfyUI folder."""
    if "COMFYUI_PYTHON" in environ:
        named = shutil.which(Path(environ["COMFYUI_PYTHON"]).expanduser())
        if named is None:
            raise ComfyUINotFoundError(f"COMFYUI_PYTHON names no Python: {environ['COMFYUI_PYTHON']!r}")
        return Path(named).absolute()
    for folder in (".venv", "venv"):
        for python in (path / folder / "bin" / "python", path / folder / "Scripts" / "python.exe"):
            if python.is_file():
                return python
    raise ComfyUINotFoundError(f"{path} has no .venv or venv; set COMFYUI_PYTHON to the Python that runs this ComfyUI")


def host_environment(**extra: str) -> dict[str, str]:
    """What a process of ComfyUI's Python gets: nothing of our environment's packages, and no look at the network.

    One thread, as several wait for each other longer than a tiny model computes: ten times, where others run beside.
    """
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return {"OMP_NUM_THREADS": "1"} | inherited | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"} | extra


def stop_group(process: subprocess.Popen, seconds: float = 20) -> None:
    """Ends a process that was started with ``start_new_session`` and everything that it started."""
    for sign in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        if process.poll() is not None:
            return
        if hasattr(os, "killpg"):
            os.killpg(process.pid, sign)
        else:
            process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue


class ComfyServer:
    """A ComfyUI server process on a free loopback port, with this pack as its only one and folders of its own.

    ``base`` holds models/, input/, output/ and custom_nodes/; files may be added while the server runs.
    """

    def __init__(self, host: ComfyUI, base: Path, *, arguments: Sequence[str] = (), pack: Path = ROOT) -> None:
        self.host = host
        self.base = base
        self.models = base / "models"
        self.input = base / "input"
        self.output = base / "output"
        self.log = base / "server.log"
        self.port = 0
        self.arguments = list(arguments)
        self._process: subprocess.Popen | None = None
        for folder in (self.models, self.input, self.output, base / "custom_nodes"):
            folder.mkdir(parents=True, exist_ok=True)
        self.pack = base / "custom_nodes" / PACK_NAME
        link_or_copy(pack, self.pack)

    def __enter__(self) -> "ComfyServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, seconds: float = START_SECONDS) -> None:
        """Starts the process and returns when it answers; RuntimeError with the end of its log when it does not."""
        self.port = free_port()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.base,
                env=host_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready(seconds)
        except BaseException:  # also an interrupt from the keyboard must not leave the process behind
            self.stop()
            raise

    def _command(self) -> list[str]:
        places = ["--base-directory", str(self.base), "--database-url", f"sqlite:///{self.base / 'comfyui.db'}"]
        network = ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-api-nodes", "--disable-auto-launch"]
        packs = ["--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK_NAME]
        main = str(self.host.path / "main.py")
        return [str(self.host.python), main, "--cpu", *places, *network, *packs, *self.arguments]

    def _wait_until_ready(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._check_alive()
            try:
                self.get("/system_stats", seconds=5)
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
            else:
                return
        raise RuntimeError(f"ComfyUI did not answer within {seconds:g} s.\n{self.log_tail()}")

    @property
    def pid(self) -> int:
        """The number of the server's process, to read its memory and handles by."""
        if self._process is None:
            raise RuntimeError("The server is not running.")
        return self._process.pid

    def _check_alive(self) -> None:
        status = None if self._process is None else self._process.poll()
        if status is not None:
            raise RuntimeError(f"ComfyUI ended with status {status}.\n{self.log_tail()}")

    def stop(self) -> None:
        if self._process is not None:
            stop_group(self._process)
            self._process = None

    def log_text(self) -> str:
        """Everything that the server wrote so far, without colours."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return re.sub(r"\x1b\[[0-9;]*m", "", text)

    def log_tail(self, lines: int = TAIL) -> str:
        return "The end of its log:\n" + "\n".join(self.log_text().splitlines()[-lines:])

    # requests

    def get(self, path: str, *, seconds: float = 60, **query: str) -> Any:
        """The answer to GET ``path``: parsed where it is JSON, else bytes."""
        address = f"http://127.0.0.1:{self.port}{path}"
        if query:
            address += "?" + urllib.parse.urlencode(query)
        return send(urllib.request.Request(address), seconds)

    def post(self, path: str, payload: object = None, *, seconds: float = 60) -> Any:
        """The answer to POST ``path`` with ``payload`` as JSON."""
        body = json.dumps({} if payload is None else payload).encode()
        headers = {"Content-Type": "application/json"}
        return send(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers), seconds)

    def object_info(self, node: str | None = None) -> dict:
        """The descriptions of all nodes by id, or of one."""
        return self.get("/object_info") if node is None else self.get(f"/object_info/{node}")[node]

    # workflows

    def queue(self, prompt: dict, *, seconds: float = 180, client_id: str | None = None) -> dict:
        """Runs an API workflow to its end and returns its history entry; raises as ``submit`` and ``wait`` do."""
        return self.wait(self.submit(prompt, client_id=client_id), seconds=seconds)

    def submit(self, prompt: dict, *, client_id: str | None = None) -> str:
        """Queues an API workflow and returns its id; PromptRefusedError says which inputs the server did not accept."""
        payload = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        try:
            return self.post("/prompt", payload)["prompt_id"]
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read() or b"{}")
            raise PromptRefusedError(describe_refusal(answer), answer) from None

    def wait(self, prompt_id: str, *, seconds: float = 180) -> dict:
        """The history entry of a workflow that ended well.

        Raises PromptFailedError with the node and its message, PromptInterruptedError, or TimeoutError (after an
        interrupt, so that the server is free for the next test).
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._check_alive()
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                raise_if_failed(entry)
                return entry
            time.sleep(0.05)
        self.interrupt()
        raise TimeoutError(f"The workflow did not end within {seconds:g} s.\n{self.log_tail()}")

    def interrupt(self) -> None:
        """Stops the workflow that is running."""
        self.post("/interrupt")

    def forget_results(self) -> None:
        """Drops the models and the cached results, so that the next workflow runs every node.

        The server does so when it has ended a workflow, or when it has none; it may begin the next one before. So a
        small one comes between.
        """
        self.post("/free", {"unload_models": True, "free_memory": True})
        picture = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
        shown = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
        self.queue({"1": picture, "2": shown})

    def events(self, client_id: str | None = None) -> EventStream:
        """Opens a stream of events; hand its ``client_id`` to ``submit`` to get those of a workflow."""
        return EventStream(self.port, client_id or uuid.uuid4().hex)

    # files

    def put_input(self, source: Path | bytes, name: str | None = None) -> str:
        """Puts a file into the server's input folder, as the upload button would, and returns its name."""
        if isinstance(source, bytes):
            assert name, "bytes need a name"
            (self.input / name).write_bytes(source)
            return name
        shutil.copyfile(source, self.input / (name or source.name))
        return name or source.name

    def files_of(self, entry: dict) -> list[Path]:
        """The files in the output folder that a history entry names, in its order."""
        found = []
        for outputs in entry["outputs"].values():
            for items in outputs.values():
                for item in items:
                    if isinstance(item, dict) and item.get("type") == "output":
                        found.append(self.output / item.get("subfolder", "") / item["filename"])
        return found


def link_or_copy(source: Path, target: Path) -> None:
    """A link, so that the server runs the very files under test; a copy where links are not allowed (Windows)."""
    if os.name == "nt":
        skipped = shutil.ignore_patterns(".git", ".venv", ".cache", "output", "tests")
        shutil.copytree(source, target, ignore=skipped, dirs_exist_ok=True)
    elif not target.exists():
        target.symlink_to(source, target_is_directory=True)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def send(request: urllib.request.Request, seconds: float) -> Any:
    """No proxy: what it talks to is on this machine."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=seconds) as answer:
        body = answer.read()
        return json.loads(body) if answer.headers.get_content_type() == "application/json" and body else body


def describe_refusal(answer: dict) -> str:
    """A server's refusal of a workflow, one line an input."""
    error = answer.get("error", answer)
    lines = [error["message"] + (f": {error['details']}" if error.get("details") else "")] if "message" in error else []
    for node, problem in answer.get("node_errors", {}).items():
        for item in problem["errors"]:
            lines.append(f"node {node} ({problem['class_type']}): {item['message']}: {item['details']}")
    return "\n".join(lines) or json.dumps(answer)


def raise_if_failed(entry: dict) -> None:
    status = entry["status"]
    if status["status_str"] == "success":
        return
    messages = dict(status["messages"])
    if "execution_interrupted" in messages:
        raise PromptInterruptedError("The workflow was interrupted.", entry)
    error = messages.get("execution_error", {})
    traceback = "".join(error.get("traceback", []))
    raise PromptFailedError(
        f"node {error.get('node_id')} ({error.get('node_type')}) raised {error.get('exception_type')}: "
        f"{error.get('exception_message')}\n{traceback}",
        entry,
    )


# tests inside ComfyUI's own process


def run_inside(
    host: ComfyUI, arguments: Sequence[str], *, seconds: float = 540, on_line: Callable[[str], None] = lambda line: None
) -> tuple[int, str]:
    """Runs our pinned pytest in ComfyUI's Python and returns (exit status, output); ``on_line`` sees it as it comes."""
    environment = host_environment(**{INSIDE: "1", "PYTHONPATH": str(pytest_for(host)), "COMFYUI_PATH": str(host.path)})
    # In tests/, since the folder that pytest starts in comes first on the path, where the pack's `nodes` would hide
    # ComfyUI's module.
    process = subprocess.Popen(
        [str(host.python), "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT / "tests",
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    lines: list[str] = []
    timer = Deadline(process, seconds)
    try:
        for line in process.stdout:
            lines.append(line)
            on_line(line)
        return process.wait(), "".join(lines) + timer.remark()
    finally:
        timer.cancel()
        stop_group(process)


class Deadline:
    """Ends a process that runs for too long, and says so afterwards."""

    def __init__(self, process: subprocess.Popen, seconds: float) -> None:
        self._seconds = seconds
        self._passed = False
        self._process = process
        self._timer = threading.Timer(seconds, self._end)
        self._timer.start()

    def _end(self) -> None:
        self._passed = True
        stop_group(self._process)

    def cancel(self) -> None:
        self._timer.cancel()

    def remark(self) -> str:
        return f"\nStopped, since it took more than {self._seconds:g} s.\n" if self._passed else ""


def pytest_for(host: ComfyUI) -> Path:
    """A folder with the pytest that we pin, for the version of Python that ComfyUI runs in; made once."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    answer = subprocess.run([host.python, "-c", code], capture_output=True, text=True, check=True)
    version = answer.stdout.strip()
    pin = next(line for line in (ROOT / "requirements-dev.txt").read_text().splitlines() if line.startswith("pytest=="))
    folder = ROOT / ".cache" / f"{pin.replace('==', '-')}-python{version}"
    if folder.is_dir():
        return folder
    backports = ["exceptiongroup", "tomli"] if version == "3.10" else []
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-qq",
        "--disable-pip-version-check",
        "--target",
        str(unfinished),
    ]
    subprocess.run([*pip, "--python-version", version, "--only-binary=:all:", pin, *backports], check=True)
    try:
        unfinished.rename(folder)
    except OSError:  # another run was faster
        shutil.rmtree(unfinished)
    return folder


def enter_comfyui(host: ComfyUI, base: Path) -> None:
    """Makes ``import comfy`` work in this process, on the CPU and with ``base`` for models, inputs and outputs.

    To be called before anything of ComfyUI is imported.
    """
    base.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(host.path))
    arguments = sys.argv
    sys.argv = ["main.py", "--cpu", "--base-directory", str(base)]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args  # noqa: F401  (parses the arguments)
    finally:
        sys.argv = arguments


def import_pack(name: str = "happyhorse_pack", pack: Path = ROOT) -> ModuleType:
    """Imports the pack the way ComfyUI does, as a package whose name is not a folder on the path."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, pack / "__init__.py", submodule_search_locations=[str(pack)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
