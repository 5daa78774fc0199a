"""The text encoder against the reference's numbers, a plain second implementation, and files as people have them."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from happyhorse_core.errors import CheckpointError, InputError
from happyhorse_core.ops import TorchOps
from happyhorse_core.text.config import PREFIXES, TextEncoderConfig, detect_text_encoder
from happyhorse_core.text.encoder import QUERY_BLOCK, T5GemmaEncoder, softcap_attention
from happyhorse_core.text.load import EMBEDDED_TOKENIZER, load_text_encoder, read_tokenizer
from happyhorse_core.weights.tensors import TensorSource
from tools.make_tiny_checkpoints import TEXT_CONFIG, text_model_shapes, write_text_model

GOLDEN = Path(__file__).parent.parent / "golden"
RELEASED_CONFIG = {
    "hidden_size": 3584,
    "num_hidden_layers": 42,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
}


def golden() -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
    weights = {name: t.float() for name, t in load_file(GOLDEN / "text_encoder.weights.safetensors").items()}
    with safe_open(GOLDEN / "text_encoder.io.safetensors", "pt") as file:
        io = {name: file.get_tensor(name) for name in ("input_ids", "last_hidden_state")}
        return weights, io, json.loads(file.metadata()["config"])


def shapes_of(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in tensors.items()}


def golden_encoder(**changes) -> T5GemmaEncoder:
    weights, _, settings = golden()
    config = detect_text_encoder(shapes_of(weights), settings | changes, "golden")
    encoder = T5GemmaEncoder(config, operations=TorchOps, dtype=torch.float32)
    encoder.load_state_dict({name.removeprefix("encoder."): t for name, t in weights.items()})
    return encoder


def relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


@torch.inference_mode()
def test_matches_the_reference():
    _, io, _ = golden()
    found = golden_encoder()(io["input_ids"], compute_dtype=torch.float32)
    assert found.dtype == torch.float32
    assert relative_error(found, io["last_hidden_state"]) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 7},
        {"sliding_window": 9},
        {"layer_types": ["full_attention"] * 4},
        {"attn_logit_softcapping": 5.0},
        {"query_pre_attn_scalar": 17},
        {"rope_theta": 9000.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_each_setting_matters_to_the_reference_numbers(changes):
    _, io, _ = golden()
    assert relative_error(golden_encoder(**changes)(io["input_ids"], compute_dtype=torch.float32),
                          io["last_hidden_state"]) > 1e-4  # fmt: skip


@torch.inference_mode()
def test_bfloat16_stays_near_the_reference():
    _, io, _ = golden()
    found = golden_encoder().to(torch.bfloat16)(io["input_ids"])
    assert found.dtype == torch.float32
    assert 1e-5 < relative_error(found, io["last_hidden_state"]) < 0.03


@torch.inference_mode()
def test_embeddings_handed_in_are_those_of_the_table():
    _, io, _ = golden()
    encoder = golden_encoder()
    rows = encoder.embed_tokens(io["input_ids"])
    found = encoder(None, embeds=rows, compute_dtype=torch.float32)
    assert relative_error(found, io["last_hidden_state"]) < 1e-5


@torch.inference_mode()
def test_prompts_of_a_batch_do_not_see_each_other():
    encoder, ids = golden_encoder(), torch.arange(3, 29).view(2, 13)
    both = encoder(ids, compute_dtype=torch.float32)
    for row in range(2):
        torch.testing.assert_close(both[row : row + 1], encoder(ids[row : row + 1], compute_dtype=torch.float32))


def plain_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float, window: int | None) -> Tensor:
    """One head and one query at a time, in float64: the definition, with nothing clever."""
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=torch.float64)
    q, k, v = q.double(), k.double(), v.double()
    for b, head, i in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        shared = head * k.shape[1] // q.shape[1]
        seen = [j for j in range(k.shape[2]) if window is None or abs(i - j) <= window]
        scores = softcap * torch.tanh(k[b, shared, seen] @ q[b, head, i] * scale / softcap)
        out[b, head, i] = scores.softmax(0) @ v[b, shared, seen]
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("window", [None, 1, 5, 200])
@pytest.mark.parametrize("length", [1, 7, QUERY_BLOCK, 2 * QUERY_BLOCK + 3])
def test_attention_by_blocks_is_attention(length, window):
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(1, 6, length, 4, generator=generator) * 9
    k, v = (torch.randn(1, 2, length, 4, generator=generator) for _ in range(2))
    found = softcap_attention(q, k, v, scale=0.5, softcap=3.0, window=window)
    torch.testing.assert_close(found.double(), plain_attention(q, k, v, 0.5, 3.0, window), rtol=1e-4, atol=1e-5)


def test_progress_counts_layers_and_may_stop_them():
    encoder, seen = golden_encoder(), []
    encoder(torch.tensor([[5, 6]]), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder(torch.tensor([[5, 6]]), progress=stop)


# --- detection --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [None, RELEASED_CONFIG, {"model_type": "t5gemma", "encoder": RELEASED_CONFIG}])
def test_released_model_has_these_names_and_shapes(config):
    shapes = {k: tuple(v) for k, v in json.loads((GOLDEN / "full_size_text_encoder.json").read_text()).items()}
    found = detect_text_encoder(shapes, config, "released")
    assert found == TextEncoderConfig(
        vocab_size=256000,
        hidden_size=3584,
        intermediate_size=14336,
        num_heads=16,
        num_kv_heads=8,
        head_dim=256,
        windows=(4096, None) * 21,
        query_scalar=256,
    )
    encoder = T5GemmaEncoder(found, operations=TorchOps, dtype=torch.bfloat16, device="meta")
    assert {f"model.encoder.{name}": tuple(t.shape) for name, t in encoder.state_dict().items()} == shapes


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_is_known_and_only_rows_are_read(prefix):
    weights, _, settings = golden()
    shapes = {prefix + k.removeprefix("encoder."): (s[0], 1) for k, s in shapes_of(weights).items()}
    assert detect_text_encoder(shapes, settings, "here") == golden_encoder().config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 5}, "num_hidden_layers = 5, the tensors say 4"),
        ({"hidden_size": 65}, "hidden_size = 65"),
        ({"hidden_activation": "relu"}, "hidden_activation: found 'relu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types: found a list of 3; expected 4"),
        ({"layer_types": 3}, "layer_types: found 3; expected 4"),
        ({"layer_types": [[], {}, "full_attention", 1]}, "layer_types: found a list of 4, the first of them a list"),
        ({"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type: found 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_type: found 'linear'"),
        ({"rope_scaling": "a"}, "rope_scaling: found 'a', expected an object"),
        ({"rope_parameters": [1]}, "rope_parameters: found a list of 1, expected an object"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta: found nan, expected a number from 1 to"),
        ({"rms_norm_eps": 10**18}, "rms_norm_eps: found 1000000000000000000, expected a number from 1e-12 to 1"),
        ({"rms_norm_eps": True}, "rms_norm_eps: found True"),
        ({"sliding_window": float("inf")}, "sliding_window: found inf, expected a whole number from 1 to"),
        ({"sliding_window": 4096.0}, "sliding_window: found 4096.0, expected a whole number"),
        ({"query_pre_attn_scalar": 1e-320}, "query_pre_attn_scalar: found 1e-320"),
        ({"hidden_size": {"a": 1}}, "hidden_size = an object of 1"),
        ({"hidden_activation": "x" * 10**6}, r"hidden_activation: found 'xxx.*expected 'gelu_pytorch_tanh'\.$"),
        ({"attn_logit_softcapping": None}, "attn_logit_softcapping: found None"),
        ({"head_dim": 7}, "do not make heads of 7"),
        ({"head_dim": "16"}, "head_dim: found '16'"),
        ({"sliding_window": 0}, "sliding_window: found 0"),
        ({"encoder": "t5"}, "encoder: found 't5'"),
    ],
)
def test_config_that_does_not_fit_is_refused(changes, message):
    weights, _, settings = golden()
    with pytest.raises(CheckpointError, match=message) as caught:
        detect_text_encoder(shapes_of(weights), settings | changes, "models/t5")
    assert str(caught.value).startswith("models/t5")


def test_other_models_and_incomplete_ones_are_refused():
    weights, _, settings = golden()
    with pytest.raises(CheckpointError, match="not a T5Gemma text encoder"):
        detect_text_encoder({"model.layers.0.self_attn.q_proj.weight": (4, 4)}, None, "models/llama")
    with pytest.raises(CheckpointError, match="not a T5Gemma text encoder: found 0 tensors"):
        detect_text_encoder({}, None, "models/empty")
    with pytest.raises(CheckpointError, match=r"1 tensors .* are missing: encoder\.norm\.weight"):
        detect_text_encoder({k: s for k, s in shapes_of(weights).items() if k != "encoder.norm.weight"}, settings, "x")
    with pytest.raises(CheckpointError, match=r"Put the model's config\.json beside"):
        detect_text_encoder(shapes_of(weights), None, "x")
    for shape in ((), (0,), (0, 5), (5, 0)):
        with pytest.raises(CheckpointError, match=r"1 tensors .* are empty: encoder\.norm\.weight"):
            detect_text_encoder(shapes_of(weights) | {"encoder.norm.weight": shape}, settings, "x")


# --- files ------------------------------------------------------------------------------------------------------------

PROMPT = "A young woman says softly: 早 上 好."


@pytest.fixture
def folder(tmp_path) -> Path:
    write_text_model(tmp_path / "t5gemma", seed=3)
    return tmp_path / "t5gemma"


def all_tensors(folder: Path) -> dict[str, Tensor]:
    return {name: t for shard in sorted(folder.glob("*.safetensors")) for name, t in load_file(shard).items()}


def rewrite(folder: Path, tensors: dict[str, Tensor]) -> None:
    """The same folder with one shard and an index of exactly these tensors."""
    for shard in folder.glob("model*"):
        shard.unlink()
    save_file(tensors, folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_prompt_becomes_rows_rounded_through_float16(folder):
    encoder = load_text_encoder(folder)
    found = encoder.encode_prompt(PROMPT)
    assert found.shape == (1, len(encoder.tokenizer.encode(PROMPT)), TEXT_CONFIG["hidden_size"])
    assert found.dtype == torch.float32
    assert torch.equal(found, found.half().float())
    assert not found.requires_grad
    assert torch.equal(found, encoder.encode_prompt(PROMPT))
    others = [encoder.encode_prompt(f"A {word}")[0, 0] for word in ("woman", "window")]
    assert not torch.equal(*others), "the first token has to see those after it"
    in_full = load_text_encoder(folder, dtype=torch.float32)
    assert in_full.model.norm.weight.dtype == torch.float32
    assert 0 < relative_error(found, in_full.encode_prompt(PROMPT)) < 0.05


def test_prompt_without_text_and_prompt_of_too_much(folder, caplog):
    encoder = load_text_encoder(folder)
    with pytest.raises(InputError, match="prompt"):
        encoder.encode_prompt(" ")
    with caplog.at_level(logging.WARNING):
        assert encoder.encode_prompt("word " * 700).shape[1] == 640
    assert "are cut" in caplog.text


def test_decoder_is_neither_loaded_nor_needed(folder):
    expected = load_text_encoder(folder).encode_prompt(PROMPT)
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if name.startswith("model.encoder.")}
    spare = set(index.values()) - needed
    assert spare
    for file in spare:
        (folder / file).unlink()
    assert torch.equal(load_text_encoder(folder).encode_prompt(PROMPT), expected)
    assert torch.equal(load_text_encoder(folder / "model.safetensors.index.json").encode_prompt(PROMPT), expected)
    (folder / needed.pop()).unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_text_encoder(folder)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("embedded", [True, False])
def test_merged_files_give_the_same(folder, tmp_path, prefix, embedded):
    expected = load_text_encoder(folder).encode_prompt(PROMPT)
    tensors = {k: t for k, t in all_tensors(folder).items() if k.startswith("model.encoder.")}
    tensors = {prefix + k.removeprefix("model.encoder."): t for k, t in tensors.items()}
    target = tmp_path / "merged"
    target.mkdir()
    text = (folder / "tokenizer.json").read_bytes()
    if embedded:
        tensors["tokenizer_json"] = torch.tensor(list(text), dtype=torch.uint8)
    else:
        (target / "tokenizer.json").write_bytes(text)
    config = {"config": (folder / "config.json").read_text()} if embedded else None
    if not embedded:
        shutil.copy(folder / "config.json", target)
    save_file(tensors, target / "t5gemma_bf16.safetensors", metadata=config)
    assert torch.equal(load_text_encoder(target / "t5gemma_bf16.safetensors").encode_prompt(PROMPT), expected)


def test_config_of_another_model_beside_the_file_is_not_used(folder):
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 4096}')
    with pytest.raises(CheckpointError, match=r"Put the model's config\.json beside"):
        load_text_encoder(folder)
    (folder / "config.json").write_text('{"model_type": "t5g')
    with pytest.raises(CheckpointError, match=r"config\.json: no valid JSON"):
        load_text_encoder(folder)


def test_missing_or_foreign_tokenizer_is_named(folder):
    file = folder / "tokenizer.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    tree["model"]["vocab"] |= {"zyx": TEXT_CONFIG["vocab_size"]}
    file.write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(CheckpointError, match="has ids up to 768, the encoder only up to 767"):
        load_text_encoder(folder)
    del tree["model"]["vocab"]["zyx"]
    tree["model"]["vocab"] |= {"<unused0>": 5000}
    file.write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(CheckpointError, match="has ids up to 5000, the encoder only up to 767"):
        load_text_encoder(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: there is no such file"):
        load_text_encoder(folder)


@pytest.mark.parametrize(
    "content", [torch.zeros(9, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.uint8).expand(2**27 + 1)]
)
def test_a_tokenizer_in_the_file_that_is_no_text(content):
    source = TensorSource.of_tensors(Path("x.safetensors"), {EMBEDDED_TOKENIZER: content})
    with pytest.raises(CheckpointError, match="^x.safetensors: tensor tokenizer_json: found .* expected a tokenizer"):
        read_tokenizer(source.path, source)


def test_damaged_weights_are_refused(folder):
    tensors = all_tensors(folder)
    name = "model.encoder.layers.1.mlp.up_proj.weight"
    rewrite(folder, {k: t for k, t in tensors.items() if k != name})
    with pytest.raises(CheckpointError, match=r"1 of .* missing: layers\.1\.mlp\.up_proj\.weight"):
        load_text_encoder(folder)
    rewrite(folder, tensors | {name: tensors[name][:-1].clone()})
    with pytest.raises(CheckpointError, match="has shape"):
        load_text_encoder(folder)
    rewrite(folder, tensors | {"model.encoder.layers.1.mlp.gate.bias": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"1 tensors are not expected: layers\.1\.mlp\.gate\.bias"):
        load_text_encoder(folder)
    rewrite(folder, {k: t for k, t in tensors.items() if k.startswith("model.decoder.")})
    with pytest.raises(CheckpointError, match="not a T5Gemma text encoder"):
        load_text_encoder(folder)


def test_absent_paths_and_damaged_indexes_are_refused(folder):
    with pytest.raises(CheckpointError, match="nowhere"):
        load_text_encoder(folder / "nowhere")
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(CheckpointError, match="no valid JSON"):
        load_text_encoder(folder)


def test_released_shards_hold_encoder_and_decoder():
    parts = {name.split(".")[1] for name in text_model_shapes()}
    assert parts == {"encoder", "decoder"}
