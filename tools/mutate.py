"""Makes damaged and hostile weights files, each a pure function of a kind's name and a seed.

``make(kind, seed, folder)`` writes one case into an empty folder, from the model in ``pony``, and returns what to open:
a file, or a folder of them. ``PART_OF[kind]`` is the part of the model that it stands for, by the field names of
``ModelFiles``. No case does harm where it is only read: a pickle that is run leaves a file named MARK in its folder.
"""

import json
import os
import random
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from .mutate_pickles import GADGETS, TENSOR_FORMS, odd_tensors, save_gadget, save_opcodes
from .setup_venv import ROOT

PONY = ROOT / "pony"
TEXT_FOLDER, TRANSFORMER_FOLDER = PONY / "t5gemma-9b-9b-ul2", PONY / "distill"
VIDEO_DECODER_FILE = PONY / "turbo_vae" / "checkpoint-340000.ckpt"
MARK = "ran"
"""The file in a case's folder that exists only where something was executed."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXTS = ("tokenizer.json", "config.json")

Maker = Callable[[random.Random, Path], Path]


def make(kind: str, seed: int, folder: Path) -> Path:
    """Writes the case of this kind and seed into ``folder``, which is there and empty; returns what to open."""
    return KINDS[kind](random.Random(f"{kind} {seed}"), folder)


# Trees of JSON


def hostile_value(rng: random.Random) -> Any:
    """Something that a field of a configuration doesn't expect."""
    nested: Any = 1
    for _ in range(rng.choice((1, 5, 90, 400))):
        nested = [nested] if rng.random() < 0.5 else {"a": nested}
    numbers = [0, -1, 1, 2, 255, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, 1e-320, 1e308, -0.0]
    numbers += [float("nan"), float("inf"), -float("inf")]
    texts = ["", "a", "\0", "\ud800", "../../x", "C:x", "/dev/zero", "a" * 5000, "two\nlines\x1b[31m", "1", "None"]
    texts += [INDEX, WEIGHTS, "..", "."]
    return rng.choice([None, True, False, rng.choice(numbers), rng.choice(texts), [], {}, [0] * 9, {"a": 1}, nested])


def mutate_tree(rng: random.Random, tree: Any, times: int = 1) -> Any:
    """A copy of a tree of JSON in which ``times`` places are replaced, left out, doubled or renamed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(times):
        holder, key = _some_place(rng, tree)
        if holder is None:
            return hostile_value(rng)
        action = rng.choice(("replace", "replace", "replace", "drop", "rename"))
        if action == "replace":
            holder[key] = hostile_value(rng)
        elif action == "drop":
            del holder[key]
        elif isinstance(holder, dict):
            holder[rng.choice([f"{key} ", "", "\0", "\ud800", "a\nb", "n" * 3000, "__metadata__"])] = holder.pop(key)
        else:
            holder.insert(key, holder[key])
    return tree


def _some_place(rng: random.Random, tree: Any) -> tuple[Any, Any]:
    """A container and one of its keys, each level as likely as the next; (None, None) in a tree without any."""
    found: tuple[Any, Any] = (None, None)
    while isinstance(tree, dict | list) and tree:
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        found, tree = (tree, key), tree[key]
        if rng.random() < 0.3:
            break
    return found


def mutate_bytes(rng: random.Random, content: bytes, within: int | None = None) -> bytes:
    """A copy with bytes changed, cut out, doubled or added; ``within`` keeps that to so many bytes at the start."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 9))):
        end = max(1, min(len(changed), within or len(changed)))
        place, length = rng.randrange(end), rng.choice((1, 1, 8, 300))
        action = rng.choice(("flip", "flip", "cut", "double", "end", "add"))
        if action == "flip":
            changed[place : place + 1] = bytes([rng.randrange(256)])
        elif action == "cut":
            del changed[place : place + length]
        elif action == "double":
            changed[place:place] = changed[place : place + length]
        elif action == "end":
            del changed[place:]
        else:
            changed[place:place] = rng.choice(
                [b"\0", b"\xff\xfe", b"[" * 50_000, b'{"a":' * 20_000, b"NaN", b"1" * 9000]
            )
    return bytes(changed)


