"""What a person sees of a workflow while it runs: a bar in a terminal, a line per node elsewhere."""

from typing import TextIO

from tqdm import tqdm

TITLE_ONLY = "{desc}  {elapsed}"


class Progress:
    """Follows the messages of ComfyUI's websocket about one workflow.

    ``titles`` names its nodes by id. Nodes that the server took from its cache count as done.
    """

    def __init__(self, stream: TextIO, titles: dict[str, str]) -> None:
        self._stream = stream
        self._titles = titles
        self._seen: set[str] = set()
        self._node = self._line = ""
        self._bar = tqdm(
            file=stream, disable=not stream.isatty(), leave=False, dynamic_ncols=True, delay=1e-9, bar_format=TITLE_ONLY
        )  # the delay keeps the bar away until there is something to show

    def handle(self, kind: str, data: dict) -> None:
        """Takes one message; those that say nothing about progress are ignored."""
        if kind == "execution_cached":
            self._seen.update(node for node in data.get("nodes", []) if node in self._titles)
        elif kind == "executing" and data.get("node") is not None:
            self._start(str(data.get("display_node") or data["node"]))
        elif kind == "progress" and data.get("max"):
            self._bar.bar_format, self._bar.total = None, data["max"]
            self._bar.update(data["value"] - self._bar.n)

    def waiting(self, ahead: int) -> None:
        """Says how many other jobs run first."""
        self._show(f"Waiting: {ahead} {'job' if ahead == 1 else 'jobs'} ahead in the queue")

    def close(self) -> None:
        self._bar.close()

    def _start(self, node: str) -> None:
        if node == self._node:
            return
        self._node = node
        self._seen.add(node)
        total = max(len(self._titles), len(self._seen))
        self._show(f"[{len(self._seen)}/{total}] {self._titles.get(node, node)}")

    def _show(self, line: str) -> None:
        if line == self._line:
            return
        self._line = line
        if self._bar.disable:
            print(line, file=self._stream, flush=True)
            return
        self._bar.bar_format, self._bar.total, self._bar.desc = TITLE_ONLY, None, line
        self._bar.reset()
