"""Hundreds of prompts on one ComfyUI server, with interruptions: ``python -m tools.soak --prompts 500 --picture FILE``.

All shipped workflows with tiny models, in an order that ``--seed`` decides. On the way prompts are interrupted at any
moment, the queue is cleared, models are thrown out, a client goes away, and the disk is full for a while (where this
process may mount one of its own). Wanted: equal seeds give equal bytes, and memory, handles and threads stay as they
are. Ends with 1 where they don't. Linux only, since it reads /proc.
"""

import argparse
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]  # appended: the pack's folder `nodes` would hide ComfyUI's module

from comfy_host import ComfyServer, PromptFailedError, PromptInterruptedError, find_comfyui  # noqa: E402
from workflow_cases import NAMES, nodes_of, put_files, small  # noqa: E402

from .make_tiny_checkpoints import write_stack  # noqa: E402
from .soak_picture import draw  # noqa: E402

SEEDS = (0, 11, 2**64 - 1)
DISK_BYTES = 64 << 20
FULL_PROMPTS = 8
"""How many prompts meet a full disk, in the middle of the run."""
MOST_GROWTH = 0.05
MOST_MORE = 4
"""Handles and threads that may be more at the end: the server opens some for a client or a thread pool."""
KINDS = {"plain": 62, "interrupted": 24, "cleared": 6, "freed": 4, "client gone": 4}
PACK_LINES = re.compile(r'^\s*File ".*ComfyUI-HappyHorse/', re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """The server after a prompt: seconds since the start, resident bytes, open handles, threads, and what happened."""

    seconds: float
    memory: int
    handles: int
    threads: int
    workflow: str
    outcome: str


@dataclass
class Soak:
    """What is known so far: the bytes of each (workflow, seed), what was seen, where interrupts hit."""

    server: ComfyServer
    chance: random.Random
    expected: dict[tuple[str, int], dict[str, str]] = field(default_factory=dict)
    usual: dict[str, float] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    interrupted_in: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    full: bool = False

    def run(self, prompts: int, filler: Path | None) -> None:
        """So many prompts, one event each; ``filler`` is a file that can take up the whole disk of the results."""
        clients = [self.server.events() for _ in range(2)]
        middle = prompts // 2
        for number in range(prompts):
            if filler is not None and number in (middle, middle + FULL_PROMPTS):
                self.full = number == middle
                fill(filler) if self.full else filler.unlink()
            kind = self.chance.choices(tuple(KINDS), tuple(KINDS.values()))[0]
            if kind == "client gone":
                clients.pop(0).close()
                clients.append(self.server.events())
            name, seed = self.chance.choice(NAMES), self.chance.choice(SEEDS)
            self.note(name, self.one(name, seed, kind, self.chance.choice(clients)))
            show(number + 1, prompts, self.samples)
        for client in clients:
            client.close()

    def one(self, name: str, seed: int, kind: str, client) -> str:
        """Runs a prompt and says how it ended: same, first, different, interrupted, cleared or failed."""
        if kind == "freed":
            self.server.post("/free", {"unload_models": True, "free_memory": True})
        prompt = with_bytes(small(name, seed=seed))
        begun = time.monotonic()
        prompt_id = self.server.submit(prompt, client_id=client.client_id)
        if kind == "cleared":
            for _ in range(2):
                self.server.submit(with_bytes(small(name, seed=seed)), client_id=client.client_id)
            self.server.post("/queue", {"clear": True})
            self.server.post("/interrupt")
            self.wait_for_rest()
            return "cleared"
        if kind == "interrupted":
            self.interrupt(prompt_id, name)
        try:
            entry = self.server.wait(prompt_id)
        except PromptInterruptedError as error:
            self.interrupted_in[where_of(error)] += 1
            return "interrupted"
        except PromptFailedError as error:
            if not self.full:
                self.faults.append(f"{name}, seed {seed}: {str(error).splitlines()[0]}")
            return "failed on the full disk" if self.full else "failed"
        if kind == "plain":
            self.usual[name] = time.monotonic() - begun
        return self.compare(name, seed, entry)

    def interrupt(self, prompt_id: str, name: str) -> None:
        """Stops the prompt at a moment that is anywhere in its usual time."""
        time.sleep(self.chance.random() * self.usual.get(name, 2.0))
        self.server.post("/interrupt", {"prompt_id": prompt_id})

    def wait_for_rest(self) -> None:
        """Until the server has nothing to do."""
        while any(self.server.get("/queue").values()):
            time.sleep(0.05)

    def compare(self, name: str, seed: int, entry: dict) -> str:
        """Whether the bytes are those that the first run of this workflow and seed gave."""
        found = bytes_of(self.server, entry)
        if len(found) != 4:
            self.faults.append(f"{name}, seed {seed}: found the results {sorted(found)}, expected four")
        wanted = self.expected.setdefault((name, seed), found)
        if wanted is found:
            return "first"
        if wanted == found:
            return "same"
        other = sorted(key for key in wanted if wanted[key] != found.get(key))
        self.faults.append(f"{name}, seed {seed}: other bytes than before in {other}")
        return "different"

    def note(self, name: str, outcome: str) -> None:
        """Reads the server's process and keeps it."""
        status = Path(f"/proc/{self.server.pid}/status").read_text()
        memory, threads = (int(re.search(rf"^{key}:\s+(\d+)", status, re.M)[1]) for key in ("VmRSS", "Threads"))
        handles = len(list(Path(f"/proc/{self.server.pid}/fd").iterdir()))
        seconds = time.monotonic() - self.started
        self.samples.append(Sample(seconds, memory << 10, handles, threads, name, outcome))

    def report(self) -> dict:
        """Counts, growth from the second fifth to the last, and what is wrong."""
        outcomes = Counter(sample.outcome for sample in self.samples)
        fifth = max(1, len(self.samples) // 5)
        early, late = self.samples[fifth : 2 * fifth] or self.samples, self.samples[-fifth:]
        first, last = ({key: median(getattr(s, key) for s in part) for key in GROW} for part in (early, late))
        growth = {"memory": last["memory"] / first["memory"] - 1, **{k: last[k] - first[k] for k in GROW[1:]}}
        faults = list(self.faults)
        faults += [f"memory grew by {growth['memory']:.1%}"] * (growth["memory"] > MOST_GROWTH)
        faults += [f"{key}: {growth[key]:g} more than at first" for key in GROW[1:] if growth[key] > MOST_MORE]
        lines = len(PACK_LINES.findall(self.server.log_text()))
        faults += [f"{lines} lines of tracebacks in the log are of this pack"] * bool(lines and not outcomes["failed"])
        return {
            "prompts": len(self.samples),
            "seconds": round(self.samples[-1].seconds),
            "outcomes": dict(outcomes),
            "results": len(self.expected),
            "interrupted in": dict(self.interrupted_in),
            "growth": growth,
            "faults": faults,
        }


GROW = ("memory", "handles", "threads")


def with_bytes(prompt: dict) -> dict:
    """The prompt with its latents, its sound and a frame saved too, in formats that are the same for equal values."""
    decode = nodes_of(prompt, "HappyHorseDecode")[-1]
    mark = uuid.uuid4().hex  # else the server would take the files of the run before for those of this one

    def node(kind: str, **inputs: object) -> dict:
        return {"class_type": kind, "inputs": inputs}

    return prompt | {
        "split": node("LTXVSeparateAVLatent", av_latent=prompt[decode]["inputs"]["latent"]),
        "video": node("SaveLatent", samples=["split", 0], filename_prefix=f"{mark}/video"),
        "audio": node("SaveLatent", samples=["split", 1], filename_prefix=f"{mark}/audio"),
        "frame": node("ImageFromBatch", image=[decode, 0], batch_index=12, length=1),
        "picture": node("SaveImage", images=["frame", 0], filename_prefix=f"{mark}/picture"),
        "sound": node("SaveAudio", audio=[decode, 1], filename_prefix=f"{mark}/sound"),
    }


def bytes_of(server: ComfyServer, entry: dict) -> dict[str, str]:
    """The hash of each file that ``with_bytes`` added, by its name without numbers; the files are deleted."""
    found = {}
    for path in server.files_of(entry):
        if path.suffix != ".mp4":  # x264 in core's Save Video is not the same for equal frames
            found[re.sub(r"_\d+_?", "", path.name)] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.unlink(missing_ok=True)  # a cached result names the file of the run before
    return found


def where_of(error: PromptInterruptedError) -> str:
    """The kind of node that ran when the interrupt came."""
    return dict(error.entry["status"]["messages"])["execution_interrupted"].get("node_type") or "between nodes"


def fill(path: Path) -> None:
    """Takes what room the disk of ``path`` has."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 20)):
            pass
    with path.open("ab", buffering=0) as file, suppress(OSError):
        while file.write(bytes(512)):
            pass


def show(done: int, prompts: int, samples: list[Sample]) -> None:
    if done % 25 == 0 or done == prompts:
        last = samples[-1]
        print(
            f"{done}/{prompts} prompts, {last.seconds:.0f} s, {last.memory >> 20} MiB, {last.handles} handles",
            flush=True,
        )


def disk_for(folder: Path) -> bool:
    """Mounts a small disk at ``folder``; False where this process may not."""
    folder.mkdir(parents=True)
    if os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid():
        return False
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    return subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode == 0


def soak(prompts: int, seed: int) -> Soak:
    """Starts a server, runs the prompts, and stops it."""
    with TemporaryDirectory() as folder:
        base = Path(folder) / "comfyui"
        write_stack(base / "models", "comfyui", 0)
        mounted = disk_for(base / "output")
        try:
            with ComfyServer(find_comfyui(), base, arguments=["--disable-metadata"]) as server:
                put_files(server)
                state = Soak(server, random.Random(seed))
                state.run(prompts, base / "output" / "filler" if mounted else None)
                return state, state.report() | {"full disk tried": mounted}
        finally:
            if mounted:
                subprocess.run(["umount", str(base / "output")], check=False)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1, help="which order of prompts and events; default 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples and the report")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw memory, handles, threads and results")
    asked = parser.parse_args(arguments)
    state, report = soak(asked.prompts, asked.seed)
    samples = [asdict(sample) for sample in state.samples]
    if asked.json:
        asked.json.write_text(json.dumps({"report": report, "samples": samples}, indent=1), encoding="utf-8")
    if asked.picture:
        asked.picture.write_text(draw(samples), encoding="utf-8")
    print(json.dumps(report, indent=1))
    return int(bool(report["faults"]))


if __name__ == "__main__":
    sys.exit(main())
