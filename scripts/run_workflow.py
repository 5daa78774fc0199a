"""Runs a workflow on a ComfyUI that is running, and saves what it makes.

Runs in the Python of any ComfyUI, or in another one of 3.10 or newer that has aiohttp and tqdm. The folder ``scripts``
may be copied anywhere.
"""

import argparse
import asyncio
import contextlib
import importlib.util
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

from scripts.comfy_client import RefusedError, Server, ServerError, UnreachableError, results_of, texts_of, timeout
from scripts.progress import Progress
from scripts.report import describe_failure, describe_refusal, name_of, title_of
from scripts.results import save_result
from scripts.settings import Setting, SettingError, apply_settings, parse_setting
from scripts.texts import one_line, read_json, some_lines
from scripts.workflow_file import read_workflow
from scripts.workflow_format import WorkflowError, node_classes, to_api
from scripts.workflow_widgets import mapping

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
SILENCE_SECONDS = 5.0
"""After so long without a message the history is asked whether the workflow has ended."""
POLL_SECONDS = 1.0
CLOSED = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
ANSWER_SECONDS = 60.0
"""For so long the server may take over an answer."""
LOST_SECONDS = 30.0
"""For so long a server that ran the workflow may be out of reach before it is given up."""
CANCEL_SECONDS = 10.0
"""For so long a server is waited for that is told to stop a job."""
LOOK_SECONDS = 0.1
"""Time between two looks at the queue and the history at least, however often the server says that they changed."""
MOST_RESULTS = 10_000
"""Files of one job, and texts, that are saved and shown."""
GIGABYTE = 10**9
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
        return asyncio.run(run_in_time(options))
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
        help="a workflow as ComfyUI saves it (canvas), or exports it (API), or a picture, clip or sound that it made",
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
        "--timeout",
        metavar="S",
        type=positive,
        help="seconds after which all is given up and the job is stopped (default: no limit)",
    )
    parser.add_argument(
        "--max-gb",
        metavar="N",
        type=positive,
        default=16.0,
        help="size of all results together; those beyond it stay on the server (default: %(default)g)",
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
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return value


async def run_in_time(options: argparse.Namespace) -> int:
    try:
        async with timeout(options.timeout):
            return await run(options)
    except asyncio.TimeoutError as error:
        raise RunFailedError(f"The run did not end within {options.timeout:g} s, and was given up.") from error


async def run(options: argparse.Namespace) -> int:
    """The whole way from the file to the results."""
    workflow, canvas = read_workflow(options.workflow)
    server = connect(options.server)
    make_folder(options.output)
    async with server:
        object_info = await server.object_info(node_classes(workflow))
        prompt = to_api(workflow, object_info)
        await apply_settings(prompt, options.settings, object_info, server, options.uploads)
        job = Job(server, prompt, canvas)
        try:
            node_errors = await job.submit()
            if node_errors:
                say("Parts of the workflow cannot run, and are left out:")
                say(describe_refusal({"node_errors": node_errors}, prompt, object_info))
            entry = await job.wait()
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
        complete = await save_results(server, entry, options.output, int(options.max_gb * GIGABYTE))
        for node, text in texts_of(entry)[:MOST_RESULTS]:
            say(f"{name_of(node, prompt)}: {text}")
    return FAILED if failure or node_errors or not complete else DONE


def connect(address: str) -> Server:
    try:
        return Server(address, seconds=ANSWER_SECONDS)
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


async def save_results(server: Server, entry: dict, folder: Path, most: int) -> bool:
    """Saves the files that the job made, ``most`` bytes of them, and prints their paths; whether all arrived."""
    results = results_of(entry)
    failures = max(0, len(results) - MOST_RESULTS)
    if failures:
        say(f"The job made {len(results):,} files; {failures:,} of them are left on the server.")
    for number, result in enumerate(results[:MOST_RESULTS]):
        try:
            path = await save_result(server, result, folder, most)
            most -= path.stat().st_size
            print(path, flush=True)
        except UnreachableError as error:
            say(f"{len(results) - number} of {len(results)} files were not saved: {error}")
            return False
        except (ServerError, OSError) as error:
            say(f"{one_line(result.filename, 200)} was not saved: {one_line(error)}")
            failures += 1
    if not results:
        say("The workflow made no files.")
    return not failures


def say(text: str) -> None:
    tqdm.write(some_lines(text), file=sys.stderr)  # above the bar, where there is one


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
        return answer["node_errors"]

    async def wait(self) -> dict:
        """The history entry of the job once it has ended, well or not; RunFailedError where it never will."""
        try:
            while (entry := await self._look()) is None:
                with contextlib.suppress(asyncio.TimeoutError):
                    # Around all of it: a server that sends a ping after the other lets no single wait come to its end.
                    async with timeout(SILENCE_SECONDS):
                        await self._listen()
            return entry
        finally:
            self.progress.close()
            if self.socket is not None:
                with contextlib.suppress(asyncio.TimeoutError):
                    async with timeout(POLL_SECONDS):
                        await self.socket.close()

    async def cancel(self) -> None:
        """Stops the job; where the server is gone there is nothing to stop."""
        try:
            async with timeout(CANCEL_SECONDS):
                await self.server.cancel(self.id)
        except ServerError as error:
            say(f"The job could not be stopped: {error}")
        except asyncio.TimeoutError:
            say("The job could not be stopped: the server does not answer.")

    async def _listen(self) -> None:
        """Follows the server's messages until it is time to look at the history."""
        await asyncio.sleep(POLL_SECONDS if self.socket is None else LOOK_SECONDS)
        while self.socket is not None:
            message = await self.socket.receive()
            if message.type in CLOSED:
                say("The server's messages stopped; asking for the result from time to time instead.")
                self.socket = None
            elif message.type is aiohttp.WSMsgType.TEXT and self._ends_listening(message.data):
                return

    def _ends_listening(self, text: str) -> bool:
        """Shows the progress that a message tells of; whether it says that the queue or the job has changed."""
        try:
            event = mapping(read_json(text))
        except ValueError:
            return False
        kind, data = event.get("type"), mapping(event.get("data"))
        if kind == "status":
            return True
        if data.get("prompt_id") != self.id or not isinstance(kind, str):
            return False
        self.progress.handle(kind, data)
        return kind in ("execution_success", "execution_error", "execution_interrupted")

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
