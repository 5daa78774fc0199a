"""Runs a workflow on a ComfyUI that is running, and saves what it makes.

Runs in the Python of any ComfyUI, or in another one of 3.10 or newer that has aiohttp and tqdm. The folder ``scripts``
may be copied anywhere.
"""

import argparse
import asyncio
import importlib.util
import json
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: the folder that holds `scripts` has to be on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    missing = [name for name in ("aiohttp", "tqdm") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"This Python ({sys.executable}) lacks {' and '.join(missing)}. Start the script with the Python of a "
            f"ComfyUI, or run: {sys.executable} -m pip install {' '.join(missing)}"
        )

import aiohttp
from tqdm import tqdm

from scripts.comfy_client import RefusedError, Server, ServerError, UnreachableError, results_of, texts_of
from scripts.progress import Progress
from scripts.report import describe_failure, describe_refusal, name_of, title_of
from scripts.results import save_result
from scripts.settings import Setting, SettingError, apply_settings, parse_setting
from scripts.workflow_format import WorkflowError, check_format, is_api, node_classes, to_api

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
SILENCE_SECONDS = 5.0
"""After so long without a message the history is asked whether the workflow has ended."""
POLL_SECONDS = 1.0
CLOSED = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
LOST_SECONDS = 30.0
"""For so long a server that ran the workflow may be out of reach before it is given up."""
HELP_END = """
NODE is the id of a node, its title, or its class where the workflow has only one of it. VALUE is read as JSON where it
is JSON, else as text; text inputs take it as it stands. A file of this machine is uploaded where the input chooses a
file, as those of Load Image, Load Audio and Load Video do. What an input was linked to before is replaced.

  --set 6.text="A white horse on a beach"      the node with the id 6
  --set "Prompt.text=A white horse"            the node with the title Prompt
  --set HappyHorseSampler.seed=7               the only node of this class
  --set LoadImage.image=first_frame.png        uploads the file

The paths of the saved files go to the standard output, everything else to the standard error.

exit codes:
  0    the workflow ran
  1    it failed: the server cannot be reached, a node raised an error, a result did not arrive, the time was up
  2    it could not start: wrong arguments, a damaged file, inputs that the server refuses
  130  interrupted (Ctrl-C); the job was taken off the server
"""


class RunFailedError(RuntimeError):
    """The workflow started and did not end well."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    options = parse_arguments(arguments)
    try:
        return asyncio.run(run(options))
    except KeyboardInterrupt:
        say("Interrupted.")
        return INTERRUPTED
    except (WorkflowError, SettingError) as error:
        say(str(error))
        return WRONG
    except (ServerError, RunFailedError) as error:
        say(str(error))
        return FAILED


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="run_workflow.py",
        description="Runs a workflow on a ComfyUI that is running, shows its progress and saves what it makes.",
        epilog=HELP_END,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "workflow",
        metavar="WORKFLOW.json",
        type=Path,
        help="a workflow as ComfyUI saves it (canvas), or exports it (API)",
    )
    parser.add_argument(
        "--set",
        metavar="NODE.INPUT=VALUE",
        dest="settings",
        action="append",
        default=[],
        type=setting,
        help="changes an input; may be given several times, the last one counts",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        required=True,
        help="folder for the results, made if it is missing; a file that is there already keeps its name, and the new "
        "one gets a number",
    )
    parser.add_argument(
        "--server", metavar="URL", default="http://127.0.0.1:8188", help="address of ComfyUI (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", metavar="S", type=positive, help="seconds after which the job is given up (default: no limit)"
    )
    parser.add_argument(
        "--upload",
        metavar="FILE",
        dest="uploads",
        action="append",
        default=[],
        type=Path,
        help="puts a file into ComfyUI's input folder first, for a workflow that names it; may be given several times",
    )
    parser.add_argument("--verbose", action="store_true", help="shows the traceback of a node that fails")
    return parser.parse_args(arguments)


def setting(text: str) -> Setting:
    try:
        return parse_setting(text)
    except SettingError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return value


async def run(options: argparse.Namespace) -> int:
    """The whole way from the file to the results."""
    workflow = read_workflow(options.workflow)
    server = connect(options.server)
    make_folder(options.output)
    async with server:
        object_info = await server.object_info(node_classes(workflow))
        prompt = to_api(workflow, object_info)
        await apply_settings(prompt, options.settings, object_info, server, options.uploads)
        job = Job(server, prompt, None if is_api(workflow) else workflow)
        try:
            node_errors = await job.submit()
            if node_errors:
                say("Parts of the workflow cannot run, and are left out:")
                say(describe_refusal({"node_errors": node_errors}, prompt, object_info))
            entry = await job.wait(options.timeout)
        except RefusedError as error:
            say(describe_refusal(error.answer, prompt, object_info))
            return WRONG
        except (KeyboardInterrupt, asyncio.CancelledError):
            say("Stopping the job on the server.")
            await job.cancel()
            raise
        failure = describe_failure(entry, prompt, options.verbose)
        if failure:
            say(failure)
        complete = await save_results(server, entry, options.output, prompt)
    return FAILED if failure or node_errors or not complete else DONE


def read_workflow(path: Path) -> dict:
    """The workflow in a file; WorkflowError says what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkflowError(f"{path} cannot be read: {error}") from error
    try:
        workflow = json.loads(text)
    except ValueError as error:
        raise WorkflowError(f"{path} is not JSON: {error}") from error
    if isinstance(workflow, dict) and is_api(workflow.get("prompt")):  # as it is sent to the server
        workflow = workflow["prompt"]
    check_format(workflow)
    return workflow


