"""A ComfyUI editor in a Chromium that a test drives: opens workflows, reads the canvas, queues, takes pictures."""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from comfy_host import PACK_NAME, ROOT, ComfyServer

FRONT_END = "comfyui-frontend-package"
NEWEST_FRONT_END = "1.58.1"
"""The newest release of the editor, which people get before the host that is here pins it."""
WIDTH, HEIGHT = 1600, 900
THUMBNAIL = (790, 90, 1515, 815)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SETTINGS = {
    "Comfy.TutorialCompleted": True,  # else the list of templates covers the canvas
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.RightSidePanel.IsOpen": False,  # the host keeps it as the test of the help pages left it
    "Comfy.Locale": "en",
    "Comfy.VueNodes.Enabled": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # texts also where the canvas is zoomed out
}
SECONDS = 60
OF_THE_HOST = (
    "/user.css",  # files of the user's that a fresh ComfyUI does not have
    "/api/userdata",
    "ComfyApp graph accessed before initialization",
)
"""Parts of what the editor reports as errors on every start, whatever packs there are."""
READY = """() => {
  const shell = window.app?.extensionManager;
  return shell && window.LiteGraph && window.app.canvas && shell.workflow.activeWorkflow && !shell.spinner;
}"""
"""The editor has opened the workflow that it starts with, which would else replace one opened before."""
SETTLE = """async () => {
  for (let i = 0; i < 20; i++) await new Promise(resolve => requestAnimationFrame(resolve));
}"""
READ_NODES = """() => app.graph.nodes.map(node => {
  const element = document.querySelector(`[data-node-id="${node.id}"]`);
  const drawn = element?.getBoundingClientRect(), scale = app.canvas.ds.scale;
  const size = drawn ? [drawn.width / scale, drawn.height / scale - LiteGraph.NODE_TITLE_HEIGHT] : [...node.size];
  return {
    id: node.id, type: node.type, title: node.title, pos: [...node.pos], size, bar: LiteGraph.NODE_TITLE_HEIGHT,
    missing: !LiteGraph.registered_node_types[node.type] || !!node.has_errors,
  };
})"""
READ_GROUPS = "() => app.graph.groups.map(group => ({title: group.title, box: [...group.pos, ...group.size]}))"
SET_WIDGET = """([kind, values]) => {
  for (const node of app.graph.nodes.filter(node => node.type === kind))
    for (const [name, value] of Object.entries(values))
      node.widgets.find(widget => widget.name === name).value = value;
}"""
SELECT = """kind => app.canvas.selectNode(app.graph.nodes.find(node => node.type === kind))"""
PICTURE_IS_SHOWN = """name => {
  let card = [...document.querySelectorAll('*')].find(one => !one.childElementCount && one.textContent.trim() === name);
  while (card && !card.querySelector('img')) card = card.parentElement;
  const images = [...card?.querySelectorAll('img') ?? []];
  return images.length === 1 && images[0].src.startsWith('blob:') && images[0].naturalWidth > 0;
}"""
"""Of the card with a name; where it has none yet, the next element above has those of other cards."""
CENTRE = """kind => {
  const node = app.graph.nodes.find(node => node.type === kind), ds = app.canvas.ds;
  ds.scale = 1;
  ds.offset = [300 - node.pos[0], 300 - node.pos[1]];
  app.canvas.setDirty(true, true);
}"""


class NoBrowserError(LookupError):
    """Says in one line why the tests in a browser can't run."""


def find_chromium() -> str:
    """CHROMIUM, else a Chromium or Chrome on the path. Raises NoBrowserError; nothing is ever downloaded."""
    names = [os.environ["CHROMIUM"]] if "CHROMIUM" in os.environ else ["chromium", "chromium-browser", "google-chrome"]
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise NoBrowserError(f"no Chromium found ({', '.join(names)}); install one, or name it with CHROMIUM")


class NoFrontEndError(LookupError):
    """Says in one line why the tests can't run with another release of the editor."""


def fetch_front_end(version: str = NEWEST_FRONT_END) -> Path:
    """The folder for ``--front-end-root``, fetched once and only unpacked, never installed. Raises NoFrontEndError."""
    folder = ROOT / ".cache" / f"frontend-{version}"
    static = folder / FRONT_END.replace("-", "_") / "static"
    if static.is_dir():
        return static
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as unfinished:
        pip = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-deps"]
        limits = ["--retries", "1", "--timeout", "20", "--only-binary=:all:", "--dest", unfinished]
        done = subprocess.run([*pip, *limits, f"{FRONT_END}=={version}"], capture_output=True, text=True, check=False)
        wheel = next(Path(unfinished).glob("*.whl"), None)
        if done.returncode or wheel is None:
            raise NoFrontEndError(f"{FRONT_END} {version} can't be had: pip download ended with {done.returncode}")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(Path(unfinished) / "files")
        try:
            (Path(unfinished) / "files").rename(folder)
        except OSError:  # another run was faster
            if not static.is_dir():
                raise
    return static


