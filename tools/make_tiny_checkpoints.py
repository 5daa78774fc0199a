"""Writes a complete random stack of models, a few MB in all, in the on-disk layouts of the released weights.

    python tools/make_tiny_checkpoints.py DIR [--seed N] [--layout released|comfyui]

Every part is small but keeps what makes the released one awkward: shards with an index, mixed dtypes, a pickle whose
names are half prefixed, tensors of other networks in the same file. The weights mean nothing; they are scaled so that
activations stay near one and pictures and sounds come out finite. One seed writes the same bytes each time.
"""

import argparse
import json
import math
import re
import sys
import zlib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Tensors = dict[str, Tensor]

LAYOUTS = ("released", "comfyui")
LATENT_CHANNELS = 48
AUDIO_CHANNELS = 64

# The transformer: sizes whose products differ, so that a mix-up of two of them can't go unseen.
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 64, 4, 2, 16, 6
MODALITY_LAYERS, GELU_LAYERS = (0, 1, 4, 5), (0, 1)

TEXT_CONFIG: dict[str, Any] = {
    "model_type": "t5_gemma_module",
    "vocab_size": 768,
    "hidden_size": 24,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}

TURBO_CONFIG: dict[str, Any] = {
    "decoder_causal": False,
    "in_channels": 3,
    "latent_channels": LATENT_CHANNELS,
    "out_channels": 3,
    "patch_size": 2,
    "patch_size_t": 1,
    "resnet_norm_eps": 1e-6,
    "scaling_factor": 1,
    "decoder_block_out_channels": [8, 8, 16, 16],
    "decoder_layers_per_block": [1, 1, 1, 1, 1],
    "decoder_spatio_temporal_scaling": [False, True, True, True],
    "decoder_spatio_only": [False, True, False, False],
    "decoder_is_dw_conv": [False] * 5,
    "decoder_dw_kernel_size": 5,
    "spatial_compression_ratio": 16,
    "temporal_compression_ratio": 4,
    "first_chunk_size": 7,
    "step_size": 7,
    "use_unpatchify": True,
}

AUDIO_WIDTH, AUDIO_MULTIPLES, AUDIO_STRIDES = 2, (1, 2, 4, 8, 16), (2, 4, 4, 8, 8)

SENTENCES = (
    "A young woman with short dark hair stands by the window and speaks softly to the camera.",
    "A man in a yellow shirt sits still, the light on the wall is warm, and he says the words with a smile.",
    "Dialogue:\n<Young woman with dark hair, English>: \"Good morning, it is good to see you again.\"",
    "<Man in a yellow shirt, German>: \"Guten Morgen, es ist schön, dich wieder zu sehen.\"",
    "<Old man with a hat, French>: \"Bonjour, c'est un plaisir de vous revoir ce matin.\"",
    "<Woman in red, Mandarin>: \"早 上 好，很 高 兴 再 见 到 你。\"",
    "<Girl with glasses, Cantonese>: \"早 晨，好 高 興 再 見 到 你。\"",
    "<Boy with a cap, Japanese>: \"お は よ う、ま た 会 え て う れ し い で す。\"",
    "<Woman with long hair, Korean>: \"안 녕 하 세 요, 다 시 만 나 서 반 갑 습 니 다.\"",
    "Background Sound:\n<Soft rain on the window>\nBackground Sound:\n<No prominent background sound>",
)  # fmt: skip


# --- names and shapes -------------------------------------------------------------------------------------------------


