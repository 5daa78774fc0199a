"""What the pack uses of its host, read from the sources' syntax trees: names, calls, and what its classes override.

A name is a path of attributes from a module of the host's. ``()`` in it stands for what a call gives: an instance,
where a class is called. Parameters count as instances of the host's class that they are annotated with.
"""

import ast
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HOST_MODULES = {
    "comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "latent_preview",
    "node_helpers", "nodes", "server",
}  # fmt: skip
MADE = "()"
Dotted = tuple[str, ...]


@dataclass(frozen=True)
class Use:
    """A name at one place of our sources. ``call`` is how it is called there."""

    place: str
    path: Dotted
    call: "Call | None" = None
    is_import: bool = False

    @property
    def name(self) -> str:
        return spelled(self.path)


@dataclass(frozen=True)
class Call:
    """Arguments of one call. ``is_open``: there are more, in ``*`` or ``**``."""

    positional: int
    keywords: Dotted
    is_open: bool


@dataclass(frozen=True)
class Override:
    """What a subclass of a class of the host's defines. ``signature`` is that of a method, without self.

    ``is_hook``: nothing of ours reads it, so that it is there for the host to find.
    """

    place: str
    base: Dotted
    owner: str
    name: str
    signature: inspect.Signature | None
    is_hook: bool


@dataclass
class Uses:
    """All that was found. ``optional`` names and keywords may be missing: our code looks whether they are there."""

    uses: list[Use] = field(default_factory=list)
    overrides: list[Override] = field(default_factory=list)
    stored: list[Use] = field(default_factory=list)
    optional: list[Use] = field(default_factory=list)
    optional_keywords: set[str] = field(default_factory=set)

    def is_optional(self, path: Dotted) -> bool:
        return any(path[: len(use.path)] == use.path for use in self.optional)


def spelled(path: Dotted) -> str:
    return ".".join(path).replace(f".{MADE}", MADE)


def collect(files: Iterable[Path], root: Path) -> Uses:
    found = Uses()
    trees = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in files}
    read = {
        node.attr
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and not _of_super(node)
    }
    for path, tree in trees.items():
        place = path.relative_to(root) if path.is_relative_to(root) else path
        Collector(place.as_posix(), found, read).visit(tree)
    return found


def _of_super(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name) and node.value.func.id == "super"