@contextmanager
def open_browser() -> Iterator:
    """A Chromium, driven by Playwright. Raises NoBrowserError."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise NoBrowserError("this Python has no playwright; requirements-dev.txt lists it") from None
    executable = find_chromium()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=executable, args=list(FLAGS), timeout=SECONDS * 1000)
        try:
            yield browser
        finally:
            browser.close()


class Editor:
    """One page with ComfyUI's editor on it. ``problems`` collects what it reports as errors.

    ``settings`` are the editor's own, which the server keeps until the next editor is opened.
    """

    def __init__(self, browser: object, server: ComfyServer, template: str | None = None, **settings: object) -> None:
        server.post("/settings", SETTINGS | {name.replace("__", "."): value for name, value in settings.items()})
        self.problems: list[str] = []
        self.page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        self.page.set_default_timeout(SECONDS * 1000)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.problems.append(f"uncaught: {error}"))
        query = f"?template={template}&source={PACK_NAME}" if template else ""
        self.page.goto(f"http://127.0.0.1:{server.port}/{query}")
        self.page.wait_for_function(READY)
        if template:
            self.page.wait_for_function("app.graph?.nodes.length > 0")
        self.settle()

    def __enter__(self) -> "Editor":
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()

    def _hear(self, message: object) -> None:
        text = f"{message.text} {message.location.get('url', '')}"
        if message.type == "error" and not any(known in text for known in OF_THE_HOST):
            self.problems.append(text)

    def settle(self) -> None:
        """Waits until what was asked for is drawn."""
        self.page.evaluate(SETTLE)

    def load(self, graph: dict, name: str) -> None:
        """Opens a workflow in a new tab, where its file says it is to be seen."""
        self.page.evaluate("([graph, name]) => app.loadGraphData(graph, true, true, name)", [graph, name])
        self.settle()

    def nodes(self) -> list[dict]:
        """Nodes as they are drawn: id, type, title, ``pos`` and ``size`` below the title, which is ``bar`` high.

        ``missing`` are those that the server doesn't have.
        """
        return self.page.evaluate(READ_NODES)

    def groups(self) -> list[dict]:
        return self.page.evaluate(READ_GROUPS)

    def view(self) -> list[float]:
        """Left, top, width and height of the part of the canvas that is seen."""
        return self.page.evaluate("() => [...app.canvas.ds.visible_area]")

    def look_at(self, view: dict) -> None:
        """Moves the canvas to a ``scale`` and ``offset``, as a workflow's file holds them."""
        self.page.evaluate("view => { Object.assign(app.canvas.ds, view); app.canvas.setDirty(true, true); }", view)
        self.settle()

    def complains(self) -> str:
        """The text of the editor's own box of errors: missing nodes, models, files; "" where there is none."""
        box = self.page.get_by_test_id("error-overlay")
        return box.inner_text() if box.count() else ""

    def prompt(self) -> dict:
        """What the Run button would send."""
        return self.page.evaluate("async () => (await app.graphToPrompt()).output")

    def set_widgets(self, kind: str, values: dict) -> None:
        """Sets widgets of all nodes of a kind."""
        self.page.evaluate(SET_WIDGET, [kind, values])

    def run(self) -> None:
        """Clicks Run."""
        self.page.get_by_test_id("queue-button").click()

    def wait_for_video(self) -> dict:
        """The video on the page, once its first picture is there: address, size, seconds."""
        video = self.page.locator("video").first
        video.wait_for()
        self.page.wait_for_function("document.querySelector('video').readyState >= 2")
        return video.evaluate("v => ({src: v.src, width: v.videoWidth, height: v.videoHeight, seconds: v.duration})")

    def open_templates(self, names: Sequence[str]) -> dict[str, int]:
        """Opens the pack's templates and waits until each has its picture, which comes after its name.

        Returns the server's answers to requests for thumbnails, by file name.
        """
        answers = {}
        folder = f"/workflow_templates/{PACK_NAME}/"

        def note(response: object) -> None:
            if folder in response.url:
                answers[response.url.partition(folder)[2]] = response.status

        self.page.on("response", note)
        self.page.get_by_role("button", name="Templates").first.click()
        self.page.get_by_text(PACK_NAME).first.click()
        for name in names:
            title = self.page.get_by_text(name, exact=True).first
            title.wait_for()
            title.scroll_into_view_if_needed()  # pictures out of sight are not asked for
            self.page.wait_for_function(PICTURE_IS_SHOWN, arg=name)
        return answers

    def open_help(self, kind: str, *said: str) -> str:
        """The text of the help panel of the first node of a kind, opened by the button above it, once it says all.

        The panel is there before its page has come from the server.
        """
        self.page.evaluate(CENTRE, kind)
        self.page.evaluate(SELECT, kind)
        self.settle()
        self.page.get_by_test_id("info-button").click()
        panel = self.page.locator(".node-help-content")
        for text in said:
            panel.filter(has_text=text).wait_for()
        return panel.inner_text()

    def picture(self, path: Path) -> None:
        """Saves what is seen as a PNG of 256 colours, which is a third of the size."""
        with Image.open(io.BytesIO(self.page.screenshot())) as seen:
            reduce_colours(seen.convert("RGB")).save(path, optimize=True)

    def thumbnail(self, path: Path) -> None:
        """Saves the right-hand part of what is seen, where a workflow's prompt and result are, as a small JPEG."""
        with Image.open(io.BytesIO(self.page.screenshot())) as seen:
            seen.convert("RGB").crop(THUMBNAIL).resize((400, 400), Image.Resampling.LANCZOS).save(path, quality=80)


def reduce_colours(picture: Image.Image) -> Image.Image:
    """256 colours: those of large areas, and some of those that are rare and far from them, such as of the links."""
    palette: list[int] = []
    for method, colours in ((Image.Quantize.MEDIANCUT, 176), (Image.Quantize.MAXCOVERAGE, 80)):
        palette += picture.quantize(colours, method).getpalette()[: 3 * colours]
    holder = Image.new("P", (1, 1))
    holder.putpalette(palette)
    return picture.quantize(palette=holder, dither=Image.Dither.NONE)
