"""Every input of every node, given what a prompt may hold in its place: one line that names it, or the right result."""

import math

import pytest
import test_core_wrong_wires as wires
import torch
from comfy.nested_tensor import NestedTensor
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.errors import LONGEST_MESSAGE

no_work = wires.no_work

CONSTANTS = {
    "nothing": None,
    "true": True,
    "zero": 0,
    "minus one": -1,
    "a number": 0.3,
    "huge": 10**30,
    "NaN": math.nan,
    "infinite": math.inf,
    "minus infinity": -math.inf,
    "empty text": "",
    "a text": "auto",
    "NUL": "a\0b",
    "a lone surrogate": "\ud800",
    "a long text": "x" * 5000,
    "empty list": [],
    "a list": [1, "2", None],
    "a list of lists": [[0, 0]],
    "empty dictionary": {},
    "a dictionary": {"samples": 1, "waveform": "x", "sample_rate": math.nan},
}
CONTENTS = {
    "a scalar": torch.ones(()),
    "a matrix": torch.ones(2, 3),
    "NaN pictures": torch.full((1, 64, 96, 3), math.nan),
    "whole numbers": torch.ones(1, 64, 96, 3, dtype=torch.int64),
    "samples of nothing": {"samples": None},
    "samples of a scalar": {"samples": torch.ones(())},
    "samples without axes": {"samples": NestedTensor([torch.ones(()), torch.ones(())])},
    "samples of NaN": {"samples": NestedTensor([torch.full((1, 48, 3, 4, 6), math.nan), torch.ones(1, 64, 9)])},
    "a text as mask": {
        "samples": NestedTensor([torch.ones(1, 48, 3, 4, 6), torch.ones(1, 64, 9)]),
        "noise_mask": "x",
    },
    "a mask without axes": {
        "samples": NestedTensor([torch.ones(1, 48, 3, 4, 6), torch.ones(1, 64, 9)]),
        "noise_mask": torch.ones(()),
    },
    "sound without a rate": {"waveform": torch.zeros(1, 2, 44100)},
    "sound at a rate of 0": {"waveform": torch.zeros(1, 2, 44100), "sample_rate": 0},
    "sound at a rate of NaN": {"waveform": torch.zeros(1, 2, 44100), "sample_rate": math.nan},
    "NaN sound": {"waveform": torch.full((1, 2, 44100), math.nan), "sample_rate": 44100},
    "sound of one axis": {"waveform": torch.zeros(44100), "sample_rate": 44100},
    "sound of many channels": {"waveform": torch.zeros(1, 300, 44100), "sample_rate": 44100},
    "text without its dictionary": [[torch.ones(1, 5, 24)]],
    "text of one axis": [[torch.ones(5), {}]],
    "text of NaN": [[torch.full((1, 5, 24), math.nan), {}]],
    "no tokens": [[torch.ones(1, 0, 24), {}]],
    "a module": torch.nn.Identity(),
}
VALUES = CONSTANTS | CONTENTS
CASES = [(node, name) for node in pack.NODES for name in wires.inputs_of(node)]


@pytest.mark.parametrize(("node", "name"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_any_value_is_refused_in_one_line_or_taken(node, name):
    right = wires.arguments(node)
    for what, value in VALUES.items():
        try:
            wires.tiny.run(node, **(right | {name: value}))
        except wires.WorkBeganError:
            pass
        except ValueError as error:
            field, _, rest = str(error).partition(": ")
            assert field in right and rest, (what, str(error))  # of two that don't fit each other, it may be the other
            assert "\n" not in rest and len(rest) <= LONGEST_MESSAGE, what
        except (AttributeError, TypeError, LookupError, RuntimeError, OSError, ArithmeticError) as error:
            pytest.fail(f"{name} given {what}: {type(error).__name__}: {error}")
