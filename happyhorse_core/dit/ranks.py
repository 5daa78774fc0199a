"""The transformer on several devices of this machine, a process for each; how they share the work is in ``parallel``.

The processes only compute: they are sent latents and send velocities back, write nothing, and can be ended at any
moment. This one waits for all of them at once, so that it notices when one fails or is killed, and is free to be
stopped by Ctrl-C, which is kept away from them. They end with it, however it ends.
"""

import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from types import FrameType

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..atomic import abandoned, hold
from ..errors import HappyHorseError, InputError
from ..memory import is_out_of_memory
from ..progress import Progress, silent
from ..sampling.loop import Velocity
from .load import TransformerFile, inspect_transformer, load_transformer
from .model import HappyHorseTransformer
from .parallel import check_ranks

logger = logging.getLogger(__name__)

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
LOOPBACK = {"linux": "lo", "darwin": "lo0"}
STUCK = timedelta(minutes=30)
"""After so long in one exchange a rank gives up on the others."""
LAST_WORDS = 1.0
"""Seconds to wait, after a rank failed, for news that another was killed: then that is the cause."""
GRACE = 10.0
"""Seconds in which a rank that is done has to end."""
LOOK = 5.0
"""Seconds without news after which this process looks what the ranks do."""
STOPPED = 30.0
"""Seconds for which a rank may be stopped, by a signal, before the work is given up."""
FOLDERS = "happyhorse-ranks-"

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class _RankSetup:
    """What a rank is told when it starts."""

    path: Path
    role: str
    dtype: torch.dtype
    device: torch.device
    rank: int
    ranks: int
    rendezvous: Path


@dataclass(frozen=True)
class _Loading:
    """From a rank: so many bytes of its weights are read."""

    done: int
    total: int


@dataclass(frozen=True)
class _Result:
    """From a rank: the weights are loaded, or the velocities, which the first one sends for all."""

    arrays: Arrays = ()


@dataclass(frozen=True)
class _Failure:
    """From a rank, its last word. ``known`` says that the error is not the loss of another rank."""

    error: Exception
    known: bool


def check_devices(devices: Sequence[torch.device]) -> None:
    """Raises InputError for devices that can't work together: they are CUDA devices, or, to try it out, all ``cpu``."""
    names = ",".join(map(str, devices))
    kinds = {device.type for device in devices}
    if len(kinds) != 1 or not kinds <= set(BACKENDS):
        raise InputError(f"devices: found {names}, expected several of one kind, such as cuda:0,cuda:1.")
    kind = kinds.pop()
    if kind == "cuda" and len(set(devices)) < len(devices):
        raise InputError(f"devices: found {names}, expected every CUDA device once, by its number.")
    available = dist.is_available() and (dist.is_nccl_available() if kind == "cuda" else dist.is_gloo_available())
    if not available:
        raise InputError(
            f"devices: found {names}, but this PyTorch lacks {BACKENDS[kind]}, which joins {kind} devices."
        )


@contextmanager
def transformer_on(
    file: TransformerFile, devices: Sequence[torch.device], dtype: torch.dtype, progress: Progress = silent
) -> Iterator["Ranks"]:
    """Loads a transformer onto every device; the processes that hold it end with the block.

    ``progress`` counts the bytes of one copy. Raises InputError for devices or heads that can't be shared,
    CheckpointError, MemoryError, HappyHorseError if a process is killed, and RuntimeError for any other failure in one.
    """
    check_devices(devices)
    check_ranks(file.config, len(devices))
    with rendezvous_folder() as folder:
        ranks = Ranks(devices)
        try:
            ranks.start(file, dtype, folder / "rendezvous")
            ranks.results(progress)
            logger.info("Loaded the %s transformer onto %s", file.role.name, ", ".join(map(str, devices)))
            yield ranks
            ranks.finish()
        finally:
            ranks.kill()


@contextmanager
def rendezvous_folder() -> Iterator[Path]:
    """A temporary folder that goes with the block; those that killed processes left are taken away first."""
    for left in Path(gettempdir()).glob(f"{FOLDERS}*"):
        with suppress(OSError), abandoned(left / "owner"):
            if not left.is_symlink():
                (left / "owner").unlink()
                shutil.rmtree(left)
    while True:
        with TemporaryDirectory(prefix=FOLDERS) as name, (Path(name) / "owner").open("xb") as owner:
            # Another process may have found it before it was held.
            if hold(owner.fileno()):
                yield Path(name)
                return


