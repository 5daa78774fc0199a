"""Wrong widgets and wires of every HappyHorse node, sent to a real ComfyUI server with tiny models."""

import json
import sys
import time
import urllib.error
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from .case import ROOT, numbered
from .judge import CLEAR, HOST, RIGHT, Verdict

sys.path += [str(ROOT / "tests")]  # appended: the pack's folder `nodes` would hide ComfyUI's module

from comfy_host import (  # noqa: E402
    PACK_NAME,
    ComfyServer,
    ComfyUINotFoundError,
    PromptFailedError,
    PromptRefusedError,
    find_comfyui,
)
from workflow_cases import NAMES, put_files, small  # noqa: E402

from ..make_tiny_checkpoints import write_stack  # noqa: E402
from ..mutate import hostile_value  # noqa: E402
from .results import wrong_pictures  # noqa: E402

__all__ = ["KIND", "ComfyUINotFoundError", "Nodes", "find_comfyui", "judged", "serve"]
KIND = "node"
OURS = ("InputError", "CheckpointError", "OutputError")
GRAPHS = tuple(name for name in NAMES if name not in ("pony", "lora"))
CUSTOM = {
    "sigmas": ("HappyHorseSigmas", {"steps": 2}),
    "solver": ("HappyHorseSamplerUniPC", {}),
    "noise": ("RandomNoise", {"noise_seed": 1}),
}
LIMIT = 60.0
LARGEST = 4 << 30
"""Bytes that the server may hold; with the tiny models it holds less than one GiB."""

Prompt = dict[str, dict[str, Any]]


