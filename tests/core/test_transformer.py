"""The transformer beyond the golden files: batches, local attention against a mask, precision, full size, hooks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from happyhorse_core.dit.config import TransformerConfig
from happyhorse_core.dit.detect import detect_transformer, find_prefix
from happyhorse_core.dit.elementwise import EPS, blocks, rotated_heads
from happyhorse_core.dit.float8 import Float8Ops
from happyhorse_core.dit.layout import build_layout, patchify, unpatchify
from happyhorse_core.dit.local_attention import frame_groups, local_attention
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.dit.roles import BASE, SR_1080P, resolve_role
from happyhorse_core.dit.rope import frequency_bands, line_angles
from happyhorse_core.errors import CheckpointError, InputError
from happyhorse_core.ops import TorchOps
from happyhorse_core.weights.formats import FLOAT8

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = GOLDEN / "transformer.weights.safetensors"


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(WEIGHTS)


@pytest.fixture(scope="module")
def config(weights: dict[str, Tensor]) -> TransformerConfig:
    return detect_transformer({name: tuple(t.shape) for name, t in weights.items()}, where="tiny")


def build(config: TransformerConfig, weights: dict[str, Tensor], dtype: torch.dtype) -> HappyHorseTransformer:
    model = HappyHorseTransformer(config, operations=TorchOps, dtype=dtype)
    model.load_state_dict(weights)
    return model.requires_grad_(False)


def inputs(batch: int = 1, frames: int = 3, sounds: int = 9, words: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    return (
        torch.randn(batch, 48, frames, 4, 6),
        torch.randn(batch, 64, sounds),
        torch.randn(batch, words, 24),
    )


def test_a_batch_is_its_items_alone(config: TransformerConfig, weights: dict[str, Tensor]) -> None:
    model = build(config, weights, torch.float32)
    batch = inputs(batch=3)
    together = model(*batch, compute_dtype=torch.float32)
    for item in range(3):
        alone = model(*(x[item : item + 1] for x in batch), compute_dtype=torch.float32)
        for found, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(found[item : item + 1], expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_near_float32(config: TransformerConfig, weights: dict[str, Tensor]) -> None:
    exact = build(config, weights, torch.float32)(*inputs(), compute_dtype=torch.float32)
    rounded = build(config, weights, torch.bfloat16)(*inputs(), compute_dtype=torch.bfloat16)
    for found, expected in zip(rounded, exact, strict=True):
        assert found.dtype == torch.float32
        assert 1e-5 < (found - expected).abs().max() / expected.abs().max() < 0.05


def test_edges_stay_float32_whatever_the_layers_are_kept_in(config: TransformerConfig) -> None:
    model = HappyHorseTransformer(config, operations=TorchOps, dtype=torch.bfloat16, device="meta")
    linear = ("linear_qkv.weight", "linear_proj.weight", "up_gate_proj.weight", "down_proj.weight")
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == (torch.bfloat16 if name.endswith(linear) else torch.float32), name


def full_size() -> dict[str, tuple[str, list[int]]]:
    return json.loads((GOLDEN / "full_size_transformer.json").read_text())


def test_the_full_size_has_the_released_tensors() -> None:
    expected = {
        k: (d, tuple(s)) for k, (d, s) in json.loads((GOLDEN / "full_size_transformer.json").read_text()).items()
    }
    config = detect_transformer({name: shape for name, (_, shape) in expected.items()}, where="full")
    assert (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads) == (40, 5120, 40, 8)
    assert config.mm_layers == (0, 1, 2, 3, 36, 37, 38, 39)
    assert config.gelu7_layers == (0, 1, 2, 3)
    model = HappyHorseTransformer(config, operations=TorchOps, dtype=torch.bfloat16, device="meta")
    found = {k: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for k, t in model.state_dict().items()}
    assert found == expected
    assert 15.2e9 < sum(p.numel() for p in model.parameters()) < 15.4e9


def test_the_1080p_role_has_the_released_local_layers() -> None:
    shapes = {name: tuple(shape) for name, (_, shape) in full_size().items()}
    config = detect_transformer(shapes, role=SR_1080P, where="full")
    everywhere = set(range(40)) - set(config.local_attn_layers)
    assert everywhere == {3, 7, 11, 15, 19, 23, 27, 31}
    assert config.coords_style == "v1"


@pytest.mark.parametrize(("frames", "radius"), [(1, 0), (4, 0), (7, 2), (9, 3), (5, 11)])
def test_local_attention_is_attention_with_a_mask(frames: int, radius: int) -> None:
    torch.manual_seed(0)
    size, tail, heads, kv_heads, dim = 6, 5, 4, 2, 8
    length = frames * size + tail
    q = torch.randn(2, heads, length, dim)
    k, v = torch.randn(2, 2, kv_heads, length, dim).unbind()
    frame = torch.arange(frames * size) // size
    mask = torch.ones(length, length, dtype=torch.bool)
    mask[: frames * size, : frames * size] = (frame[:, None] - frame[None]).abs() <= radius
    expected = F.scaled_dot_product_attention(
        q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), attn_mask=mask
    ).transpose(1, 2)
    video, audio, text = torch.zeros(1, 48, frames, 4, 6), torch.zeros(1, 64, 3), torch.zeros(1, 2, 24)
    layout = build_layout(_any_config(), video, audio, text, frequency_bands(2))
    found = local_attention(TorchOps.attention, q, k, v, layout, radius, {})
    torch.testing.assert_close(found, expected.flatten(2), rtol=1e-5, atol=1e-5)


def _any_config() -> TransformerConfig:
    return TransformerConfig(64, 1, 4, 2, 16, 192, 64, 24, (), ())


@pytest.mark.parametrize(("frames", "radius"), [(1, 3), (5, 1), (32, 11), (24, 11), (12, 11)])
def test_frame_groups_cover_every_frame_once(frames: int, radius: int) -> None:
    groups = frame_groups(frames, radius)
    assert [f for first, end, _, _ in groups for f in range(first, end)] == list(range(frames))
    for first, end, low, high in groups:
        for f in range(first, end):
            assert (low, high) == (max(0, f - radius), min(frames, f + radius + 1))


def test_patches_go_in_channel_slowest_and_come_out_channel_fastest() -> None:
    video = torch.arange(2 * 4 * 6, dtype=torch.float32).reshape(1, 2, 1, 4, 6)
    tokens = patchify(video)
    assert tokens[0, 0].tolist() == [
        *video[0, 0, 0, :2, :2].flatten().tolist(),
        *video[0, 1, 0, :2, :2].flatten().tolist(),
    ]
    layout = build_layout(_any_config(), video, torch.zeros(1, 64, 1), torch.zeros(1, 1, 24), frequency_bands(2))
    fastest = tokens.unflatten(-1, (2, 4)).transpose(-1, -2).flatten(-2)
    assert torch.equal(unpatchify(fastest, layout), video)


def test_rotation_turns_pairs_and_leaves_the_last_quarter() -> None:
    angles = line_angles(5, 3, -5, frequency_bands(2)).unsqueeze(1)
    x = F.rms_norm(torch.randn(1, 5, 3, 16), (16,), eps=EPS)
    y = rotated_heads(x, [torch.ones(16)], [5], angles.cos(), angles.sin(), torch.float32)
    torch.testing.assert_close(y[..., 12:], x[..., 12:])
    pairs = torch.view_as_complex(torch.stack([x[..., :6], x[..., 6:12]], -1))
    turned = torch.view_as_complex(torch.stack([y[..., :6], y[..., 6:12]], -1))
    torch.testing.assert_close(turned, pairs * torch.polar(torch.ones_like(angles), angles))


def test_blocks_cover_each_modality_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("happyhorse_core.dit.elementwise.CACHED_VALUES", 40)
    found = [(expert, tokens.start, tokens.stop) for expert, tokens in blocks(torch.zeros(2, 12, 5), (9, 0, 3))]
    assert found == [(0, 0, 4), (0, 4, 8), (0, 8, 9), (2, 9, 12)]


def test_where_gradients_are_kept_a_modality_is_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("happyhorse_core.dit.elementwise.CACHED_VALUES", 40)
    found = [tokens for _, tokens in blocks(torch.zeros(2, 12, 5, requires_grad=True), (9, 3))]
    assert found == [slice(0, 9), slice(9, 12)]


def test_block_size_does_not_change_the_result(
    config: TransformerConfig, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build(config, weights, torch.float32).requires_grad_(True)
    whole = model(*inputs(), compute_dtype=torch.float32)  # with gradients each modality is one block
    monkeypatch.setattr("happyhorse_core.dit.elementwise.CACHED_VALUES", 1)
    monkeypatch.setattr("happyhorse_core.dit.layers.MLP_TOKENS", 10)
    with torch.no_grad():
        parts = model(*inputs(), compute_dtype=torch.float32)
    for found, expected in zip(parts, whole, strict=True):
        # Products of fewer rows may sum in another order.
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)


class Called(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("operations", [TorchOps, Float8Ops])
def test_experts_are_products_of_two_axes(operations: type[TorchOps], batch: int) -> None:
    """A product for each of a batch copies the weight for every call: 4 to 6 times the time."""
    layer = operations.ExpertLinear(24, 3 * 10, bias=False).requires_grad_(False)
    layer.weight.data = torch.randn(30, 24).to(FLOAT8).float()
    weights = layer.weight.chunk(3)
    if operations is Float8Ops:
        layer.keep_float8(layer.weight.data.to(FLOAT8), torch.ones(30))
    x = torch.randn(batch, 12, 24)
    with Called() as called:
        found = layer(x, (6, 4, 2))
    assert not called.names & {"bmm", "baddbmm"} and "mm" in called.names
    spans = x.split((6, 4, 2), dim=1)
    expected = torch.cat([s.contiguous() @ w.T for s, w in zip(spans, weights, strict=True)], dim=1)
    torch.testing.assert_close(found, expected)


def test_gradients_reach_every_weight(config: TransformerConfig, weights: dict[str, Tensor]) -> None:
    model = build(config, weights, torch.float32).requires_grad_(True)
    sum(x.square().mean() for x in model(*inputs(), compute_dtype=torch.float32)).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("style", ["v1", "v2"])
@pytest.mark.parametrize(("frames", "sounds", "words"), [(1, 1, 1), (1, 2, 1), (2, 5, 640)])
def test_single_tokens_have_finite_angles(
    config: TransformerConfig, style: str, frames: int, sounds: int, words: int
) -> None:
    video, audio, text = torch.zeros(1, 48, frames, 2, 2), torch.zeros(1, 64, sounds), torch.zeros(1, words, 24)
    layout = build_layout(replace(config, coords_style=style), video, audio, text, frequency_bands(2))
    assert layout.cos.shape == (sum(layout.lengths), 1, 6)
    assert layout.cos.isfinite().all()


def test_a_hook_stands_in_for_a_layer(config: TransformerConfig, weights: dict[str, Tensor]) -> None:
    model = build(config, weights, torch.float32)
    seen = []

    def watch(index: int, hidden: Tensor, run: object) -> Tensor:
        seen.append(index)
        return run(hidden)

    plain = model(*inputs(), compute_dtype=torch.float32)
    watched = model(*inputs(), compute_dtype=torch.float32, layer_hook=watch)
    skipped = model(*inputs(), compute_dtype=torch.float32, layer_hook=lambda i, x, run: x if i == 3 else run(x))
    assert seen == list(range(config.num_layers))
    assert torch.equal(plain[0], watched[0])
    assert not torch.allclose(plain[0], skipped[0])


def test_attention_gets_the_options(config: TransformerConfig, weights: dict[str, Tensor]) -> None:
    class Counting(TorchOps):
        calls: list[object] = []

        @staticmethod
        def attention(q: Tensor, k: Tensor, v: Tensor, options: object = None) -> Tensor:
            Counting.calls.append(options)
            return TorchOps.attention(q, k, v)

    model = HappyHorseTransformer(config, operations=Counting)
    model.load_state_dict(weights)
    options = {"mine": 1}
    model.requires_grad_(False)(*inputs(), compute_dtype=torch.float32, options=options)
    assert len(Counting.calls) == config.num_layers
    assert all(found is options for found in Counting.calls)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v, a, t: (v[:, :16], a, t), "video"),
        (lambda v, a, t: (v, a.mT, t), "audio"),
        (lambda v, a, t: (v, a, t[..., :5]), "text"),
        (lambda v, a, t: (v, a, t[:, :0]), "text"),
        (lambda v, a, t: (v[..., :3, :], a, t), "even"),
        (lambda v, a, t: (v, a.repeat(2, 1, 1), t), "batch"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    config: TransformerConfig, weights: dict[str, Tensor], change: object, named: str
) -> None:
    model = build(config, weights, torch.float32)
    with pytest.raises(InputError, match=named):
        model(*change(*inputs()), compute_dtype=torch.float32)


def shapes_of(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in weights.items()}


def test_each_signature_tensor_is_needed(weights: dict[str, Tensor]) -> None:
    for key in (
        "adapter.audio_embedder.weight",
        "final_linear_video.weight",
        "block.layers.0.attention.linear_qkv.weight",
    ):
        shapes = shapes_of(weights)
        del shapes[key]
        with pytest.raises(CheckpointError, match=r"some\.file.*" + key.replace(".", r"\.")):
            detect_transformer(shapes, where="some.file")


def test_a_missing_layer_tensor_is_named(weights: dict[str, Tensor]) -> None:
    shapes = shapes_of(weights)
    del shapes["block.layers.3.mlp.down_proj.weight"]
    with pytest.raises(CheckpointError, match=r"1 tensors.*block\.layers\.3\.mlp\.down_proj"):
        detect_transformer(shapes, where="f")


def test_a_wrong_width_is_another_model(weights: dict[str, Tensor]) -> None:
    shapes = shapes_of(weights) | {"block.layers.2.mlp.up_gate_proj.weight": (300, 64)}
    with pytest.raises(CheckpointError, match="300 rows, expected 336"):
        detect_transformer(shapes, where="f")


def test_halved_columns_do_not_change_what_is_detected(weights: dict[str, Tensor], config: TransformerConfig) -> None:
    packed = {
        name: (shape[0], shape[1] // 2) if name.startswith("block") and len(shape) == 2 else shape
        for name, shape in shapes_of(weights).items()
    }
    assert detect_transformer(packed, where="f") == config


def test_prefixes_of_other_programs_are_found(weights: dict[str, Tensor]) -> None:
    for prefix in ("", "model.diffusion_model.", "diffusion_model.", "model."):
        assert find_prefix([prefix + name for name in weights], "f") == prefix


def test_post_norms_are_detected_and_used(weights: dict[str, Tensor], config: TransformerConfig) -> None:
    more = dict(weights)
    for name in ("attn_post_norm", "mlp_post_norm"):
        more[f"block.layers.2.{name}.weight"] = torch.full((64,), 0.5)
    found = detect_transformer(shapes_of(more), where="f")
    assert found == replace(config, post_norm_layers=(2,))
    plain = build(config, weights, torch.float32)(*inputs(), compute_dtype=torch.float32)
    normed = build(found, more, torch.float32)(*inputs(), compute_dtype=torch.float32)
    assert not torch.allclose(plain[0], normed[0])


def test_roles_come_from_the_request_the_metadata_or_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "1080p_sr"
    folder.mkdir()
    assert resolve_role(None, {}, folder)[0] is SR_1080P
    assert resolve_role("base", {}, folder)[0] is BASE
    assert resolve_role(None, {"happyhorse.role": "base"}, folder)[0] is BASE
    assert "assumed" in resolve_role(None, {}, tmp_path / "merged.safetensors")[1]
    with pytest.raises(CheckpointError, match="says it is the base model"):
        resolve_role("distilled", {"happyhorse.role": "base"}, folder)
    with pytest.raises(CheckpointError, match="'turbo', expected one of base"):
        resolve_role("turbo", {}, folder)
