"""One sequence over several processes: the same velocities as one process, and all processes ended however it goes.

Real processes, joined by gloo over the loopback device, which are killed, stopped and starved for real.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from parallel_cases import CASES, EVEN, RANKS, compute, end_slowly
from safetensors.torch import load_file
from torch import Tensor

from happyhorse_core.cli import main
from happyhorse_core.dit import ranks as ranks_module
from happyhorse_core.dit.load import TransformerFile, inspect_transformer, load_transformer
from happyhorse_core.dit.parallel import check_ranks, share_table
from happyhorse_core.dit.ranks import Ranks, _Failure, check_devices, rendezvous_folder, transformer_on
from happyhorse_core.errors import CheckpointError, HappyHorseError, InputError
from tools.make_tiny_checkpoints import write_transformer

ROOT = Path(__file__).parents[2]
PATIENCE = 60
TWO = (torch.device("cpu"), torch.device("cpu"))
METHOD = "forkserver" if hasattr(os, "fork") else "spawn"


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Fails a test that waits for its processes in vain, by ending them."""
    expired = threading.Event()

    def end() -> None:
        expired.set()
        for process in multiprocessing.active_children():
            process.kill()

    timer = threading.Timer(PATIENCE, end)
    timer.daemon = True
    timer.start()
    yield
    timer.cancel()
    assert not expired.is_set()


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# shares


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("lengths", [(18, 9, 7), (1, 1, 1), (5, 0, 64), (3, 40, 1), (65_280, 126, 211)])
def test_ranks_hold_neighbouring_tokens_as_evenly_as_can_be(lengths: tuple[int, ...], ranks: int) -> None:
    modalities = np.repeat([0, 1, 2], lengths)
    expected = [tuple(np.bincount(part, minlength=3)) for part in np.array_split(modalities, ranks)]
    assert list(share_table(lengths, ranks)) == expected


