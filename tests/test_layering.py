"""The habits of the code base that no linter knows, checked by reading every file's syntax tree.

Each rule is a function from a parsed file to the places that break it, and is shown at the end to find a bad example.
"""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tools.host_uses import HOST_MODULES

ROOT = Path(__file__).resolve().parent.parent
CORE = "happyhorse_core"
LONGEST_FILE = 500
LARGEST_PONY = 40e6
LONGEST_FUNCTION = 60
LONGEST_ALLOWED = 100
LONG_FUNCTIONS: set[str] = set()
"""Names, as ``path:function``, of those that may have up to 100 lines since cutting them would hide their order."""
COMMAND_LINE = ("happyhorse_core/cli.py", "happyhorse_core/__main__.py")
"""Callers of the model, as ComfyUI is one: they choose the device, switch gradients off and print."""


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the root of the pack, with slashes, and its text."""

    path: str
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def in_core(self) -> bool:
        return self.path.startswith(f"{CORE}/")

    @property
    def in_pack(self) -> bool:
        """Part of what ComfyUI loads."""
        return self.in_core or self.path.startswith("nodes/") or self.path == "__init__.py"


@cache
def tracked_files() -> list[Path]:
    """All files of the project, without what git ignores; also works in a copy that is no git repository."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        paths = [ROOT / name for name in answer.stdout.split("\0") if name]
    else:
        made = {".venv", ".cache", "output", "__pycache__", ".pytest_cache", ".ruff_cache", ".git"}
        paths = [path for path in ROOT.rglob("*") if not made & set(path.relative_to(ROOT).parts)]
    return sorted(path for path in paths if path.is_file())


@cache
def sources() -> list[Source]:
    paths = [path for path in tracked_files() if path.suffix == ".py"]
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


Rule = Callable[[Source], Iterator[str]]


def place(source: Source, node: ast.AST, what: str) -> str:
    return f"{source.path}:{node.lineno}: {what}"


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an expression made of names and dots, else ""."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