class Nodes:
    """One server, and what is known of its nodes."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server

    @cached_property
    def info(self) -> dict[str, Any]:
        """The descriptions of all nodes."""
        return self.server.object_info()

    @cached_property
    def graphs(self) -> list[Prompt]:
        """A graph for each shipped workflow, and one of the nodes that none has."""
        return [*(small(name) for name in GRAPHS), self._custom(small("base_with_cfg"))]

    def _custom(self, prompt: Prompt) -> Prompt:
        """The base model's workflow with core's sampler for parts in place of ours."""
        (key, old) = next((k, n) for k, n in prompt.items() if n["class_type"] == "HappyHorseBaseSampler")
        given = self._defaults("HappyHorseGuider") | old["inputs"]
        names = self._inputs("HappyHorseGuider")
        prompt["guider"] = {"class_type": "HappyHorseGuider", "inputs": {k: v for k, v in given.items() if k in names}}
        for name, (kind, chosen) in CUSTOM.items():
            prompt[name] = {"class_type": kind, "inputs": self._defaults(kind) | chosen}
        parts = {"noise": "noise", "guider": "guider", "sampler": "solver", "sigmas": "sigmas"}
        latent = next(value for name, value in old["inputs"].items() if "latent" in name)
        wires = {name: [part, 0] for name, part in parts.items()} | {"latent_image": latent}
        prompt[key] = {"class_type": "SamplerCustomAdvanced", "inputs": wires}
        return prompt

    def _inputs(self, kind: str) -> dict[str, Any]:
        described = self.info[kind]["input"]
        return described.get("required", {}) | described.get("optional", {})

    def _defaults(self, kind: str) -> dict[str, Any]:
        return {
            name: spec[1]["default"] for name, spec in self._inputs(kind).items() if "default" in (spec[1:] or [{}])[0]
        }

    def mutate(self, rng: Random) -> tuple[str, Prompt]:
        """A graph with one or two wrong inputs of nodes of ours, and what is wrong."""
        kinds = sorted({kind for graph in self.graphs for _, kind in ours(graph)})
        kind = rng.choice(kinds)
        graph = json.loads(json.dumps(rng.choice([g for g in self.graphs if any(k == kind for _, k in ours(g))])))
        key = rng.choice([key for key, k in ours(graph) if k == kind])
        told = []
        for _ in range(rng.choice((1, 1, 2))):
            name = rng.choice(sorted(self._inputs(kind)) * 5 + ["x"])
            told.append(f"{name} {self._damage(rng, graph, key, name)}")
        return f"{kind}: {', '.join(told)}", graph

    def _damage(self, rng: Random, graph: Prompt, key: str, name: str) -> str:
        given = graph[key]["inputs"]
        action = rng.choice(("value", "value", "value", "wire", "wire", "drop"))
        if action == "drop":
            given.pop(name, None)
            return "left out"
        if action == "wire":
            other = rng.choice(sorted(graph))
            outputs = self.info[graph[other]["class_type"]]["output"]
            given[name] = [other, rng.randrange(max(1, len(outputs)))]
            return f"from {graph[other]['class_type']}"
        given[name] = hostile_value(rng)
        return f"= {ascii(given[name]):.60}"

    def run(self, seed: int, number: int) -> Verdict:
        """Sends the case of this number and judges the answer; starts the server again where it is gone."""
        what, prompt = self.mutate(numbered(seed, number))
        place = self.server.log.stat().st_size
        reset_peak(self.server.pid)
        start = time.monotonic()
        try:
            verdict, detail = self._answer(prompt)
        except TimeoutError as error:
            verdict, detail = "hang", str(error).splitlines()[0]
            self._start_again()
        except (RuntimeError, urllib.error.URLError, ConnectionError) as error:
            verdict, detail = "crash", str(error)[-300:]
            self._start_again()
        seconds, peak = time.monotonic() - start, peak_of(self.server.pid)
        said = self.server.log.read_bytes()[place:].decode(errors="replace")
        if verdict == RIGHT and "Traceback (most recent call last)" in said:
            verdict, detail = "traceback", said.strip().splitlines()[-1]
        if peak > LARGEST:
            verdict, detail = "memory", f"{peak >> 20} MiB; {detail}"
        return Verdict(number, KIND, what, verdict, detail, round(seconds, 2), peak)

    def _answer(self, prompt: Prompt) -> tuple[str, str]:
        try:
            entry = self.server.queue(prompt, seconds=LIMIT)
        except PromptRefusedError as error:
            return CLEAR, str(error)[-300:]
        except json.JSONDecodeError:
            said = self.server.log_tail(30)
            return ("traceback" if PACK_NAME in said else HOST), said[-300:]
        except PromptFailedError as error:
            return judged(dict(error.entry["status"]["messages"])["execution_error"])
        files = self.server.files_of(entry)
        left = [path.name for path in self.server.output.rglob(".*") if path.is_file()]
        if left:
            return "leftover", ", ".join(left)
        wrong = next(filter(None, map(wrong_pictures, files)), "") if files else "no file"
        for path in files:
            path.unlink()
        return ("wrong result", wrong) if wrong and files else (RIGHT, "")

    def _start_again(self) -> None:
        self.server.stop()
        self.server.start()


def ours(graph: Prompt) -> Iterator[tuple[str, str]]:
    """(id, kind) of our nodes in a graph."""
    return ((key, node["class_type"]) for key, node in graph.items() if node["class_type"].startswith("HappyHorse"))


def judged(error: dict[str, Any]) -> tuple[str, str]:
    """The verdict on the error of a prompt that a node ended."""
    kind, said = error["exception_type"], error["exception_message"].strip()
    frames = [line for line in error["traceback"] if line.lstrip().startswith("File ")]
    raised_here = bool(frames) and PACK_NAME in frames[-1]
    told = f"{error['node_type']}: {kind}: {said}"
    if kind.endswith(OURS) or (kind == "ValueError" and raised_here):
        return (CLEAR, told[:300]) if "\n" not in said else ("unclear", told[:300])
    if error["node_type"].startswith("HappyHorse") or raised_here:
        return "traceback", f"{told[:300]} {frames[-1].strip() if frames else ''}"
    return HOST, told[:300]


def reset_peak(pid: int) -> None:
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_of(pid: int) -> int:
    """The most bytes that a process held since ``reset_peak``."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
    return 0


def serve(base: Path) -> Nodes:
    """Starts a server with tiny models and all that the workflows load. Raises ComfyUINotFoundError."""
    server = ComfyServer(find_comfyui(), base)
    write_stack(server.models, "comfyui", 0)
    put_files(server)
    server.start()
    return Nodes(server)