class Ranks:
    """The processes and the pipes to them, in the order of the devices."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self.devices = tuple(devices)
        self.processes: list[multiprocessing.process.BaseProcess] = []
        self.pipes: list[Connection] = []

    def start(self, file: TransformerFile, dtype: torch.dtype, rendezvous: Path) -> None:
        """Starts them; they read the weights on their own. ``rendezvous`` is a file, not there yet, to meet by."""
        context = multiprocessing.get_context("spawn")
        for rank, device in enumerate(self.devices):
            setup = _RankSetup(file.source.path, file.role.name, dtype, device, rank, len(self.devices), rendezvous)
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(setup, theirs), name=f"transformer on {device}", daemon=True)
            with _interrupts_later():
                process.start()
                self.processes.append(process)
            theirs.close()
            self.pipes.append(ours)

    def velocity(self, text: Tensor) -> Velocity:
        """The velocities for a prompt's embedding [B, L, C], as ``HappyHorseTransformer.forward`` gives them."""
        words = _array(text)

        def velocity(video: Tensor, audio: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
            self.send((_array(video), _array(audio), words))
            of_video, of_audio = (torch.from_numpy(array).to(video.device) for array in self.results()[0])
            return of_video, of_audio

        return velocity

    def send(self, call: Arrays | None) -> None:
        """Sends every rank the inputs of a call, or that there will be no more."""
        for pipe in self.pipes:
            # One that is gone, or has failed, is dealt with in ``results``, together with those that it left behind.
            with suppress(BrokenPipeError, ConnectionResetError):
                pipe.send(call)

    def results(self, progress: Progress = silent) -> list[Arrays]:
        """What every rank has to say, once all have said it. Raises as ``transformer_on`` does if one fails."""
        results: dict[int, Arrays] = {}
        loaded = [0] * len(self.pipes)
        while len(results) < len(self.pipes):
            waiting = {self.pipes[rank]: rank for rank in range(len(self.pipes)) if rank not in results}
            ready = self._news(waiting)
            for pipe in (pipe for pipe in waiting if pipe in ready):
                rank, message = waiting[pipe], _received(pipe)
                if isinstance(message, _Loading):
                    loaded[rank] = message.done
                    progress(min(loaded), message.total)
                elif isinstance(message, _Result):
                    results[rank] = message.arrays
                elif isinstance(message, _Failure):
                    self._fail(message)
            self._check_alive()
        return [results[rank] for rank in range(len(self.pipes))]

    def _news(self, waiting: Mapping[Connection, int]) -> list[object]:
        """Those of the pipes that have something to say, and the sentinels of processes that ended, once there are any.

        Raises HappyHorseError if a rank stays stopped, or none is heard of for as long as they wait for one another.
        """
        quiet = held = 0.0
        while not (ready := wait([*waiting, *(process.sentinel for process in self.processes)], LOOK)):
            quiet += LOOK
            stopped = [process.name for process in self.processes if _is_stopped(process)]
            held = held + LOOK if stopped else 0.0
            names = ", ".join(stopped or [self.processes[rank].name for rank in waiting.values()])
            if held == LOOK:
                logger.warning("waiting for the %s, which a signal has stopped", names)
            if held >= STOPPED:
                raise HappyHorseError(
                    f"the {names} was stopped by a signal and did not go on for {held:.0f} s. Start again."
                )
            if quiet >= STUCK.total_seconds():
                raise HappyHorseError(f"the {names} did not answer for {quiet / 60:.0f} minutes. Use fewer devices.")
        return list(ready)

    def finish(self) -> None:
        """Lets them end by themselves."""
        self.send(None)
        for process in self.processes:
            process.join(GRACE)

    def kill(self) -> None:
        """Ends those that are still there, whatever they do."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join(GRACE)
        for pipe in self.pipes:
            pipe.close()

    def _fail(self, failure: _Failure) -> None:
        if not failure.known:
            ended = wait([process.sentinel for process in self.processes], LAST_WORDS)
            for process in self.processes:
                if process.sentinel in ended:
                    # It has let go of its files, by which it was noticed, and how it ends is known a moment later.
                    process.join(GRACE)
            self._check_alive()
        raise failure.error

    def _check_alive(self) -> None:
        for process in self.processes:
            if not process.is_alive():
                raise HappyHorseError(f"the {process.name} {_end(process.exitcode)}")


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        return (
            f"was killed by signal {-code}: the system may have run out of memory. Use fewer devices or a smaller size."
        )
    return f"ended with status {code}; what it wrote above says why."


def _is_stopped(process: multiprocessing.process.BaseProcess) -> bool:
    """Whether a signal holds a process, on Linux."""
    with suppress(OSError):
        state = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        return state == "T"
    return False


def _received(pipe: Connection) -> _Loading | _Result | _Failure | None:
    """The next message; None where the pipe ended, as it does when a rank is killed."""
    with suppress(EOFError, ConnectionResetError):
        return pipe.recv()
    return None


def _array(tensor: Tensor) -> np.ndarray:
    # By value through the pipe: tensors in shared memory need more of it than containers have.
    return tensor.detach().float().cpu().numpy()


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Processes started meanwhile never see Ctrl-C, which a terminal sends to all, and this one sees it at the end.

    A process inherits what the thread that starts it blocks. That does not hold Ctrl-C back from this one, where any
    thread may take it, and a process whose start it cut short would be lost; so it would be by other signals that end
    this one. Windows has no such thing.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Python's helper for the processes starts with the first of them, and starting it lets the signals through again.
    resource_tracker.ensure_running()
    taken: list[tuple[int, FrameType | None]] = []
    in_main = threading.current_thread() is threading.main_thread()  # the only one that signals can cut short
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: handler for number in numbers if in_main and callable(handler := signal.getsignal(number))}
    for number in handlers:
        signal.signal(number, lambda number, frame: taken.append((number, frame)))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if taken:
            handlers[signal.Signals(taken[0][0])](*taken[0])


# in the processes


def _serve(setup: _RankSetup, pipe: Connection) -> None:
    """What a rank does: loads, and then answers calls until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        model = _load(setup, pipe)
        pipe.send(_Result())
        while (call := pipe.recv()) is not None:
            inputs = (torch.from_numpy(array).to(setup.device) for array in call)
            out = model(*inputs, compute_dtype=setup.dtype, group=dist.group.WORLD)
            pipe.send(_Result(tuple(map(_array, out)) if setup.rank == 0 else ()))
        dist.destroy_process_group()
    except (EOFError, BrokenPipeError):
        return
    except (HappyHorseError, MemoryError, RuntimeError, OSError) as error:
        # If the pipe is gone, so is who reads it, and this process ends with it in a moment.
        with suppress(BrokenPipeError, ConnectionResetError):
            pipe.send(_failure(error, setup.device))
        # Nothing more is read, and whoever is still writing has to know.
        pipe.close()
        # The others wait for this one. If it ended now, they would fail as well, and their errors hide this one.
        threading.Event().wait()


def _load(setup: _RankSetup, pipe: Connection) -> HappyHorseTransformer:
    if setup.device.type == "cuda":
        torch.cuda.set_device(setup.device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // setup.ranks))
    if sys.platform in LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])
    dist.init_process_group(
        BACKENDS[setup.device.type],
        store=dist.FileStore(str(setup.rendezvous), setup.ranks),  # type: ignore[attr-defined]  # missing in __all__ alone
        rank=setup.rank,
        world_size=setup.ranks,
        timeout=STUCK,
    )
    file = inspect_transformer(setup.path, setup.role)
    return load_transformer(
        file,
        dtype=setup.dtype,
        device=setup.device,
        progress=lambda done, total: pipe.send(_Loading(done, total)),
    )


def _failure(error: Exception, device: torch.device) -> _Failure:
    if isinstance(error, HappyHorseError):
        return _Failure(error, known=True)
    if is_out_of_memory(error):
        return _Failure(MemoryError(f"{device}: {error}"), known=True)
    text = "".join(traceback.format_exception(error))
    return _Failure(RuntimeError(f"The transformer on {device} failed.\n{text}"), known=False)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
    os._exit(1)