class Collector(ast.NodeVisitor):
    """Walks one file, knowing at each place which of the names in sight are the host's."""

    def __init__(self, file: str, found: Uses, read: set[str]) -> None:
        self.file = file
        self.found = found
        self.read = read
        self.scopes: list[dict[str, Dotted | None]] = [{}]
        self.classes: list[tuple[Dotted | None, set[str]]] = []
        self.tentative = 0

    def place(self, node: ast.AST) -> str:
        return f"{self.file}:{node.lineno}"

    def record(self, node: ast.AST, path: Dotted, call: Call | None = None, is_import: bool = False) -> None:
        target = self.found.optional if self.tentative else self.found.uses
        target.append(Use(self.place(node), path, call, is_import))

    # names

    def lookup(self, name: str) -> Dotted | None:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), None)

    def resolve(self, node: ast.AST | None) -> Dotted | None:
        """The path of an expression that leads to something of the host's."""
        if isinstance(node, ast.Name):
            return self.lookup(node.id)
        if isinstance(node, ast.Attribute):
            base = self.resolve(node.value)
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if base is None or (of_self and self.classes and node.attr in self.classes[-1][1]):
                return None
            return (*base, node.attr)
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id == "super" and not node.args:
                base = self.classes[-1][0] if self.classes else None
                return base and (*base, MADE)
            asked = self.asked_for(node)
            if asked is not None:
                return asked if node.func.id == "getattr" else None
            called = self.resolve(node.func)
            return called and (*called, MADE)
        return None

    def asked_for(self, node: ast.Call) -> Dotted | None:
        """The path in ``getattr(path, "name")`` or ``hasattr``."""
        named = isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr") and len(node.args) >= 2
        if not named or not isinstance(node.args[1], ast.Constant):
            return None
        base = self.resolve(node.args[0])
        return base and (*base, str(node.args[1].value))

    def annotated(self, node: ast.AST | None) -> Dotted | None:
        """An instance of the class that an annotation names, alone or beside None."""
        if isinstance(node, ast.BinOp) and isinstance(node.right, ast.Constant) and node.right.value is None:
            node = node.left
        path = self.resolve(node)
        return path and (*path, MADE)

    # statements

    def visit_Import(self, node: ast.Import) -> None:
        for item in node.names:
            path = tuple(item.name.split("."))
            if path[0] in HOST_MODULES:
                self.scopes[-1][item.asname or path[0]] = path if item.asname else path[:1]
                self.record(node, path, is_import=True)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        path = tuple((node.module or "").split("."))
        if node.level or path[0] not in HOST_MODULES:
            return
        self.record(node, path, is_import=True)
        for item in node.names:
            self.scopes[-1][item.asname or item.name] = (*path, item.name)
            self.record(node, (*path, item.name))

    def visit_Try(self, node: ast.Try) -> None:
        caught = {n.id for handler in node.handlers if handler.type for n in ast.walk(handler.type) if hasattr(n, "id")}
        tentative = bool(caught & {"ImportError", "ModuleNotFoundError", "AttributeError"})
        self.tentative += tentative
        for statement in node.body:
            self.visit(statement)
        self.tentative -= tentative
        for statement in (*node.handlers, *node.orelse, *node.finalbody):
            self.visit(statement)

    def visit_Assign(self, node: ast.Assign) -> None:
        path = self.resolve(node.value)
        self.generic_visit(node)
        if path is not None and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            self.scopes[-1][node.targets[0].id] = path

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            self.scopes[-1][node.target.id] = self.annotated(node.annotation)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        spec = node.args
        arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))]
        outside = [
            *node.decorator_list,
            *spec.defaults,
            *filter(None, spec.kw_defaults),
            *(a.annotation for a in arguments),
        ]
        for part in (*outside, node.returns):
            if part is not None:
                self.visit(part)
        scope = {argument.arg: self.annotated(argument.annotation) for argument in arguments}
        base = self.classes[-1][0] if self.classes else None
        if base is not None and arguments and arguments[0].arg in ("self", "cls"):
            scope[arguments[0].arg] = (*base, MADE) if arguments[0].arg == "self" else base
        self.scopes.append(scope)
        for statement in node.body:
            self.visit(statement)
        self.scopes.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in (*node.bases, *node.keywords, *node.decorator_list):
            self.visit(part)
        bases = [self.resolve(base) for base in node.bases]
        base = bases[0] if len(bases) == 1 else None
        if base is not None:
            for name, definition, signature in _defined(node):
                is_hook = not name.startswith("_") and name not in self.read
                self.found.overrides.append(Override(self.place(definition), base, node.name, name, signature, is_hook))
        self.classes.append((base, {name for name, _, _ in _defined(node)} | set(_set_on_self(node))))
        self.scopes.append({})
        for statement in node.body:
            self.visit(statement)
        self.scopes.pop()
        self.classes.pop()
        self.scopes[-1][node.name] = None

    # expressions

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self.scopes[-1][node.id] = None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        path = self.resolve(node)
        if path is not None and isinstance(node.ctx, ast.Load):
            self.record(node, path)
        elif path is not None and MADE in path:
            self.found.stored.append(Use(self.place(node), path))
        inner = node.value
        while isinstance(inner, ast.Attribute) and path is not None:
            inner = inner.value
        self.visit(inner)

    def visit_Call(self, node: ast.Call) -> None:
        asked = self.asked_for(node)
        if asked is not None:
            self.found.optional.append(Use(self.place(node), asked))
        elif (path := self.resolve(node.func)) is not None:
            starred = any(isinstance(argument, ast.Starred) for argument in node.args)
            keywords = tuple(word.arg for word in node.keywords if word.arg)
            positional = sum(not isinstance(argument, ast.Starred) for argument in node.args)
            call = Call(positional, keywords, starred or len(keywords) < len(node.keywords))
            self.record(node, path, call)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        """``"keyword" in inspect.signature(...).parameters``"""
        words = [node.left] if isinstance(node.ops[0], ast.In) else []
        asks = "signature" in ast.dump(node) or "parameters" in ast.dump(node)
        self.found.optional_keywords |= {word.value for word in words if asks and isinstance(word, ast.Constant)}
        self.generic_visit(node)


def _defined(node: ast.ClassDef) -> Iterator[tuple[str, ast.AST, inspect.Signature | None]]:
    for item in node.body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = {getattr(decorator, "id", "another") for decorator in item.decorator_list}
            is_method = not decorators - {"classmethod", "staticmethod"}
            yield item.name, item, _signature(item, bound="staticmethod" not in decorators) if is_method else None
        elif isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None:
            yield item.target.id, item, None
        elif isinstance(item, ast.Assign):
            yield from ((target.id, item, None) for target in item.targets if isinstance(target, ast.Name))


def _set_on_self(node: ast.ClassDef) -> Iterator[str]:
    for item in ast.walk(node):
        is_set = isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store)
        if is_set and isinstance(item.value, ast.Name) and item.value.id == "self":
            yield item.attr


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, *, bound: bool) -> inspect.Signature:
    """Without self or cls. Defaults are there, but not what they are."""
    spec, kind = node.args, inspect.Parameter
    places = [(a, kind.POSITIONAL_ONLY) for a in spec.posonlyargs] + [
        (a, kind.POSITIONAL_OR_KEYWORD) for a in spec.args
    ]
    first_default = len(places) - len(spec.defaults)
    parameters = [
        kind(argument.arg, where, default=None if number >= first_default else kind.empty)
        for number, (argument, where) in enumerate(places)
    ]
    if spec.vararg:
        parameters.append(kind(spec.vararg.arg, kind.VAR_POSITIONAL))
    for argument, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
        parameters.append(kind(argument.arg, kind.KEYWORD_ONLY, default=kind.empty if default is None else None))
    if spec.kwarg:
        parameters.append(kind(spec.kwarg.arg, kind.VAR_KEYWORD))
    return inspect.Signature(parameters[1:] if bound and places else parameters)
