"""Says whether a ComfyUI still has every name and signature that nodes/ uses, and whether the Pony runs in it.

    python -m tools.check_host [--if-found] [--names-only] [FILE...]

COMFYUI_PATH and COMFYUI_PYTHON say which ComfyUI, as for the tests. Ends with 0 where all is well, 1 where the host
lacks something, 2 where no ComfyUI was found.
"""

import argparse
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__" and sys.path[0] == str(Path(__file__).resolve().parent):
    del sys.path[0]
sys.path += [str(ROOT), str(ROOT / "tests")]  # appended: the pack's folder `nodes` would hide ComfyUI's module

from comfy_host import ComfyUINotFoundError, enter_comfyui, find_comfyui, host_environment, import_pack  # noqa: E402
from tools.host_uses import MADE, Call, Dotted, Override, Use, Uses, collect, spelled  # noqa: E402

SECONDS = 300
STEPS, SIDE, FRAMES = 2, 32, 5
PONY = "HappyHorse-Pony"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        host = find_comfyui()
    except ComfyUINotFoundError as error:
        print(f"Check of the host skipped: {error}." if options.if_found else f"{error}.")
        return 0 if options.if_found else 2
    if options.inside:
        return check(options.files, options.names_only)
    words = [str(Path(__file__).resolve()), "--inside", *map(str, options.files)]
    words += ["--names-only"] if options.names_only else []
    try:
        done = subprocess.run(
            [host.python, *words], env=host_environment(COMFYUI_PATH=str(host.path)), timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        print(f"The check was stopped after {SECONDS} s.")
        return 1
    return min(abs(done.returncode), 1)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="check_host", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="sources to read (default: all of nodes/)")
    parser.add_argument("--if-found", action="store_true", help="end well where there is no ComfyUI")
    parser.add_argument("--names-only", action="store_true", help="make no clip with the Pony")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # the process in ComfyUI's own Python
    options = parser.parse_args(arguments)
    options.files = [path.resolve() for path in options.files] or sorted((ROOT / "nodes").rglob("*.py"))
    return options


def check(files: Sequence[Path], names_only: bool) -> int:
    """Runs in ComfyUI's Python. Prints what was found and returns the exit status."""
    began = time.perf_counter()
    uses = collect(files, ROOT)
    with tempfile.TemporaryDirectory(prefix="check-host-") as base:
        host = find_comfyui()
        enter_comfyui(host, Path(base))
        print(f"{len(files)} files of ours against {describe(host.path)}")
        faults = check_names(uses)
        for fault in faults:
            print(fault)
        if not names_only:
            faults += check_pony()
        result = f"{len(faults)} faults" if faults else "all is there"
        print(f"total      {result}, {time.perf_counter() - began:.1f} s")
    return 1 if faults else 0


def describe(path: Path) -> str:
    version = path / "comfyui_version.py"
    found = re.search(r'__version__ = "(.+)"', version.read_text(encoding="utf-8")) if version.is_file() else None
    return f"ComfyUI {found[1] if found else 'of an unknown version'} at {path}"


# names


class Made(NamedTuple):
    """Something of a class, which is not made for the check."""

    kind: type


class Missing(NamedTuple):
    """The end of the part of a path that the host has, and why it goes no further."""

    path: Dotted
    why: str


UNKNOWN = object()
"""What only running code would tell; everything is taken to be there."""


@cache
def resolve(path: Dotted) -> Any:
    """What the host has at a path: an object, Made, UNKNOWN or Missing."""
    found: Any = None
    for length, name in enumerate(path, 1):
        if length == 1 or (inspect.ismodule(found) and not hasattr(found, name)):
            found = import_module(path[:length])
        else:
            found = step(found, name)
        if found is None:
            return Missing(path[:length], "missing")
        if isinstance(found, Missing) or found is UNKNOWN:
            return found
    return found


def import_module(path: Dotted) -> Any:
    name = ".".join(path)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        itself = error.name is not None and f"{name}.".startswith(f"{error.name}.")
        no_package = "is not a package" in str(error)
        return None if itself or no_package else Missing(path, f"can't be imported: {error}")
    except ImportError as error:
        return Missing(path, f"can't be imported: {error}")


def step(found: Any, name: str) -> Any:
    """One more name along a path; None where it is missing."""
    if name == MADE:
        return made_by(found)
    if isinstance(found, Made):
        return member(found.kind, name)
    value = getattr(found, name, Missing)
    if value is not Missing:
        return UNKNOWN if value is None else value
    if not inspect.isclass(found):
        return None
    if re.search(rf"\b{found.__name__}\.{name} = self\b", source_of(found)):
        return Made(found)  # the one instance, which the class knows once it was made
    return UNKNOWN if any(name in vars(kind).get("__annotations__", {}) for kind in found.__mro__) else None


