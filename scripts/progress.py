"""What a person sees of a workflow while it runs: a bar in a terminal, a line per node elsewhere."""

from typing import TextIO

from tqdm import tqdm

from .texts import one_line

TITLE_ONLY = "{desc}  {elapsed}"
LONGEST_TITLE = 200


def is_count(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1e12


class Progress:
    """Follows the messages of ComfyUI's websocket about one workflow.

    ``titles`` names its nodes by id; what is said of others is ignored. Nodes that the server took from its cache
    count as done.
    """

    def __init__(self, stream: TextIO, titles: dict[str, str]) -> None:
        self._stream = stream
        self._titles = titles
        self._seen: set[str] = set()
        self._written: set[str] = set()
        self._node = self._line = ""
        self._bar = tqdm(
            file=stream, disable=not stream.isatty(), leave=False, dynamic_ncols=True, delay=1e-9, bar_format=TITLE_ONLY
        )  # the delay keeps the bar away until there is something to show

    def handle(self, kind: str, data: dict) -> None:
        """Takes one message; those that say nothing about progress are ignored."""
        if kind == "execution_cached" and isinstance(data.get("nodes"), list):
            self._seen.update(set(map(str, data["nodes"])) & self._titles.keys())
        elif kind == "executing" and data.get("node") is not None:
            self._start(str(data.get("display_node") or data["node"]))
        elif kind == "progress" and is_count(data.get("value")) and is_count(data.get("max")) and data["max"]:
            self._bar.bar_format, self._bar.total = None, data["max"]
            self._bar.update(data["value"] - self._bar.n)

    def waiting(self, ahead: int) -> None:
        """Says how many other jobs run first."""
        self._show(f"Waiting: {ahead} {'job' if ahead == 1 else 'jobs'} ahead in the queue")

    def close(self) -> None:
        self._bar.close()

    def _start(self, node: str) -> None:
        if node == self._node or node not in self._titles:
            return
        self._node = node
        self._seen.add(node)
        self._show(f"[{len(self._seen)}/{len(self._titles)}] {one_line(self._titles[node], LONGEST_TITLE)}")

    def _show(self, line: str) -> None:
        if line == self._line:
            return
        self._line = line
        if self._bar.disable:
            if line in self._written:  # a server could go to and fro between two nodes, and fill a log
                return
            self._written.add(line)
            print(line, file=self._stream, flush=True)
            return
        self._bar.bar_format, self._bar.total, self._bar.desc = TITLE_ONLY, None, line
        self._bar.reset()