def transformer_shapes(text_channels: int = TEXT_CONFIG["hidden_size"]) -> Shapes:
    """Names and shapes of the transformer, the three weights of a per-modality layer stacked along their rows."""
    shapes: Shapes = {}
    for name, channels in (("video", 4 * LATENT_CHANNELS), ("text", text_channels), ("audio", AUDIO_CHANNELS)):
        shapes[f"adapter.{name}_embedder.weight"] = (HIDDEN, channels)
        shapes[f"adapter.{name}_embedder.bias"] = (HIDDEN,)
    shapes["adapter.rope.bands"] = (HEAD_DIM // 8,)
    for layer in range(LAYERS):
        shapes |= _transformer_layer(
            f"block.layers.{layer}.", 3 if layer in MODALITY_LAYERS else 1, layer in GELU_LAYERS
        )
    for name, channels in (("video", 4 * LATENT_CHANNELS), ("audio", AUDIO_CHANNELS)):
        shapes[f"final_norm_{name}.weight"] = (HIDDEN,)
        shapes[f"final_linear_{name}.weight"] = (channels, HIDDEN)
    return shapes


def _transformer_layer(prefix: str, experts: int, gelu: bool) -> Shapes:
    inner = 4 * HIDDEN if gelu else HIDDEN * 8 // 3 // 4 * 4
    qkv_rows = (HEADS + 2 * KV_HEADS) * HEAD_DIM + HEADS
    return {
        f"{prefix}attention.pre_norm.weight": (experts * HIDDEN,),
        f"{prefix}attention.linear_qkv.weight": (experts * qkv_rows, HIDDEN),
        f"{prefix}attention.linear_proj.weight": (experts * HIDDEN, HEADS * HEAD_DIM),
        f"{prefix}attention.q_norm.weight": (experts * HEAD_DIM,),
        f"{prefix}attention.k_norm.weight": (experts * HEAD_DIM,),
        f"{prefix}mlp.pre_norm.weight": (experts * HIDDEN,),
        f"{prefix}mlp.up_gate_proj.weight": (experts * inner * (1 if gelu else 2), HIDDEN),
        f"{prefix}mlp.down_proj.weight": (experts * HIDDEN, inner),
    }


def text_model_shapes() -> Shapes:
    """The text model's encoder and, as in the released shards, its decoder, which nothing here uses."""
    shapes: Shapes = {}
    for part in ("encoder", "decoder"):
        prefix = f"model.{part}."
        shapes[f"{prefix}embed_tokens.weight"] = (TEXT_CONFIG["vocab_size"], TEXT_CONFIG["hidden_size"])
        for layer in range(TEXT_CONFIG["num_hidden_layers"]):
            shapes |= _text_layer(f"{prefix}layers.{layer}.", cross_attention=part == "decoder")
        shapes[f"{prefix}norm.weight"] = (TEXT_CONFIG["hidden_size"],)
    return shapes


def _text_layer(prefix: str, cross_attention: bool) -> Shapes:
    hidden, inner = TEXT_CONFIG["hidden_size"], TEXT_CONFIG["intermediate_size"]
    q_rows = TEXT_CONFIG["num_attention_heads"] * TEXT_CONFIG["head_dim"]
    kv_rows = TEXT_CONFIG["num_key_value_heads"] * TEXT_CONFIG["head_dim"]
    shapes: Shapes = {}
    for attention in ("self_attn", "cross_attn") if cross_attention else ("self_attn",):
        shapes[f"{prefix}{attention}.q_proj.weight"] = (q_rows, hidden)
        shapes[f"{prefix}{attention}.k_proj.weight"] = (kv_rows, hidden)
        shapes[f"{prefix}{attention}.v_proj.weight"] = (kv_rows, hidden)
        shapes[f"{prefix}{attention}.o_proj.weight"] = (hidden, q_rows)
        shapes[f"{prefix}pre_{attention}_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}post_{attention}_layernorm.weight"] = (hidden,)
    shapes[f"{prefix}mlp.gate_proj.weight"] = (inner, hidden)
    shapes[f"{prefix}mlp.up_proj.weight"] = (inner, hidden)
    shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
    shapes[f"{prefix}pre_feedforward_layernorm.weight"] = (hidden,)
    shapes[f"{prefix}post_feedforward_layernorm.weight"] = (hidden,)
    return shapes


def _conv(name: str, out_channels: int, in_channels: int, *kernel: int) -> Shapes:
    return {f"{name}.weight": (out_channels, in_channels, *kernel), f"{name}.bias": (out_channels,)}


def turbo_decoder_shapes() -> Shapes:
    """The light video decoder: four up blocks, wide ones first, of which the last does not enlarge."""
    widths = TURBO_CONFIG["decoder_block_out_channels"][::-1]
    shapes = _conv("decoder.conv_in.conv", widths[0], LATENT_CHANNELS, 3, 3, 3)
    shapes |= _turbo_resnet("decoder.mid_block.resnets.0", widths[0], widths[0])
    previous = widths[0]
    for block, width in enumerate(widths):
        prefix = f"decoder.up_blocks.{block}"
        if width != previous:
            shapes |= _turbo_resnet(f"{prefix}.conv_in", width, previous)
        shapes |= _turbo_resnet(f"{prefix}.resnets.0", width, width)
        if block < 3:
            shapes |= _conv(f"{prefix}.upsamplers.0.resample.1", width, width, 3, 3)
        if block < 2:
            shapes |= _conv(f"{prefix}.upsamplers.0.time_conv.conv", 2 * width, width, 3, 1, 1)
        previous = width
    patch_channels = TURBO_CONFIG["out_channels"] * TURBO_CONFIG["patch_size"] ** 2
    return shapes | _conv("decoder.conv_out.conv", patch_channels, previous, 3, 3, 3)


def _turbo_resnet(prefix: str, out_channels: int, in_channels: int) -> Shapes:
    shapes = _conv(f"{prefix}.conv1.conv", out_channels, in_channels, 3, 3, 3)
    shapes |= _conv(f"{prefix}.conv2.conv", out_channels, out_channels, 3, 3, 3)
    if in_channels != out_channels:
        shapes |= _conv(f"{prefix}.conv_shortcut.conv", out_channels, in_channels, 1, 1, 1)
    return shapes


def wan_vae_shapes() -> Shapes:
    """The Wan2.2 autoencoder: its whole encoder, and enough of its decoder to show that it is there."""
    widths = (8, 8, 16, 32, 32)
    shapes = _conv("encoder.conv1", widths[0], 12, 3, 3, 3)
    for stage in range(4):
        prefix, out = f"encoder.downsamples.{stage}.downsamples", widths[stage + 1]
        shapes |= _wan_resnet(f"{prefix}.0", out, widths[stage]) | _wan_resnet(f"{prefix}.1", out, out)
        if stage < 3:
            shapes |= _conv(f"{prefix}.2.resample.1", out, out, 3, 3)
        if stage in (1, 2):
            shapes |= _conv(f"{prefix}.2.time_conv", out, out, 3, 1, 1)
    shapes |= _wan_middle("encoder.middle", widths[-1])
    shapes |= {"encoder.head.0.gamma": (widths[-1], 1, 1, 1)}
    shapes |= _conv("encoder.head.2", 2 * LATENT_CHANNELS, widths[-1], 3, 3, 3)
    shapes |= _conv("conv1", 2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1, 1, 1)
    shapes |= _conv("conv2", LATENT_CHANNELS, LATENT_CHANNELS, 1, 1, 1)
    shapes |= _conv("decoder.conv1", 16, LATENT_CHANNELS, 3, 3, 3) | _wan_middle("decoder.middle", 16)
    return shapes | {"decoder.head.0.gamma": (16, 1, 1, 1)} | _conv("decoder.head.2", 12, 16, 3, 3, 3)


def _wan_resnet(prefix: str, out_channels: int, in_channels: int) -> Shapes:
    shapes: Shapes = {f"{prefix}.residual.0.gamma": (in_channels, 1, 1, 1)}
    shapes |= _conv(f"{prefix}.residual.2", out_channels, in_channels, 3, 3, 3)
    shapes |= {f"{prefix}.residual.3.gamma": (out_channels, 1, 1, 1)}
    shapes |= _conv(f"{prefix}.residual.6", out_channels, out_channels, 3, 3, 3)
    if in_channels != out_channels:
        shapes |= _conv(f"{prefix}.shortcut", out_channels, in_channels, 1, 1, 1)
    return shapes


def _wan_middle(prefix: str, width: int) -> Shapes:
    shapes = _wan_resnet(f"{prefix}.0", width, width) | {f"{prefix}.1.norm.gamma": (width, 1, 1)}
    shapes |= _conv(f"{prefix}.1.to_qkv", 3 * width, width, 1, 1) | _conv(f"{prefix}.1.proj", width, width, 1, 1)
    return shapes | _wan_resnet(f"{prefix}.2", width, width)


def oobleck_shapes(prefix: str = "pretransform.model.") -> Shapes:
    """The audio autoencoder; every convolution is weight-normed, kernels are twice the stride."""
    widths = [AUDIO_WIDTH * m for m in (1, *AUDIO_MULTIPLES)]
    encoder, decoder = f"{prefix}encoder.layers", f"{prefix}decoder.layers"
    shapes = _normed_conv(f"{encoder}.0", widths[0], 2, 7)
    for stage, stride in enumerate(AUDIO_STRIDES):
        name, width = f"{encoder}.{stage + 1}.layers", widths[stage]
        for unit in range(3):
            shapes |= _audio_unit(f"{name}.{unit}.layers", width)
        shapes |= _snake(f"{name}.3", width) | _normed_conv(f"{name}.4", widths[stage + 1], width, 2 * stride)
    shapes |= _snake(f"{encoder}.6", widths[-1]) | _normed_conv(f"{encoder}.7", 2 * AUDIO_CHANNELS, widths[-1], 3)
    shapes |= _normed_conv(f"{decoder}.0", widths[-1], AUDIO_CHANNELS, 7)
    for stage, stride in enumerate(reversed(AUDIO_STRIDES)):
        name, width, out = f"{decoder}.{stage + 1}.layers", widths[-1 - stage], widths[-2 - stage]
        transposed = {f"{name}.1.weight_g": (width, 1, 1), f"{name}.1.weight_v": (width, out, 2 * stride)}
        shapes |= _snake(f"{name}.0", width) | transposed | {f"{name}.1.bias": (out,)}
        for unit in range(3):
            shapes |= _audio_unit(f"{name}.{unit + 2}.layers", out)
    shapes |= _snake(f"{decoder}.6", widths[0]) | _normed_conv(f"{decoder}.7", 2, widths[0], 7)
    del shapes[f"{decoder}.7.bias"]
    return shapes


def _snake(name: str, width: int) -> Shapes:
    return {f"{name}.alpha": (width,), f"{name}.beta": (width,)}


def _normed_conv(name: str, out_channels: int, in_channels: int, kernel: int) -> Shapes:
    weight = {f"{name}.weight_g": (out_channels, 1, 1), f"{name}.weight_v": (out_channels, in_channels, kernel)}
    return {f"{name}.bias": (out_channels,)} | weight


def _audio_unit(name: str, width: int) -> Shapes:
    first = _snake(f"{name}.0", width) | _normed_conv(f"{name}.1", width, width, 7)
    return first | _snake(f"{name}.2", width) | _normed_conv(f"{name}.3", width, width, 1)


def stable_audio_shapes() -> Shapes:
    """The full Stable Audio file: the autoencoder between a conditioner and a diffusion model of no use here."""
    extra: Shapes = {"model.model.timestep_features.weight": (4, 1), "model.model.preprocess_conv.weight": (64, 64, 1)}
    extra |= {"model.model.transformer.layers.0.self_attn.to_qkv.weight": (24, 8)}
    for name in ("seconds_start", "seconds_total"):
        extra[f"conditioner.conditioners.{name}.embedder.embedding.0.weights"] = (4,)
        extra |= _conv(f"conditioner.conditioners.{name}.embedder.embedding.1", 8, 9)
    return extra | oobleck_shapes()


# --- values -----------------------------------------------------------------------------------------------------------


def random_tensors(part: str, shapes: Shapes, seed: int) -> Tensors:
    """Float32 values for every name: each part has a generator of its own, so adding a part leaves the others alone."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(part.encode()))
    return {name: _values(name, shape, generator) for name, shape in shapes.items()}


def _values(name: str, shape: Shape, generator: torch.Generator) -> Tensor:
    if name == "adapter.rope.bands":
        return 10_000.0 ** -(torch.arange(shape[0]) / shape[0])
    if name.endswith(("norm.weight", "norm_video.weight", "norm_audio.weight", ".alpha", ".beta")):
        return torch.zeros(shape)
    if name.endswith(".gamma"):
        return torch.ones(shape)
    if name.endswith(".weight_g"):
        return torch.full(shape, _gain(name))
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.02 * noise
    return noise * (_gain(name) / math.sqrt(math.prod(shape[1:])))


def _gain(name: str) -> float:
    """How much a layer amplifies: one, but for ends whose outputs have a range to keep to and for residual branches."""
    if name.startswith("final_linear_"):
        return 0.25
    if name.endswith("decoder.layers.7.weight_g"):
        return 0.1
    if re.search(r"\.layers\.\d\.layers\.\d\.layers\.3\.weight_g$", name):
        return 0.2
    return 1.4 if name.startswith(("decoder.conv_out", "decoder.up_blocks")) else 1.0


# --- tokenizer --------------------------------------------------------------------------------------------------------


def tokenizer_json(vocab_size: int = TEXT_CONFIG["vocab_size"], merges: int = 240) -> str:
    """A tokenizer of Gemma's structure: byte-pair merges with byte fallback, spaces written as U+2581."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*special, "\n\n", *(f"<0x{byte:02X}>" for byte in range(256))]
    characters = sorted(set("".join(SENTENCES).replace(" ", "▁")))
    pairs = _learn_merges(Counter(w for s in SENTENCES for w in _words(s)), merges)
    pieces += dict.fromkeys([*characters, *(a + b for a, b in pairs)])
    pieces += [f"<unused{n}>" for n in range(vocab_size - len(pieces))]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    assert len(vocab) == len(pieces) == vocab_size, f"{len(vocab)} distinct of {len(pieces)} pieces"
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": vocab[p], "content": p, **flags, "special": p in special} for p in [*special, "\n\n"]]
    return json.dumps(_tokenizer_tree(vocab, [f"{a} {b}" for a, b in pairs], added), ensure_ascii=False, indent=1)


def _tokenizer_tree(vocab: dict[str, int], merges: list[str], added: list[dict[str, Any]]) -> dict[str, Any]:
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": vocab, "merges": merges}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    replace_back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": split,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [replace_back, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": model,
    }


def _words(sentence: str) -> list[str]:
    return [w for line in sentence.splitlines() for w in line.replace(" ", " ▁").split(" ")]


def _learn_merges(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """The commonest pair of neighbours is joined, again and again; ties go to the pair that sorts first."""
    splits = {word: list(word) for word in words}
    learnt: list[tuple[str, str]] = []
    while len(learnt) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, pieces in splits.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learnt.append(best)
        splits = {word: _join(pieces, best) for word, pieces in splits.items()}
    return learnt


def _join(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


# --- files ------------------------------------------------------------------------------------------------------------


def write_stack(directory: str | Path, layout: str = "released", seed: int = 0) -> None:
    """Writes all parts under ``directory``, over what is there. ``layout``: "released" or "comfyui" (``models/``)."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout: found {layout!r}, expected one of {', '.join(LAYOUTS)}.")
    root, host = Path(directory), layout == "comfyui"
    transformers = root / "diffusion_models" / "daVinci-MagiHuman" if host else root
    for role in ("distill", "base", "540p_sr", "1080p_sr"):
        write_transformer(transformers / role, role, seed)
    write_text_model(root / "text_encoders" / "t5gemma-9b-9b-ul2" if host else root / "t5gemma-9b-9b-ul2", seed)
    turbo, wan = (root / "vae", root / "vae") if host else (root / "turbo_vae", root / "Wan2.2-TI2V-5B")
    write_turbo_decoder(turbo / "checkpoint-340000.ckpt", seed)
    if not host:
        _write_json(turbo / "TurboV3-Wan22-TinyShallow_7_7.json", TURBO_CONFIG)
    _make_parent(wan / "Wan2.2_VAE.pth")
    torch.save(random_tensors("image_encoder", wan_vae_shapes(), seed), wan / "Wan2.2_VAE.pth")
    audio = root / "vae" / "stable_audio_open_1.0.safetensors"
    write_stable_audio(audio if host else root / "stable-audio-open-1.0" / "model.safetensors", seed)
    if not host:
        _write_json(root / "stable-audio-open-1.0" / "model_config.json", _stable_audio_config())


def write_transformer(folder: Path, role: str, seed: int) -> None:
    """One transformer; ``base`` keeps the big linear layers in bfloat16 as released, the others are all float32."""
    tensors = random_tensors(role, transformer_shapes(), seed)
    if role == "base":
        bf16 = ("linear_qkv.weight", "linear_proj.weight", "up_gate_proj.weight", "down_proj.weight")
        tensors = {k: v.bfloat16() if k.endswith(bf16) else v for k, v in tensors.items()}
    write_shards(folder, tensors, shards=2 if role == "base" else 3)


def write_text_model(folder: Path, seed: int) -> None:
    """The text model's Hugging Face directory: config, tokenizer and bfloat16 shards of encoder and decoder."""
    tensors = random_tensors("text", text_model_shapes(), seed)
    write_shards(folder, {k: v.bfloat16() for k, v in tensors.items()}, shards=3)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    names = {f"{n}_token": f"<{n}>" for n in ("pad", "eos", "bos", "unk")}
    flags = {"add_bos_token": False, "add_eos_token": False, "tokenizer_class": "GemmaTokenizer"}
    _write_json(folder / "tokenizer_config.json", flags | names)
    tree = {"architectures": ["T5GemmaForConditionalGeneration"], "model_type": "t5gemma", "torch_dtype": "bfloat16"}
    decoder = TEXT_CONFIG | {"is_decoder": True, "cross_attention_hidden_size": TEXT_CONFIG["hidden_size"]}
    _write_json(folder / "config.json", tree | {"is_encoder_decoder": True, "encoder": TEXT_CONFIG, "decoder": decoder})


def write_turbo_decoder(path: Path, seed: int) -> None:
    """A training checkpoint: the weights lie under ``ema_state_dict``, every third name with a leading ``module.``."""
    tensors = random_tensors("turbo", turbo_decoder_shapes(), seed)
    named = {f"module.{k}" if i % 3 == 0 else k: v for i, (k, v) in enumerate(tensors.items())}
    _make_parent(path)
    torch.save({"global_step": 340000, "ema_state_dict": named}, path)


def write_stable_audio(path: Path, seed: int) -> None:
    """The full Stable Audio file. Gains of the transposed convolutions make up for how few inputs reach a sample."""
    tensors = random_tensors("audio", stable_audio_shapes(), seed)
    for name, gain in tensors.items():
        if re.search(r"\.decoder\.layers\.\d\.layers\.1\.weight_g$", name):
            rows, out, kernel = tensors[name[:-1] + "v"].shape
            gain.fill_(math.sqrt(out * kernel / (2 * rows)))
    _make_parent(path)
    save_file(tensors, path, metadata={"format": "pt"})


def _stable_audio_config() -> dict[str, Any]:
    common = {"channels": AUDIO_WIDTH, "c_mults": list(AUDIO_MULTIPLES), "strides": list(AUDIO_STRIDES)}
    encoder = {"in_channels": 2, **common, "latent_dim": 2 * AUDIO_CHANNELS, "use_snake": True}
    decoder = {"out_channels": 2, **common, "latent_dim": AUDIO_CHANNELS, "use_snake": True, "final_tanh": False}
    autoencoder = {
        "encoder": {"type": "oobleck", "requires_grad": False, "config": encoder},
        "decoder": {"type": "oobleck", "config": decoder},
        "bottleneck": {"type": "vae"},
        "latent_dim": AUDIO_CHANNELS,
        "downsampling_ratio": math.prod(AUDIO_STRIDES),
        "io_channels": 2,
    }
    pretransform = {"type": "autoencoder", "iterate_batch": True, "config": autoencoder}
    tree = {"model_type": "diffusion_cond", "sample_size": 2097152, "sample_rate": 44100, "audio_channels": 2}
    return tree | {"model": {"pretransform": pretransform}}


def write_shards(folder: Path, tensors: Tensors, shards: int) -> None:
    """``model-0000i-of-0000n.safetensors`` with equally many tensors each, and the index that says which is where."""
    folder.mkdir(parents=True, exist_ok=True)
    names, per_shard = list(tensors), -(-len(tensors) // shards)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i * per_shard : (i + 1) * per_shard]
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _make_parent(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


def _write_json(path: Path, tree: dict[str, Any]) -> None:
    _make_parent(path)
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write a complete random stack of models, a few MB in all.")
    parser.add_argument("directory", type=Path, help="folder to write to; made if it does not exist")
    parser.add_argument("--seed", type=int, default=0, help="one seed, one set of weights (default 0)")
    parser.add_argument("--layout", choices=LAYOUTS, default="released", help="folder layout (default released)")
    options = parser.parse_args(arguments)
    write_stack(options.directory, options.layout, options.seed)
    total = sum(f.stat().st_size for f in options.directory.rglob("*") if f.is_file())
    print(f"Wrote a random stack in the {options.layout} layout to {options.directory} ({total / 1e6:.1f} MB).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
