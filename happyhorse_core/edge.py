"""What the command line is given, checked once before anything else sees it: types for ``argparse``.

Each takes the text of an argument and raises ArgumentTypeError, which says what was found and what was expected.
"""

import argparse

import torch

from .device import parse_device
from .errors import InputError


def device(text: str) -> torch.device:
    """The name of one device."""
    try:
        return parse_device(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def devices(text: str) -> tuple[torch.device, ...]:
    """The names of several devices, with commas between them."""
    return tuple(map(device, text.split(",")))