def made_by(called: Any) -> Any:
    if inspect.isclass(called):
        return Made(called)
    given = getattr(called, "__annotations__", {}).get("return")
    return Made(given) if inspect.isclass(given) else UNKNOWN


def member(kind: type, name: str) -> Any:
    """An attribute of an instance: of the class, or one that its methods set."""
    found = inspect.getattr_static(kind, name, None)
    if inspect.isfunction(found):
        return Method(kind, found)
    if found is not None:
        is_plain = isinstance(found, staticmethod | classmethod)
        return getattr(kind, name) if is_plain else UNKNOWN
    if any(name in vars(one) or name in vars(one).get("__annotations__", {}) for one in kind.__mro__):
        return UNKNOWN
    return UNKNOWN if re.search(rf"\.{name}\b[^=\n]*=(?!=)", source_of(kind)) else None


class Method:
    """A function of a class, as it is called on an instance."""

    def __init__(self, kind: type, function: Any) -> None:
        self.__annotations__ = {"return": kind if returns_self(function) else None}
        self.__signature__ = without_self(inspect.signature(function))

    def __call__(self) -> None: ...


def returns_self(function: Any) -> bool:
    return getattr(function, "__annotations__", {}).get("return") in ("Self", "self")


def without_self(signature: inspect.Signature) -> inspect.Signature:
    first, *others = signature.parameters.values() or [None]
    keeps_all = first is None or first.kind is first.VAR_POSITIONAL
    return signature if keeps_all else signature.replace(parameters=others)


@cache
def source_of(kind: type) -> str:
    """The text of a class and of those that it is made from, as far as they are written in Python."""
    texts = []
    for one in kind.__mro__:
        try:
            texts.append(inspect.getsource(one))
        except (OSError, TypeError):
            continue
    return "\n".join(texts)


def check_names(uses: Uses) -> list[str]:
    """Prints a line for each kind, and returns the faults."""
    modules = [use for use in uses.uses if use.is_import]
    names = [use for use in uses.uses if not use.is_import and not use.call]
    calls = [use for use in uses.uses if use.call]
    with_place = [
        ("modules", modules, check_name),
        ("names", names, check_name),
        ("calls", calls, check_call),
        ("overrides", uses.overrides, check_override),
    ]
    faults = []
    for kind, items, look in with_place:
        began = time.perf_counter()
        found = [fault for item in items for fault in look(item, uses)]
        different = len({getattr(item, "path", item) for item in items})
        count_of = f"{different:4} in {len(items)} places" if kind != "overrides" else f"{len(items):4}"
        print(f"{kind:10} {count_of}, {len(found)} faults, {time.perf_counter() - began:.1f} s")
        faults += found
    optional = {use.name: present(use.path) for use in (*uses.optional, *uses.stored)}
    lacking = [name for name, there in optional.items() if not there]
    print(f"{'optional':10} {len(optional):4}, {len(optional) - len(lacking)} present")
    for use in {use.name: use for use in uses.optional}.values():
        print(f"optional: {use.name}: {'present' if optional[use.name] else 'absent'}")
    for use in {use.name: use for use in uses.stored}.values():
        if not optional[use.name]:
            print(f"optional: {use.name}, which is set at {use.place}: absent")
    return list(dict.fromkeys(faults))


def present(path: Dotted) -> bool:
    return not isinstance(resolve(path), Missing)


def check_name(use: Use, uses: Uses) -> Iterator[str]:
    found = resolve(use.path)
    if isinstance(found, Missing) and not uses.is_optional(use.path):
        yield f"{use.place}: {use.name}: {spelled(found.path)} is {found.why}"


def check_call(use: Use, uses: Uses) -> Iterator[str]:
    called = resolve(use.path)
    if called is UNKNOWN or isinstance(called, Missing | Made):
        return
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # written in C, or not for calling
        return
    keywords = [word for word in use.call.keywords if word not in uses.optional_keywords]
    bind = signature.bind_partial if use.call.is_open else signature.bind
    try:
        bind(*[None] * use.call.positional, **dict.fromkeys(keywords))
    except TypeError as error:
        yield f"{use.place}: {use.name}: called with {arguments(use.call)}; the host has {plain(signature)}: {error}"


def arguments(call: Call) -> str:
    parts = ["_"] * call.positional + [f"{word}=" for word in call.keywords] + ["..."] * call.is_open
    return f"({', '.join(parts)})"


def plain(signature: inspect.Signature) -> str:
    """Names and defaults alone."""
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(inspect.Signature(bare))


def is_read(package: str, name: str) -> bool:
    """Whether a package of the host's reads an attribute of that name: of a hook that its base class need not have."""
    return re.search(rf"\.{name}\b|[\"']{name}[\"']", text_of(package)) is not None


@cache
def text_of(package: str) -> str:
    folders = getattr(importlib.import_module(package), "__path__", [])
    files = [path for folder in folders for path in sorted(Path(folder).rglob("*.py"))]
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in files)


