"""What a person sees of a workflow while it runs: one line that changes in a terminal, a line per node elsewhere."""

import shutil
import time
from typing import TextIO

BAR = 24
FULL, EMPTY = "█", "░"
REDRAW_SECONDS = 0.1


class Progress:
    """Follows the messages of ComfyUI's websocket about one workflow.

    ``titles`` names its nodes by id. Nodes that the server took from its cache count as done.
    """

    def __init__(self, stream: TextIO, titles: dict[str, str]) -> None:
        self._stream = stream
        self._titles = titles
        self._changes = stream.isatty()
        self._marks = (FULL, EMPTY) if can_write(stream, FULL + EMPTY) else ("#", "-")
        self._seen: set[str] = set()
        self._node = ""
        self._step: tuple[float, float] | None = None
        self._began = self._node_began = self._drawn = time.monotonic()
        self._line = ""

    def handle(self, kind: str, data: dict) -> None:
        """Takes one message; those that say nothing about progress are ignored."""
        if kind == "execution_cached":
            self._seen.update(node for node in data.get("nodes", []) if node in self._titles)
        elif kind == "executing" and data.get("node") is not None:
            self._start(str(data.get("display_node") or data["node"]))
        elif kind == "progress" and data.get("max"):
            self._step = (data["value"], data["max"])
            self._draw()

    def waiting(self, ahead: int) -> None:
        """Says how many other jobs run first."""
        self._show(f"Waiting: {ahead} {'job' if ahead == 1 else 'jobs'} ahead in the queue", now=True)

    def close(self) -> None:
        """Leaves the terminal at the start of an empty line."""
        if self._changes and self._line:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
        self._line = ""

    def _start(self, node: str) -> None:
        if node == self._node:
            return
        self._node, self._step, self._node_began = node, None, time.monotonic()
        self._seen.add(node)
        self._draw(now=True)

    def _draw(self, now: bool = False) -> None:
        total = max(len(self._titles), len(self._seen))
        text = f"[{len(self._seen)}/{total}] {self._titles.get(self._node, self._node)}"
        if not self._changes:
            if now:
                self._show(text, now=True)
            return
        if self._step is not None:
            value, most = self._step
            filled = round(BAR * min(value / most, 1))
            full, empty = self._marks
            text += f"  {full * filled}{empty * (BAR - filled)} {value:g}/{most:g}{self._rate(value, most)}"
        self._show(f"{text}  {clock(time.monotonic() - self._began)}", now)

    def _rate(self, value: float, most: float) -> str:
        """What is left of this node, judged by what it took so far."""
        passed = time.monotonic() - self._node_began
        return f", {clock(passed / value * (most - value))} left" if 0 < value < most and passed > 1 else ""

    def _show(self, text: str, now: bool) -> None:
        if not self._changes:
            if text != self._line:
                self._stream.write(text + "\n")
                self._stream.flush()
            self._line = text
            return
        if now or time.monotonic() - self._drawn > REDRAW_SECONDS:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[K{text[:width]}")
            self._stream.flush()
            self._line, self._drawn = text, time.monotonic()


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def can_write(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