def connect(address: str) -> Server:
    try:
        return Server(address)
    except ValueError as error:
        raise SettingError(f"--server: {error}") from None


def make_folder(path: Path) -> None:
    """Makes the folder for the results and writes to it once, before any long work."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise SettingError(f"--output: nothing can be written to {path}: {error}") from error


async def save_results(server: Server, entry: dict, folder: Path, prompt: dict) -> bool:
    """Saves every file that the job made and prints its path, and shows its texts; whether all files arrived."""
    results, failures = results_of(entry), 0
    for result in results:
        try:
            print(await save_result(server, result, folder), flush=True)
        except (ServerError, OSError) as error:
            say(f"{result.filename} was not saved: {error}")
            failures += 1
    for node, text in texts_of(entry):
        say(f"{name_of(node, prompt)}: {text}")
    if not results:
        say("The workflow made no files.")
    return not failures


def say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)  # above the bar, where there is one


class Job:
    """One run of an API workflow on a server."""

    def __init__(self, server: Server, prompt: dict, workflow: dict | None) -> None:
        self.server = server
        self.prompt = prompt
        self.workflow = workflow
        self.id = str(uuid.uuid4())
        self.client_id = uuid.uuid4().hex
        self.socket: aiohttp.ClientWebSocketResponse | None = None
        self.progress = Progress(sys.stderr, {key: title_of(node) for key, node in prompt.items()})

    async def submit(self) -> dict:
        """Queues the job and returns the errors of parts that the server leaves out; RefusedError if it takes nothing.

        The socket is opened first, so that no message is missed.
        """
        try:
            self.socket = await self.server.events(self.client_id)
        except UnreachableError as error:
            say(f"No progress is shown, since the server's messages do not arrive: {error}")
        answer = await self.server.submit(
            self.prompt, prompt_id=self.id, client_id=self.client_id, workflow=self.workflow
        )
        self.id = answer["prompt_id"]  # servers that are older than the client's choice of ids choose their own
        return answer.get("node_errors") or {}

    async def wait(self, timeout: float | None) -> dict:
        """The history entry of the job once it has ended, well or not; RunFailedError where it never will."""
        deadline = time.monotonic() + (timeout or float("inf"))
        try:
            while True:
                await self._listen(min(deadline, time.monotonic() + SILENCE_SECONDS))
                entry = await self._look()
                if entry is not None:
                    return entry
                if time.monotonic() > deadline:
                    await self.cancel()
                    raise RunFailedError(f"The workflow did not end within {timeout:g} s, and was stopped.")
        finally:
            self.progress.close()
            if self.socket is not None:
                await self.socket.close()

    async def cancel(self) -> None:
        """Stops the job; where the server is gone there is nothing to stop."""
        try:
            await self.server.cancel(self.id)
        except ServerError as error:
            say(f"The job could not be stopped: {error}")

    async def _listen(self, until: float) -> None:
        """Follows the server's messages until it is time to look at the history."""
        if self.socket is None:
            await asyncio.sleep(max(0.0, min(POLL_SECONDS, until - time.monotonic())))
            return
        while (left := until - time.monotonic()) > 0:
            try:
                message = await self.socket.receive(left)
            except asyncio.TimeoutError:
                return
            if message.type in CLOSED:
                say("The server's messages stopped; asking for the result from time to time instead.")
                self.socket = None
                return
            if message.type is aiohttp.WSMsgType.TEXT and self._ends_listening(message.json()):
                return

    def _ends_listening(self, event: dict) -> bool:
        """Shows the progress that a message tells of; whether it says that the queue or the job has changed."""
        data = event.get("data") or {}
        if event["type"] == "status":
            return True
        if data.get("prompt_id") != self.id:
            return False
        self.progress.handle(event["type"], data)
        return event["type"] in ("execution_success", "execution_error", "execution_interrupted")

    async def _look(self) -> dict | None:
        """The job's history entry, if it has ended; shows its place in the queue where it waits."""
        lost = time.monotonic() + LOST_SECONDS
        while True:
            try:
                # The queue first: a job that ends in between is then in the history.
                ahead = await self.server.jobs_ahead(self.id)
                entry = await self.server.history(self.id)
                break
            except UnreachableError as error:
                if time.monotonic() > lost:
                    raise RunFailedError(f"The server went away while it ran the workflow.\n{error}") from error
                await asyncio.sleep(POLL_SECONDS)
        if entry is None and ahead is None:
            raise RunFailedError(
                "The server does not know the job any more: it was restarted, or somebody took the job off the queue."
            )
        if entry is None and ahead:
            self.progress.waiting(ahead)
        return entry


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a path that cannot be shown must not end the run
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being ended stops the job on the server as well
    sys.exit(main())