def check_override(override: Override, uses: Uses) -> Iterator[str]:
    base = resolve(override.base)
    if not inspect.isclass(base) or (override.name.startswith("__") and override.name.endswith("__")):
        return
    what = f"{override.place}: {override.owner}.{override.name}"
    found = member(base, override.name)
    if found is None:
        if override.is_hook and not is_read(override.base[0], override.name):
            yield (
                f"{what}: expected one of that name in the host's {spelled(override.base)}, or that "
                f"{override.base[0]} reads it; found neither"
            )
        return
    if override.signature is None or not callable(found) or found is UNKNOWN:
        return
    theirs = inspect.signature(found)
    for problem in clashes(override.signature, theirs):
        yield f"{what}: ours is {plain(override.signature)}; the host's is {plain(theirs)}: {problem}"


def clashes(ours: inspect.Signature, theirs: inspect.Signature) -> Iterator[str]:
    """Why a call that fits the host's signature would not fit ours: with all arguments, by name, with the fewest."""
    parameters = theirs.parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    in_order = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keyword_only = [p.name for p in named if p.kind is p.KEYWORD_ONLY]
    is_open = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    bind = ours.bind_partial if is_open else ours.bind
    few = [p for p in in_order if p.default is p.empty]
    few_named = [p.name for p in named if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    ways = [
        ([None] * len(in_order), keyword_only),
        ([None] * (len(in_order) - len([p for p in named if p.name not in keyword_only])), [p.name for p in named]),
        ([None] * len(few), few_named),
    ]
    for positional, keywords in ways:
        try:
            bind(*positional, **dict.fromkeys(keywords))
        except TypeError as error:
            yield str(error)
            return


# the Pony


def check_pony() -> list[str]:
    """Loads the model that comes with the pack by its nodes, makes a clip and looks at it. Returns the faults."""
    import comfy.utils
    import torch

    comfy.utils.set_progress_bar_enabled(False)
    began = time.perf_counter()
    pack = import_pack().nodes
    took("pack", "imported", began)
    with torch.inference_mode():
        began = time.perf_counter()
        model = run(pack.HappyHorseModelLoader, model_name=f"{PONY}/distill")[0]
        clip = run(pack.HappyHorseTextEncoderLoader, text_encoder_name=f"{PONY}/t5gemma-9b-9b-ul2")[0]
        video_vae = run(
            pack.HappyHorseVideoVAELoader,
            decoder_name=f"{PONY}/turbo_vae/checkpoint-340000.ckpt",
            encoder_name=f"{PONY}/Wan2.2-TI2V-5B/Wan2.2_VAE.pth",
        )[0]
        audio_vae = run(
            pack.HappyHorseAudioVAELoader, audio_vae_name=f"{PONY}/stable-audio-open-1.0/model.safetensors"
        )[0]
        took("load", "MODEL, CLIP, VAE and audio VAE of the Pony", began)

        began = time.perf_counter()
        text = clip.encode_from_tokens_scheduled(clip.tokenize("A large red circle bounces."))
        latent = run(pack.HappyHorseEmptyLatent, width=SIDE, height=SIDE, seconds=1.0, frames=FRAMES)[0]
        latent = run(pack.HappyHorseImageToVideo, vae=video_vae, image=torch.rand(1, SIDE, SIDE, 3), latent=latent)[0]
        latent = run(pack.HappyHorseSampler, model=model, positive=text, latent=latent, seed=0, steps=STEPS)[0]
        took("sample", f"{STEPS} steps of {FRAMES} frames, {SIDE} x {SIDE}, from a picture", began)

        began = time.perf_counter()
        frames, sound, _ = run(pack.HappyHorseDecode, latent=latent, vae=video_vae, audio_vae=audio_vae)
        took("decode", "picture and sound", began)
    return list(judge(frames, sound["waveform"]))


def run(node: type, **inputs: Any) -> tuple:
    return node.execute(**inputs).args


def took(part: str, what: str, began: float) -> None:
    print(f"{part:10} {what}, {time.perf_counter() - began:.1f} s", flush=True)


def judge(frames: Any, waveform: Any) -> Iterator[str]:
    shape = [FRAMES, SIDE, SIDE, 3]
    if list(frames.shape) != shape:
        yield f"the Pony's picture: found shape {list(frames.shape)}, expected {shape}"
    if waveform.ndim != 3 or waveform.shape[1] != 2 or not waveform.shape[2]:
        yield f"the Pony's sound: found shape {list(waveform.shape)}, expected [1, 2, samples]"
    for name, values in (("picture", frames), ("sound", waveform)):
        if not values.isfinite().all():
            yield f"the Pony's {name}: found values that are not finite"
    if not frames.std() > 0:
        yield "the Pony's picture: found one colour everywhere"


if __name__ == "__main__":
    sys.exit(main())
