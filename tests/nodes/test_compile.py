"""ComfyUI's node TorchCompileModel on our model: how often it compiles."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny
import torch
import torch._dynamo
from comfy.ldm.modules.attention import attention_pytorch
from comfy_extras.nodes_torch_compile import TorchCompileModel
from happyhorse_pack.nodes.host import load, ops
from test_converted import converted

import nodes


class Compilations:
    """A backend that runs a graph as it is and counts how many it got."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor], **options: Any) -> Callable:
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def attention_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the host takes on a CPU looks up the free memory at each call, which can't be compiled."""
    monkeypatch.setattr(ops, "optimized_attention", attention_pytorch)


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def sample(model: Any, seed: int, text: str = tiny.PROMPT, steps: int = 3) -> torch.Tensor:
    """A clip by core's KSampler."""
    negative = tiny.positive("")
    found = nodes.KSampler().sample(
        model, seed, steps, 1.0, "lcm", "simple", tiny.positive(text), negative, tiny.empty(), 1.0
    )[0]
    return torch.cat([stream.flatten() for stream in tiny.streams(found)])


@pytest.mark.parametrize("role", ["distilled", "1080p_sr"])
def test_steps_and_clips_of_a_size_share_what_was_compiled(role):
    compilations = Compilations()
    plain = tiny.model(role=role)
    model = TorchCompileModel.execute(plain, compilations).args[0]
    first = sample(model, 1)
    assert compilations.count == 1, "the whole model is one graph"
    assert torch.allclose(first, sample(plain, 1), atol=1e-5)
    sample(model, 2)
    sample(model, 3, steps=5)
    assert compilations.count == 1
    # Of the second length torch sees that lengths differ, and compiles for all of them.
    for text in (
        "A short one.",
        "One that is a little longer.",
        "And yet another one, by far the longest of all of them, for now.",
    ):
        sample(model, 3, text, steps=1)
        assert compilations.count == 2


def test_scaled_float8_weights_are_part_of_the_graph(monkeypatch):
    monkeypatch.setattr(load.mm, "unet_manual_cast", lambda *args, **kwargs: torch.bfloat16)
    compilations = Compilations()
    plain = load.load_diffusion_model(str(converted("fp8-scaled")))
    model = TorchCompileModel.execute(plain, compilations).args[0]
    assert torch.allclose(sample(model, 1), sample(plain, 1), atol=1e-5)
    sample(model, 2)
    assert compilations.count == 1
