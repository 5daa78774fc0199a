"""The pickles among the damaged and hostile files of ``mutate``: code that wants to run, odd tensors, bombs."""

import functools
import importlib
import io
import operator
import os
import pickle
import random
import struct
import subprocess
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Call:
    """Calls ``function(*arguments)`` in any program that unpickles it carelessly; ``state`` would be set on it."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __call__(self) -> None:
        """Pickle asks that what will be called can be called, also where it is itself the result of a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


class Foreign:
    """A class of a training program's own."""


def _touch(mark: Path) -> str:
    return f"open({str(mark)!r}, 'w').close()"


def _saved(content: Any) -> bytes:
    """A pickled checkpoint as bytes."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


GADGETS: dict[str, Callable[[Path], Any]] = {
    "system": lambda mark: Call(os.system, f"touch '{mark}'"),
    "popen": lambda mark: Call(subprocess.Popen, ["touch", str(mark)]),
    "eval": lambda mark: Call(eval, _touch(mark)),
    "exec": lambda mark: Call(exec, _touch(mark)),
    "compile": lambda mark: Call(exec, Call(compile, _touch(mark), "x", "exec")),
    "open": lambda mark: Call(open, str(mark), "w"),
    "partial": lambda mark: Call(functools.partial(exec, _touch(mark))),
    "reduce": lambda mark: Call(functools.reduce, eval, [_touch(mark), {}]),
    "getattr": lambda mark: Call(Call(getattr, Call(importlib.import_module, "os"), "system"), f"touch '{mark}'"),
    "methodcaller": lambda mark: Call(operator.methodcaller("exec", _touch(mark)), Call(__import__, "builtins")),
    "map": lambda mark: Call(list, Call(map, exec, [_touch(mark)])),
    "state": lambda mark: Call(Foreign, state={"a": Call(exec, _touch(mark))}),
    "class": lambda mark: Foreign(),
    "load": lambda mark: Call(torch.load, str(mark)),
    "storage": lambda mark: Call(torch.storage._load_from_bytes, _saved(Call(exec, _touch(mark)))),
    "rename": lambda mark: Call(os.rename, str(mark.parent / "x.ckpt"), str(mark)),
    "hub": lambda mark: Call(torch.hub.load, str(mark.parent), "x"),
}
"""By name: what would make the file ``mark``, or read one, where a pickle is run."""

TENSOR_FORMS: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda tensor: tensor.to_sparse(),
    "compressed": lambda tensor: tensor.flatten(1).to_sparse_csr() if tensor.dim() > 1 else tensor.to_sparse(),
    "meta": lambda tensor: tensor.to("meta"),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor.float(), 0.1, 0, torch.qint8),
    "quantised-rows": lambda tensor: torch.quantize_per_channel(
        tensor.float().reshape(len(tensor), -1), torch.ones(len(tensor)), torch.zeros(len(tensor)), 0, torch.qint8
    ),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "conjugate": lambda tensor: tensor.to(torch.complex64).conj(),
    "repeated": lambda tensor: tensor.flatten()[:1].expand(tensor.numel()).view(tensor.shape),
    "huge": lambda tensor: tensor.flatten()[:1].expand(2**40),
    "overlapping": lambda tensor: tensor.flatten().as_strided((tensor.numel() // 2, 2), (1, 1)),
    "part": lambda tensor: torch.cat((tensor.flatten(), torch.zeros(9_999, dtype=tensor.dtype)))[: tensor.numel()],
    "turned": lambda tensor: tensor.transpose(0, -1),
    "parameter": lambda tensor: torch.nn.Parameter(tensor),
    "buffer": lambda tensor: torch.nn.Buffer(tensor),
    "integer": lambda tensor: tensor.to(torch.int32),
    "unsigned": lambda tensor: tensor.to(torch.int32).to(torch.uint16),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "double": lambda tensor: tensor.double(),
    "empty": lambda tensor: tensor[:0],
    "number": lambda tensor: 1.5,
    "list": lambda tensor: [tensor],
    "none": lambda tensor: None,
}
"""By name: what stands in a tensor's place. Some are sound, and load."""