# the same velocities


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What each of the processes got in all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context(METHOD)
    context.set_forkserver_preload(["parallel_cases"])
    processes = [context.Process(target=compute, args=(rank, folder), daemon=True) for rank in range(RANKS)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + 2 * PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * RANKS
    return [load_file(folder / f"{rank}.safetensors") for rank in range(RANKS)]


@pytest.mark.parametrize("name", CASES)
def test_every_rank_gets_what_one_process_gets(computed: list[dict[str, Tensor]], name: str) -> None:
    video, audio = CASES[name].outputs()
    for rank in range(CASES[name].ranks):
        same(computed[rank][f"{name} video"], video)
        same(computed[rank][f"{name} audio"], audio)


def test_as_many_bytes_are_sent_as_the_description_says(computed: list[dict[str, Tensor]]) -> None:
    config = EVEN.model().config
    tokens, ranks, size = 3 * 6 + 9 + 9, 2, EVEN.dtype.itemsize
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    layer = EVEN.batch * tokens // ranks * (ranks - 1) / ranks * heads * config.head_dim * size
    assert [int(saved["bytes sent"]) for saved in computed[:2]] == [layer * config.num_layers] * 2


# the processes of the pipeline


@pytest.fixture
def file(tmp_path: Path) -> TransformerFile:
    write_transformer(tmp_path / "distill", "distill", 0)
    return inspect_transformer(tmp_path / "distill")


def latents(height: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = (1, 48, 3, height, 6), (1, 64, 9), (1, 7, 24)
    video, audio, text = (torch.randn(shape, generator=generator) for shape in shapes)
    return video, audio, text


def all_ended(ranks: Ranks) -> bool:
    return len(ranks.processes) == 2 and not any(process.is_alive() for process in ranks.processes)


def test_two_processes_answer_as_one_model_and_pass_errors_on(file: TransformerFile) -> None:
    video, audio, text = latents()
    model = load_transformer(file, dtype=torch.float32)
    read: list[tuple[int, int]] = []
    with transformer_on(file, TWO, torch.float32, lambda done, total: read.append((done, total))) as ranks:
        for words in (text, text[:, :4], text):
            found = ranks.velocity(words)(video, audio, 0.5)
            for one, other in zip(found, model(video, audio, words, compute_dtype=torch.float32), strict=True):
                same(one, other)
        assert not all_ended(ranks)
    assert all_ended(ranks)
    assert [process.exitcode for process in ranks.processes] == [0, 0]
    assert read == sorted(read) and read[-1][1] > 2**20
    assert [done == total for done, total in read].index(True) == len(read) - 1, "done once the slower one is"


def test_an_error_of_a_call_comes_from_it_and_ends_all(file: TransformerFile) -> None:
    _, audio, text = latents()
    with pytest.raises(InputError, match="even sides"), transformer_on(file, TWO, torch.float32) as ranks:
        ranks.velocity(text)(latents(height=5)[0], audio, 0.5)
    assert all_ended(ranks)


def test_weights_that_go_away_are_named(file: TransformerFile) -> None:
    shard = sorted(file.source.path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name), transformer_on(file, TWO, torch.float32):
        raise AssertionError("loaded without a shard")
    assert not multiprocessing.active_children()


@pytest.mark.skipif(os.name == "nt", reason="sends a signal to one process")
def test_ctrl_c_goes_past_the_ranks_from_their_start(file: TransformerFile) -> None:
    video, audio, text = latents()
    sent = []

    def interrupt() -> None:
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGINT)
            sent.append(process.pid)

    threading.Timer(0.5, interrupt).start()
    with transformer_on(file, TWO, torch.float32) as ranks:
        interrupt()
        time.sleep(0.2)
        ranks.velocity(text)(video, audio, 0.5)
    assert len(sent) == 4, "while they load and again when they have"


@pytest.mark.skipif(os.name == "nt", reason="stops a process by a signal")
def test_a_rank_that_is_killed_while_the_other_waits_for_it_is_named(file: TransformerFile) -> None:
    video, audio, text = latents()
    with pytest.raises(HappyHorseError, match="killed by signal 9"), transformer_on(file, TWO, torch.float32) as ranks:
        ranks.velocity(text)(video, audio, 0.5)
        victim = ranks.processes[1].pid
        os.kill(victim, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (victim, signal.SIGKILL)).start()
        start = time.monotonic()
        ranks.velocity(text)(video, audio, 0.5)
    assert time.monotonic() - start < PATIENCE / 2
    assert all_ended(ranks)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the state of a process in /proc")
def test_a_rank_that_stays_stopped_is_awaited_for_a_while_and_named(
    file: TransformerFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ranks_module, "LOOK", 0.125)
    monkeypatch.setattr(ranks_module, "STOPPED", 0.5)
    video, audio, text = latents()
    said = "the transformer on cpu was stopped by a signal and did not go on for"
    with pytest.raises(HappyHorseError, match=said), transformer_on(file, TWO, torch.float32) as ranks:
        second = ranks.processes[1].pid
        os.kill(second, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (second, signal.SIGCONT)).start()
        ranks.velocity(text)(video, audio, 0.5)
        os.kill(second, signal.SIGSTOP)
        ranks.velocity(text)(video, audio, 0.5)
    assert all_ended(ranks)
    assert "waiting for the transformer on cpu, which a signal has stopped" in caplog.text


def test_ranks_that_say_nothing_are_named(file: TransformerFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_module, "LOOK", 0.125)
    monkeypatch.setattr(ranks_module, "STUCK", timedelta(seconds=0.5))
    ranks = Ranks(TWO[:1])
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context(METHOD).Process(
        target=time.sleep, args=(PATIENCE,), name="transformer on cpu"
    )
    process.start()
    ranks.pipes, ranks.processes = [ours], [process]
    with pytest.raises(HappyHorseError, match="the transformer on cpu did not answer"):
        ranks.results()
    ranks.kill()
    theirs.close()


KILLED = """
import os, signal, sys
from happyhorse_core.dit.ranks import rendezvous_folder
with rendezvous_folder() as folder:
    (folder / "rendezvous").touch()
    if sys.argv[1] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.name == "nt", reason="kills a process by a signal")
def test_folders_of_killed_processes_are_taken_away_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", KILLED]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*command, "lives"], cwd=ROOT, env=environment, **pipes) as process:
        living = Path(process.stdout.readline().strip())
        subprocess.run([*command, "dies"], cwd=ROOT, env=environment, check=False)
        (tmp_path / "happyhorse-ranks-link").symlink_to(living)
        assert len(list(tmp_path.iterdir())) == 3
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with rendezvous_folder() as folder:
            assert set(tmp_path.iterdir()) == {living, folder, tmp_path / "happyhorse-ranks-link"}
            assert (living / "rendezvous").exists()
        process.communicate("")
    assert [path.name for path in tmp_path.iterdir()] == ["happyhorse-ranks-link"]


def test_a_death_explains_the_error_that_came_before_the_news_of_it() -> None:
    ranks = Ranks(TWO[:1])
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context(METHOD).Process(target=time.sleep, args=(PATIENCE,), daemon=True)
    process.start()
    ranks.pipes, ranks.processes = [ours], [process]
    theirs.send(_Failure(RuntimeError("connection closed by peer"), known=False))
    threading.Timer(0.3, process.kill).start()
    with pytest.raises(HappyHorseError, match="killed by signal 9"):
        ranks.results()


def starve(process: multiprocessing.process.BaseProcess, spare: int) -> None:
    """Leaves a process so many bytes of address space beside what it has."""
    import resource

    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of another process")
@pytest.mark.parametrize("spare", [2**20, 2**26], ids=["to receive", "to compute"])
def test_a_rank_that_lacks_memory_says_so(file: TransformerFile, spare: int) -> None:
    video, audio, _ = latents()
    text = torch.zeros(1, 300_000, 24)
    with pytest.raises(MemoryError, match="cpu"), transformer_on(file, TWO, torch.float32) as ranks:
        for process in ranks.processes:
            starve(process, spare)
        ranks.velocity(text)(video, audio, 0.5)
    assert all_ended(ranks)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of another process")
def test_the_first_error_is_told_though_nobody_listens_at_once(file: TransformerFile) -> None:
    video, audio, _ = latents()
    call = video.numpy(), audio.numpy(), np.zeros((1, 20_000, 24), np.float32)
    with pytest.raises(MemoryError, match="cpu"), transformer_on(file, TWO, torch.float32) as ranks:
        starve(ranks.processes[1], 2**21)
        ranks.send(call)
        time.sleep(1.5)
        ranks.results()


BAD_DEVICES = {
    "cpu,cuda:0": "of one kind",
    "meta,meta": "of one kind",
    "cuda:0,cuda:0": "every CUDA device once",
}


@pytest.mark.parametrize("names", BAD_DEVICES)
def test_devices_that_can_not_work_together_are_named(names: str) -> None:
    with pytest.raises(InputError, match=BAD_DEVICES[names]) as error:
        check_devices([torch.device(name) for name in names.split(",")])
    assert names in str(error.value)


def test_heads_that_can_not_be_shared_out_are_counted() -> None:
    config = CASES["4 ranks"].model().config
    for ranks in (1, 2, 4):
        check_ranks(config, ranks)
    for ranks in (3, 5, 8):
        with pytest.raises(InputError, match=f"found {ranks}, expected 1 or 2 or 4.* 8 query heads and 4 key-value"):
            check_ranks(config, ranks)


# the command


def arguments(models: Path, output: Path, *more: str) -> list[str]:
    return ["generate", "--models", str(models), "--prompt", "A horse.", "--seed", "7", "--output", str(output), *more]


def status_of(command: list[str]) -> int | str | None:
    try:
        return main(command)
    except SystemExit as end:
        return end.code


def pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


def test_two_devices_make_the_clip_of_one(models: Path, tmp_path: Path) -> None:
    settings = ("--size", "64x96", "--seconds", "0.3", "--dtype", "float32", "--upscale", "96x128")
    for name, devices in (("one", ("--device", "cpu")), ("two", ("--devices", "cpu,cpu"))):
        assert main(arguments(models, tmp_path / f"{name}.mp4", *settings, *devices)) == 0
    one, two = (pictures(tmp_path / f"{name}.mp4") for name in ("one", "two"))
    assert one.shape == two.shape == (9, 128, 96, 3)
    assert one.std() > 1
    assert abs(one - two).mean() < 0.1, "the encoder of the mp4 may round another way"


REFUSED = {
    "cpu,cpu,cpu": (1, "found 3, expected 1 or 2"),
    "cpu,": (2, "--devices: found ''"),
    "cpu,toaster": (2, "--devices: found 'toaster'"),
    "cpu,meta": (2, "--devices: found 'meta'"),
}


@pytest.mark.parametrize("devices", REFUSED)
def test_devices_that_can_not_be_used_are_named_first(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], devices: str
) -> None:
    status, said = REFUSED[devices]
    assert status_of(arguments(models, tmp_path / "clip.mp4", "--seconds", "0.3", "--devices", devices)) == status
    error = capsys.readouterr().err
    assert said in error
    assert "Load" not in error
    assert not list(tmp_path.iterdir())


def end_all(process: subprocess.Popen, ranks: list[int]) -> None:
    """What a service manager does."""
    os.killpg(process.pid, signal.SIGTERM)


def interrupt_all(process: subprocess.Popen, ranks: list[int]) -> None:
    """What a terminal does on Ctrl-C."""
    os.killpg(process.pid, signal.SIGINT)


def kill(process: subprocess.Popen, ranks: list[int]) -> None:
    process.kill()


def kill_rank(process: subprocess.Popen, ranks: list[int]) -> None:
    os.kill(ranks[-1], signal.SIGKILL)


def children(process: subprocess.Popen) -> list[int]:
    """The processes that hold the transformer, without the helper of Python's that looks after them."""
    pids = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def deaf(pid: int) -> bool:
    """Whether a process never sees Ctrl-C."""
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool((int(fields["SigBlk"], 16) | int(fields["SigIgn"], 16)) >> (signal.SIGINT - 1) & 1)


def members(session: int) -> list[int]:
    """The processes that a command started, and it, as long as they are there."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError):
            if os.getsid(int(folder.name)) == session:
                found.append(int(folder.name))
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals that kill")
def test_a_killed_process_is_named_also_while_it_is_still_ending() -> None:
    ranks = Ranks([torch.device("cpu")])
    ranks.processes = [multiprocessing.get_context("spawn").Process(target=end_slowly, name="transformer on cpu")]
    ranks.processes[0].start()
    wait([ranks.processes[0].sentinel], PATIENCE)
    with pytest.raises(HappyHorseError, match="the transformer on cpu was killed by signal 9"):
        ranks._fail(_Failure(ConnectionError("lost"), known=False))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("end", "stage", "count", "status", "said"),
    [
        (interrupt_all, "Load transformer", 1, 130, "nothing was written"),
        (interrupt_all, "Load transformer", 2, 130, "nothing was written"),
        (interrupt_all, "Denoise", 2, 130, "nothing was written"),
        (end_all, "Load transformer", 1, 143, "nothing was written"),
        (end_all, "Denoise", 2, 143, "nothing was written"),
        (kill_rank, "Denoise", 2, 1, "error: the transformer on cpu was killed by signal 9"),
        (kill, "Denoise", 2, -signal.SIGKILL, ""),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_all_processes_end_together(
    models: Path,
    tmp_path: Path,
    end: Callable[[subprocess.Popen, list[int]], None],
    stage: str,
    count: int,
    status: int,
    said: str,
) -> None:
    output = tmp_path / "clip.mp4"
    output.write_bytes(b"an older clip")
    settings = ("--seconds", "12", "--size", "192x192", "--steps", "50", "--devices", "cpu,cpu")
    command = [sys.executable, "-m", "happyhorse_core", *arguments(models, output, *settings)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    seen, deadline = b"", time.monotonic() + PATIENCE
    while time.monotonic() < deadline and not (stage.encode() in seen and len(children(process)) >= count):
        os.set_blocking(process.stderr.fileno(), False)
        seen += process.stderr.read(4096) or b""
        time.sleep(0.001)
    os.set_blocking(process.stderr.fileno(), True)
    ranks = children(process)
    assert len(ranks) >= count, seen.decode()
    heard = [pid for pid in ranks if not deaf(pid)]
    end(process, ranks)
    error = process.communicate(timeout=PATIENCE)[1].decode()
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not members(process.pid)
    assert not heard
    assert process.returncode == status, error
    assert said in error
    assert "Traceback" not in error
    assert output.read_bytes() == b"an older clip"
    if end is not kill:
        assert list(tmp_path.iterdir()) == [output]