# Text encoders: their configuration and tokenizer beside good weights


def _text_folder(rng: random.Random, folder: Path, **contents: bytes) -> Path:
    """The Pony's text encoder with some of its files replaced."""
    for name in (WEIGHTS, *TEXTS):
        key = name.partition(".")[0]
        if key in contents:
            (folder / name).write_bytes(contents[key])
        else:
            (folder / name).symlink_to(TEXT_FOLDER / name)
    return folder


def _as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def _tree_of(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def config_tree(rng: random.Random, folder: Path) -> Path:
    tree = _tree_of(TEXT_FOLDER / "config.json")
    tree["encoder"] |= {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    return _text_folder(rng, folder, config=_as_json(mutate_tree(rng, tree, rng.choice((1, 1, 3)))))


def config_bytes(rng: random.Random, folder: Path) -> Path:
    return _text_folder(rng, folder, config=mutate_bytes(rng, (TEXT_FOLDER / "config.json").read_bytes()))


def tokenizer_tree(rng: random.Random, folder: Path) -> Path:
    return _text_folder(rng, folder, tokenizer=_as_json(_mutated_tokenizer(rng)))


def _mutated_tokenizer(rng: random.Random) -> Any:
    tree = _tree_of(TEXT_FOLDER / "tokenizer.json")
    model, added = tree["model"], tree["added_tokens"]
    action = rng.randrange(7)
    if action == 0:
        model["merges"].insert(rng.randrange(9), rng.choice([["zz", "q"], ["a"], "a", "a b c", 3, ["a", "b", "c"]]))
    elif action == 1:
        model["vocab"][rng.choice(list(model["vocab"]))] = rng.choice([5000, 2**31, 2**32, -1, 1.5, "1", 3])
    elif action == 2:
        added.append({**added[0], "id": rng.choice([5000, 2**31, -1, 7]), "content": rng.choice(["<zz>", "", "a\0"])})
    elif action == 3:
        tree["normalizer"] = {"type": "Replace", "pattern": {"Regex": rng.choice(["(", "(a+)+$", "a{1000000}"])}}
        tree["normalizer"]["content"] = "b" * rng.choice((1, 10_000))
    else:
        key = rng.choice(("added_tokens", "normalizer", "pre_tokenizer", "model", "version"))
        tree[key] = mutate_tree(rng, tree[key])
    return tree


def tokenizer_bytes(rng: random.Random, folder: Path) -> Path:
    return _text_folder(rng, folder, tokenizer=mutate_bytes(rng, (TEXT_FOLDER / "tokenizer.json").read_bytes()))


# safetensors


@cache
def _decoder_tensors() -> dict[str, torch.Tensor]:
    return dict(torch.load(str(VIDEO_DECODER_FILE), weights_only=True)["ema_state_dict"])


@cache
def _decoder_file() -> tuple[dict[str, Any], bytes]:
    """The header's tree and the tensors' bytes of the video decoder as a safetensors file."""
    content = save({name.removeprefix("module."): tensor for name, tensor in _decoder_tensors().items()})
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_safetensors(path: Path, header: Any, data: bytes) -> Path:
    """A file of a header's tree, or its text, and data, however little they fit together."""
    text = header if isinstance(header, bytes) else _as_json(header)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def safetensors_header(rng: random.Random, folder: Path) -> Path:
    header, data = _decoder_file()
    return write_safetensors(folder / WEIGHTS, mutate_tree(rng, header, rng.choice((1, 1, 3))), data)


def safetensors_header_text(rng: random.Random, folder: Path) -> Path:
    header, data = _decoder_file()
    return write_safetensors(folder / WEIGHTS, mutate_bytes(rng, _as_json(header)), data)


def safetensors_bytes(rng: random.Random, folder: Path) -> Path:
    header, data = _decoder_file()
    path = write_safetensors(folder / WEIGHTS, header, data)
    path.write_bytes(mutate_bytes(rng, path.read_bytes(), within=rng.choice((64, 20_000, None))))
    return path


def safetensors_spans(rng: random.Random, folder: Path) -> Path:
    """Tensors that share bytes, leave some to nobody, or lie outside the file."""
    header, data = json.loads(json.dumps(_decoder_file()[0])), _decoder_file()[1]
    names = [name for name in header if name != "__metadata__"]
    one, other = rng.sample(names, 2)
    begin, end = header[one]["data_offsets"]
    shift = rng.choice((-8, -1, 1, 8, 2**40, -(2**62)))
    action = rng.randrange(4)
    if action == 0:
        place = header[other]["data_offsets"][0]
        header[one]["data_offsets"] = [place, place + end - begin]
    elif action == 1:
        header[one]["data_offsets"] = [begin + shift, end + shift]
    elif action == 2:
        del header[one]
    else:
        data += bytes(8)
        header["late"] = {"dtype": "U8", "shape": [4], "data_offsets": [len(data) - 4, len(data)]}
    return write_safetensors(folder / WEIGHTS, header, data)


def safetensors_note(rng: random.Random, folder: Path) -> Path:
    """What ComfyUI notes beside a layer, and what the metadata say of the model, in wrong forms."""
    header, data = json.loads(json.dumps(_decoder_file()[0])), _decoder_file()[1]
    layer = rng.choice([name for name in header if name.endswith(".weight")]).removesuffix("weight")
    note = rng.choice(
        [_as_json(mutate_tree(rng, {"format": "nvfp4"})), mutate_bytes(rng, b'{"format": "nvfp4"}'), b"-"]
    )
    span = [len(data), len(data) + len(note)]
    header[f"{layer}comfy_quant"] = {"dtype": "U8", "shape": [len(note)], "data_offsets": span}
    if rng.random() < 0.5:
        config = mutate_tree(rng, {"first_chunk_size": 7, "step_size": 7})
        role = rng.choice(["base", hostile_value(rng)])
        header["__metadata__"] = {"config": json.dumps(config), "happyhorse.role": role}
    return write_safetensors(folder / WEIGHTS, header, data + note)


def weights_not_finite(rng: random.Random, folder: Path) -> Path:
    tensors = {name.removeprefix("module."): tensor.clone() for name, tensor in _decoder_tensors().items()}
    name = rng.choice([name for name, tensor in tensors.items() if tensor.is_floating_point()])
    tensors[name].flatten()[0] = rng.choice((float("nan"), float("inf")))
    tensors[name] = tensors[name] * 1 if rng.random() < 0.5 else torch.full_like(tensors[name], float("nan"))
    (folder / WEIGHTS).write_bytes(save(tensors))
    return folder / WEIGHTS


# Indexes


def _transformer_folder(folder: Path, index: bytes | None) -> Path:
    for shard in TRANSFORMER_FOLDER.glob("*.safetensors"):
        (folder / shard.name).symlink_to(shard)
    if index is not None:
        (folder / INDEX).write_bytes(index)
    return folder


def index_tree(rng: random.Random, folder: Path) -> Path:
    tree = mutate_tree(rng, _tree_of(TRANSFORMER_FOLDER / INDEX), rng.choice((1, 1, 3)))
    return _transformer_folder(folder, _as_json(tree))


def index_bytes(rng: random.Random, folder: Path) -> Path:
    return _transformer_folder(folder, mutate_bytes(rng, (TRANSFORMER_FOLDER / INDEX).read_bytes()))


# Files that are no files


def _special(rng: random.Random, path: Path) -> None:
    """A pipe, a device, a folder, a link to nothing or to itself, or an empty file in a file's place."""
    action = rng.choice(("fifo", "fifo", "zero", "random", "tty", "folder", "nothing", "itself", "empty", "huge"))
    targets = {"zero": "/dev/zero", "random": "/dev/urandom", "tty": "/dev/tty", "nothing": "gone", "itself": path.name}
    path.unlink(missing_ok=True)
    if action == "fifo":
        os.mkfifo(path)
    elif action == "folder":
        path.mkdir()
    elif action in targets:
        path.symlink_to(targets[action])
    else:
        path.touch()
        os.truncate(path, 0 if action == "empty" else 1 << 40)


def special_in_transformer(rng: random.Random, folder: Path) -> Path:
    _transformer_folder(folder, (TRANSFORMER_FOLDER / INDEX).read_bytes())
    _special(rng, rng.choice(sorted(folder.iterdir())))
    return folder


def special_in_text_encoder(rng: random.Random, folder: Path) -> Path:
    _text_folder(rng, folder)
    _special(rng, folder / rng.choice((WEIGHTS, *TEXTS)))
    return folder


def special_weights(rng: random.Random, folder: Path) -> Path:
    path = folder / rng.choice(("x.ckpt", "x.safetensors", INDEX))
    _special(rng, path)
    return path


# Pickles


def pickle_bytes(rng: random.Random, folder: Path) -> Path:
    path = folder / "x.ckpt"
    path.write_bytes(mutate_bytes(rng, VIDEO_DECODER_FILE.read_bytes(), within=rng.choice((600, 20_000, None))))
    return path


def pickle_opcodes(rng: random.Random, folder: Path) -> Path:
    """An archive whose pickle is hand-made: bombs of memory and depth, wrong storages, steps without operands."""
    return save_opcodes(rng, folder / "x.ckpt")


def _pickle_gadget(name: str) -> Maker:
    def maker(rng: random.Random, folder: Path) -> Path:
        return save_gadget(rng, folder / "x.ckpt", GADGETS[name](folder / MARK), _decoder_tensors())

    return maker


def _pickle_tensor(form: str) -> Maker:
    def maker(rng: random.Random, folder: Path) -> Path:
        tensors = dict(_decoder_tensors())
        tensors |= odd_tensors(rng, form, tensors)
        torch.save({"ema_state_dict": tensors}, folder / "x.ckpt")
        return folder / "x.ckpt"

    return maker


KINDS: dict[str, Maker] = {
    "safetensors-header": safetensors_header,
    "safetensors-header-text": safetensors_header_text,
    "safetensors-bytes": safetensors_bytes,
    "safetensors-spans": safetensors_spans,
    "safetensors-note": safetensors_note,
    "weights-not-finite": weights_not_finite,
    "special-weights": special_weights,
    "pickle-bytes": pickle_bytes,
    "pickle-opcodes": pickle_opcodes,
    **{f"pickle-runs-{name}": _pickle_gadget(name) for name in GADGETS},
    **{f"pickle-tensor-{form}": _pickle_tensor(form) for form in TENSOR_FORMS},
    "index-tree": index_tree,
    "index-bytes": index_bytes,
    "special-transformer": special_in_transformer,
    "config-tree": config_tree,
    "config-bytes": config_bytes,
    "tokenizer-tree": tokenizer_tree,
    "tokenizer-bytes": tokenizer_bytes,
    "special-text-encoder": special_in_text_encoder,
}
"""What can be made, by name. Each writes one case into an empty folder and returns what to open."""
_TRANSFORMER_KINDS = ("index-", "special-transformer")
_TEXT_KINDS = ("config-", "tokenizer-", "special-text-encoder")
PART_OF = {
    kind: "transformer"
    if kind.startswith(_TRANSFORMER_KINDS)
    else "text_encoder"
    if kind.startswith(_TEXT_KINDS)
    else "video_decoder"
    for kind in KINDS
}
"""The part of the model that a case stands for; its option of ``generate`` has the same name with dashes."""