def odd_tensors(rng: random.Random, form: str, tensors: Mapping[str, Tensor]) -> dict[Any, Any]:
    """One of the tensors, or a new one, in another form."""
    name = rng.choice([name for name, tensor in tensors.items() if tensor.dim() and tensor.numel() > 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own on forms that it calls a prototype
        odd = TENSOR_FORMS[form](tensors[name].clone())
    return {rng.choice([name, name, name, "new", "", "a\nb\0", "\ud800", "n" * 5000, f"module.{name}"]): odd}


def save_gadget(rng: random.Random, path: Path, gadget: Any, tensors: Mapping[str, Tensor]) -> Path:
    """A gadget beside weights, instead of them, or bare, in each form of file that PyTorch ever wrote."""
    content = rng.choice([{"ema_state_dict": dict(tensors), "hook": gadget}, {"ema_state_dict": gadget}, gadget])
    form, protocol = rng.choice(("archive", "legacy", "bare")), rng.choice((2, 2, 3, 4, 5))
    if form == "bare":
        path.write_bytes(pickle.dumps(gadget, protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "archive")
    return path


def _storage(kind: str, key: str, place: str, count: int) -> bytes:
    """The steps that ask for a storage by its persistent id."""
    steps = b"(" + _text("storage") + f"ctorch\n{kind}\n".encode() + _text(key) + _text(place) + _number(count)
    return steps + b"tQ"


def _text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def _number(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def _tensor(storage: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    sizes = [b"(" + b"".join(map(_number, numbers)) + b"t" for numbers in (shape, strides)]
    start = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return start + storage + _number(offset) + sizes[0] + sizes[1] + b"\x89ccollections\nOrderedDict\n)RtR"


def _wrong_tensor(rng: random.Random) -> bytes:
    """A tensor whose storage, offset, shape or strides don't fit each other or the four numbers that are there."""
    count = rng.choice((4, 4, 0, 5, -1, 2**40, 2**62))
    kind, place = rng.choice(("FloatStorage", "QInt8Storage", "x")), rng.choice(("cpu", "cpu", "cuda:0", "meta", "x"))
    storage = _storage(
        kind if rng.random() < 0.5 else "FloatStorage", rng.choice(("0", "0", "1", "../0")), place, count
    )
    shape = rng.choice(((4,), (2, 2), (5,), (2**40,), (-1,), (2**62, 4), ()))
    strides = rng.choice(((1,), (2, 1), (0,), (-1,), (2**40,), (2**62, 1)))
    return _tensor(storage, rng.choice((0, 0, 1, 4, -1, 2**40)), shape, strides)


def _bomb(rng: random.Random) -> bytes:
    """Steps that double a list forty times, nest without end, or claim more than there is."""
    doubled = b"](K\x01K\x01e" + b"".join(b"q\0]h\0ah\0a" for _ in range(40))
    claims = (b"B\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"\x8a\xff")
    deep = rng.choice((b"]", b"(", b"\x85" * 9)) * 100_000
    loop = b"}q\0" + _text("a") + b"h\0s"
    calls = [f"c{call}\n(" for call in ("torch._utils\n_rebuild_qtensor", "torch._tensor\n_rebuild_from_type_v2")]
    allowed = [call.encode() + rng.choice((b"tR", b"NNNNNNtR", b"K\1K\2tR")) for call in calls]
    return rng.choice((doubled, rng.choice(claims), deep, loop, rng.choice(allowed), b"0" * 9, b"h\7", b"tttt"))


def save_opcodes(rng: random.Random, path: Path) -> Path:
    """An archive in PyTorch's form around steps that ``torch.save`` never writes."""
    value = rng.choice((_wrong_tensor, _wrong_tensor, _bomb))(rng)
    steps = b"\x80\2}" + _text("a") + value + b"s."
    packed = io.BytesIO()
    with zipfile.ZipFile(
        packed, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as file:
        parts = {"data.pkl": steps, "byteorder": b"little", "data/0": struct.pack("<4f", 1, 2, 3, 4), "version": b"3\n"}
        for name, content in parts.items():
            if rng.random() < 0.95:
                file.writestr(zipfile.ZipInfo(f"x/{name}"), content)
    path.write_bytes(packed.getvalue())
    return path