def calls(source: Source) -> Iterator[tuple[ast.Call, str]]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call):
            yield node, dotted(node.func)


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(source.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imports(source: Source) -> Iterator[tuple[ast.AST, str, int]]:
    """(node, module, dots) of every import, wherever in the file it stands."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node, name.name, 0
        elif isinstance(node, ast.ImportFrom):
            yield node, node.module or "", node.level


def core_imports_the_host(source: Source) -> Iterator[str]:
    for node, module, dots in imports(source) if source.in_core else ():
        if not dots and module.split(".")[0] in HOST_MODULES:
            yield place(source, node, f"happyhorse_core imports {module}, which is ComfyUI's")


def core_climbs_out(source: Source) -> Iterator[str]:
    depth = source.path.count("/")
    for node, module, dots in imports(source) if source.in_core else ():
        if dots > depth:
            yield place(source, node, f"happyhorse_core imports from above itself: {'.' * dots}{module}")


def pack_imports_itself_by_name(source: Source) -> Iterator[str]:
    for node, module, dots in imports(source) if source.in_pack else ():
        if not dots and module.split(".")[0] == CORE:
            yield place(
                source, node, f"imports {module} by name; another pack's module may answer: use a relative import"
            )


def node_imports_a_node(source: Source) -> Iterator[str]:
    """Floors are nodes, nodes/host, core: what two nodes need lies in the host part, which knows of no node."""
    if not source.path.startswith("nodes/") or source.path == "nodes/__init__.py":
        return
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        folder = [*source.path.split("/")[: -node.level], *filter(None, (node.module or "").split("."))]
        for name in node.names:
            found = [*folder, name.name]
            if found[0] == "nodes" and found[1:2] != ["host"]:
                yield place(source, node, f"imports {'.'.join(found)}: only nodes/__init__.py may import a node module")


def imports_the_training(source: Source) -> Iterator[str]:
    """Only tests may: they judge clips as the evaluation does."""
    for node, module, _ in () if source.path.startswith(("training/", "tests/")) else imports(source):
        if module.split(".")[0] == "training":
            yield place(source, node, f"imports {module}, on which nothing that is shipped may depend")


def layer_made_outside_ops(source: Source) -> Iterator[str]:
    layer = re.compile(r"(torch\.)?nn\.(\w*Linear|Conv\w+|Embedding\w*|\w*Norm\w*|MultiheadAttention)$")
    if not source.in_pack or source.path == f"{CORE}/ops.py":
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and layer.match(dotted(node)):
            yield place(source, node, f"{dotted(node)} instead of a layer of the injected operations")
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.nn"):
            for name in node.names:
                if layer.match(f"nn.{name.name}"):
                    yield place(source, node, f"imports the layer {name.name} instead of using the injected operations")


def loads_pickles_with_code(source: Source) -> Iterator[str]:
    # A test may run such a pickle, to show that it would have done harm.
    for node, name in () if source.path.startswith("tests/") else calls(source):
        if name in ("pickle.load", "pickle.loads", "pickle.Unpickler"):
            yield place(source, node, f"{name} runs the code in a pickle")
        if name == "torch.load":
            weights_only = [word.value for word in node.keywords if word.arg == "weights_only"]
            if not weights_only or getattr(weights_only[0], "value", None) is not True:
                yield place(source, node, "torch.load without weights_only=True")


def manages_devices_in_core(source: Source) -> Iterator[str]:
    banned = {"no_grad", "inference_mode", "empty_cache", "cuda", "set_grad_enabled"}
    for node, name in calls(source) if source.in_core and source.path not in COMMAND_LINE else ():
        if isinstance(node.func, ast.Attribute) and node.func.attr in banned:
            yield place(
                source, node, f"{name or node.func.attr}(): the caller decides on devices, memory and gradients"
            )


def too_long(source: Source) -> Iterator[str]:
    lines = source.text.count("\n")
    if lines > LONGEST_FILE:
        yield f"{source.path}: {lines} lines, at most {LONGEST_FILE}"
    for node in functions(source):
        length = node.end_lineno - node.lineno + 1
        most = LONGEST_ALLOWED if f"{source.path}:{node.name}" in LONG_FUNCTIONS else LONGEST_FUNCTION
        if length > most:
            yield place(source, node, f"{node.name} has {length} lines, at most {most}")


RULES: list[Rule] = [
    core_imports_the_host,
    core_climbs_out,
    pack_imports_itself_by_name,
    node_imports_a_node,
    imports_the_training,
    layer_made_outside_ops,
    loads_pickles_with_code,
    manages_devices_in_core,
    too_long,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_code_keeps_the_rule(rule):
    broken = [line for source in sources() for line in rule(source)]
    assert not broken, "\n" + "\n".join(broken)


def test_the_rules_see_the_code():
    paths = {source.path for source in sources()}
    assert {"happyhorse_core/ops.py", "happyhorse_core/geometry.py", "tests/test_layering.py"} <= paths


def test_long_functions_that_are_allowed_exist_and_are_long():
    lengths = {f"{s.path}:{f.name}": f.end_lineno - f.lineno + 1 for s in sources() for f in functions(s)}
    assert all(lengths.get(name, 0) > LONGEST_FUNCTION for name in LONG_FUNCTIONS)


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (core_imports_the_host, "happyhorse_core/dit/a.py", "def f():\n    import comfy.ops"),
        (core_imports_the_host, "happyhorse_core/a.py", "from folder_paths import get_full_path"),
        (core_climbs_out, "happyhorse_core/a.py", "from ..nodes import host"),
        (core_climbs_out, "happyhorse_core/dit/a.py", "from ... import nodes"),
        (pack_imports_itself_by_name, "nodes/a.py", "from happyhorse_core.dit import model"),
        (node_imports_a_node, "nodes/a.py", "from .b import CATEGORY"),
        (node_imports_a_node, "nodes/a.py", "def f():\n    from . import host, b"),
        (node_imports_a_node, "nodes/a.py", "from ..nodes.b import CATEGORY"),
        (node_imports_a_node, "nodes/host/a.py", "from ..b import CATEGORY"),
        (node_imports_a_node, "nodes/host/a.py", "from ... import nodes"),
        (imports_the_training, "tools/a.py", "from training.world import draw"),
        (imports_the_training, "nodes/a.py", "from ..training import run"),
        (layer_made_outside_ops, "happyhorse_core/dit/a.py", "from torch import nn\nx = nn.Linear(1, 2)"),
        (layer_made_outside_ops, "happyhorse_core/dit/a.py", "import torch\nx = torch.nn.GroupNorm(1, 2)"),
        (layer_made_outside_ops, "nodes/host/a.py", "from torch.nn import Conv3d"),
        (layer_made_outside_ops, "happyhorse_core/a.py", "class A(nn.Embedding):\n    pass"),
        (loads_pickles_with_code, "tools/a.py", "torch.load(path)"),
        (loads_pickles_with_code, "tools/a.py", "torch.load(path, weights_only=False)"),
        (loads_pickles_with_code, "tools/a.py", "pickle.load(file)"),
        (manages_devices_in_core, "happyhorse_core/a.py", "x.weight.cuda()"),
        (manages_devices_in_core, "happyhorse_core/a.py", "with torch.no_grad():\n    pass"),
        (too_long, "tests/a.py", "x = 1\n" * (LONGEST_FILE + 1)),
        (too_long, "tests/a.py", "async def f():\n" + "    x = 1\n" * LONGEST_FUNCTION),
    ],
)
def test_a_rule_finds_a_bad_example(rule, path, text):
    assert list(rule(Source(path, text)))


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (core_imports_the_host, "nodes/host/a.py", "import comfy.ops"),
        (core_imports_the_host, "happyhorse_core/a.py", "from . import nodes"),
        (core_climbs_out, "happyhorse_core/dit/a.py", "from ..ops import TorchOps"),
        (pack_imports_itself_by_name, "tests/a.py", "import happyhorse_core"),
        (node_imports_a_node, "nodes/__init__.py", "from .a import HappyHorseDecode"),
        (node_imports_a_node, "nodes/a.py", "from .host import checks\nfrom .host.vae import decode_frames"),
        (node_imports_a_node, "nodes/a.py", "from ..happyhorse_core import geometry\nimport nodes"),
        (node_imports_a_node, "nodes/host/a.py", "from . import ops\nfrom ...happyhorse_core.ops import TorchOps"),
        (imports_the_training, "tests/a.py", "from training.judge.clip import judge_clip"),
        (imports_the_training, "training/a.py", "from training.run import train"),
        (layer_made_outside_ops, "happyhorse_core/ops.py", "class Linear(nn.Linear): ..."),
        (layer_made_outside_ops, "happyhorse_core/a.py", "x = operations.Linear(1, 2)\ny = nn.Parameter(z)"),
        (loads_pickles_with_code, "tools/a.py", "torch.load(path, weights_only=True)"),
    ],
)
def test_a_rule_passes_a_good_example(rule, path, text):
    assert not list(rule(Source(path, text)))


# the text of the project

OUT_OF_PLACE = {
    "a folder of somebody's machine": re.compile(
        r"(?<![\w.~$}/])/(home|Users)/[A-Za-z]\w*|[A-Z]:\\Users\\\w|(?<![\w.~$}])/root/\w"
    ),
    "the address of a package index": re.compile(r"https?://\S+/(simple|whl)\b|index[-_]url", re.IGNORECASE),
}


def project_text() -> Iterator[tuple[str, int, str]]:
    """(path, line number, line) of all text files of the project, this one left out since it holds the patterns."""
    for path in tracked_files():
        if path == Path(__file__).resolve() or path.suffix in (
            ".safetensors",
            ".ckpt",
            ".pth",
            ".jpg",
            ".png",
            ".mp4",
            ".webp",
        ):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            yield path.relative_to(ROOT).as_posix(), number, line


@pytest.mark.parametrize("what", OUT_OF_PLACE)
def test_nothing_out_of_place_is_written_in_the_project(what):
    hits = [hit for hit in project_text() if OUT_OF_PLACE[what].search(hit[2])]
    found = [f"{path}:{number}: {line.strip()[:120]}" for path, number, line in hits]
    assert not found, f"{what}:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "open('/home/ann/model')",
        "path=/Users/bob/x",
        r"C:\Users\bob",
        "see /root/models",
        "PIP_INDEX_URL=x",
        "https://x.y/simple/",
    ],
)
def test_what_is_out_of_place_is_found(line):
    assert any(pattern.search(line) for pattern in OUT_OF_PLACE.values())


@pytest.mark.parametrize(
    "line", ["~/ComfyUI/models", "tests/root/x", "ComfyUI/home/index", "https://example.com/home/x"]
)
def test_what_is_in_place_is_left_alone(line):
    assert not any(pattern.search(line) for pattern in OUT_OF_PLACE.values())


def found_in(name: str, pattern: str) -> str:
    """The first group of ``pattern`` in a file of the project."""
    return re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE).group(1)


def test_requirements_are_the_same_in_both_places():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert listed == re.findall(r'"([^"]+)"', found_in("pyproject.toml", r"^dependencies = \[(.*?)\]"))
    assert not [line for line in listed if line.startswith("torch")]


def test_version_is_the_same_in_both_places():
    written = found_in(f"{CORE}/__init__.py", r'^__version__ = "(.+?)"')
    assert found_in("pyproject.toml", r'^version = "(.+?)"') == written


def test_no_file_is_large_but_the_golden_ones_and_the_pony():
    large = [path for path in tracked_files() if path.stat().st_size > 2**20 and "golden" not in path.parts]
    assert not [path for path in large if path.relative_to(ROOT).parts[0] != "pony"]
    assert sum(path.stat().st_size for path in large) < LARGEST_PONY
