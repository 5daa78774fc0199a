"""Trains the Pony's text encoder: a small T5Gemma whose every token learns to tell what the whole prompt asks for.

    python -m training.text --folder RUN [--minutes M]      trains, or goes on
    python -m training.text --folder RUN --export DIR       writes t5gemma-9b-9b-ul2/ under DIR

The released encoder is a language model that knows the world; here the world is small, so the encoder is taught its
facts directly. The transformer later reads the tokens' vectors, never the heads that this training reads them with.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from happyhorse_core.negative_prompt import DEFAULT_NEGATIVE_PROMPT
from happyhorse_core.ops import TorchOps
from happyhorse_core.text.config import detect_text_encoder
from happyhorse_core.text.encoder import T5GemmaEncoder
from happyhorse_core.text.load import TextEncoder
from happyhorse_core.text.tokenizer import GemmaTokenizer
from happyhorse_core.text.tokenizer_file import SPECIAL_TOKENS
from tools.make_tiny_checkpoints import TEXT_CONFIG

from .run import add_device, load_trained, train
from .world.prompts import prompt
from .world.scene import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, SKINS, VOICES, VOWELS, Scene, sample_scene

WIDTH = 128
SETTINGS = TEXT_CONFIG | {
    "hidden_size": WIDTH,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
}
FACTS: dict[str, tuple[str, ...]] = {
    "shape": (*SHAPES, "face"),
    "colour": (*COLOURS, *SKINS),
    "size": SIZES,
    "motion": (*MOTIONS, "speaking"),
    "top": BACKGROUNDS,
    "bottom": BACKGROUNDS,
    "second shape": (*SHAPES, "none"),
    "second colour": (*COLOURS, "none"),
    "voice": (*VOICES, "none"),
    **{f"vowel {n}": (*VOWELS, "none") for n in range(4)},
}
TOKENIZER = "tokenizer.json"
NAME = "t5gemma-9b-9b-ul2"
POOL, VOCABULARY, BATCH, STEPS, RATE = 20_000, 1_100, 32, 4_000, 2e-3


def facts(scene: Scene) -> dict[str, str]:
    """What a prompt of the scene says, one word for each of FACTS."""
    vowels = () if scene.speech is None else scene.speech.vowels
    return {
        "shape": scene.shape,
        "colour": scene.colour,
        "size": scene.size,
        "motion": scene.motion,
        "top": scene.background[0],
        "bottom": scene.background[1],
        "second shape": scene.second.shape if scene.second else "none",
        "second colour": scene.second.colour if scene.second else "none",
        "voice": scene.speech.voice if scene.speech else "none",
        **{f"vowel {n}": vowels[n] if n < len(vowels) else "none" for n in range(4)},
    }


def labels(scene: Scene) -> list[int]:
    """The index of each fact among its words."""
    said = facts(scene)
    return [words.index(said[name]) for name, words in FACTS.items()]


def make_tokenizer(texts: Sequence[str]) -> str:
    """A tokenizer.json: byte pairs with byte fallback, as Gemma's, learnt from prompts; capitals become small."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[a-z]+|."), "isolated")
    bytes_of = [f"<0x{n:02X}>" for n in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[*SPECIAL_TOKENS, *bytes_of],
        initial_alphabet=[*"▁abcdefghijklmnopqrstuvwxyz0123456789.,:;!?\"'<>()-\n"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tree = json.loads(tokenizer.to_str())
    # The pieces of the bytes are found by their names; as special tokens they would be cut out of a prompt.
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] in SPECIAL_TOKENS]
    return json.dumps(tree, ensure_ascii=False, indent=1) + "\n"


class PromptPool:
    """Prompts of scenes as token ids, kept by their length, since sequences in a batch are of one length."""

    def __init__(self, tokenizer: GemmaTokenizer, scenes: Sequence[Scene], texts: Sequence[str]) -> None:
        groups: dict[int, list[int]] = {}
        ids = [tokenizer.encode(text) for text in texts]
        for index, tokens in enumerate(ids):
            groups.setdefault(len(tokens), []).append(index)
        self.groups = [(torch.tensor([ids[n] for n in members]), torch.tensor(members)) for members in groups.values()]
        self.weights = torch.tensor([float(len(members)) for _, members in self.groups])
        self.labels = torch.tensor([labels(scene) for scene in scenes])

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Token ids [B, L] and the indices [B] of the scenes they are of."""
        ids, members = self.groups[int(torch.multinomial(self.weights, 1, generator=generator))]
        chosen = torch.randint(len(members), (batch,), generator=generator)
        return ids[chosen], members[chosen]


def sample_prompts(count: int, seed: int, held_out: bool | None = False) -> tuple[list[Scene], list[str]]:
    """``count`` scenes and one prompt of each."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, held_out=held_out) for _ in range(count)]
    return scenes, [prompt(scene, rng) for scene in scenes]


def make_encoder(vocabulary: int) -> T5GemmaEncoder:
    """The encoder with fresh weights."""
    settings = SETTINGS | {"vocab_size": vocabulary}
    rows, kv = 4 * 32, 2 * 32
    shapes = {
        "norm.weight": (WIDTH,),
        "embed_tokens.weight": (vocabulary, WIDTH),
        "layers.0.mlp.gate_proj.weight": (SETTINGS["intermediate_size"], WIDTH),
        "layers.0.self_attn.k_proj.weight": (kv, WIDTH),
    }
    shapes |= {f"layers.{n}.self_attn.q_proj.weight": (rows, WIDTH) for n in range(SETTINGS["num_hidden_layers"])}
    shapes["layers.0.pre_self_attn_layernorm.weight"] = (WIDTH,)
    config = detect_text_encoder(shapes, settings, "the Pony's text encoder")
    encoder = T5GemmaEncoder(config, operations=TorchOps, dtype=torch.float32)
    for weight in encoder.parameters():
        if weight.ndim == 1:
            nn.init.zeros_(weight)
        else:
            nn.init.normal_(weight, std=WIDTH**-0.5)
    return encoder


def errors(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over the facts, and the part of facts that every token gets wrong, from logits [B, L, N]."""
    parts = logits.split([len(words) for words in FACTS.values()], dim=-1)
    loss, wrong = logits.new_zeros(()), logits.new_zeros(())
    for part, column in zip(parts, wanted.T, strict=True):
        target = column[:, None].expand(part.shape[:2])
        loss = loss + F.cross_entropy(part.flatten(0, 1), target.flatten())
        wrong = wrong + (part.argmax(-1) != target).float().mean() / len(FACTS)
    return loss, wrong


def build(folder: Path, seed: int) -> tuple[GemmaTokenizer, dict[str, nn.Module], PromptPool]:
    """Tokenizer, modules and prompts of a run. The tokenizer is made once and kept in ``folder``."""
    scenes, texts = sample_prompts(POOL, seed)
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / TOKENIZER
    if not kept.exists():
        kept.write_text(make_tokenizer([*texts, *[DEFAULT_NEGATIVE_PROMPT] * 20]), encoding="utf-8")
    tokenizer = GemmaTokenizer.from_file(kept)
    return tokenizer, make_modules(tokenizer, seed), PromptPool(tokenizer, scenes, texts)


def make_modules(tokenizer: GemmaTokenizer, seed: int) -> dict[str, nn.Module]:
    """The encoder, and what reads the facts off its tokens."""
    torch.manual_seed(seed)
    heads = nn.Linear(WIDTH, sum(len(words) for words in FACTS.values()))
    return {"encoder": make_encoder(tokenizer.vocab_size), "heads": heads}


def load_trained_encoder(folder: Path) -> TextEncoder:
    """The trained encoder with its tokenizer, in float32."""
    tokenizer = GemmaTokenizer.from_file(folder / TOKENIZER)
    modules = make_modules(tokenizer, 0)
    load_trained(folder, modules)
    return TextEncoder(modules["encoder"].eval(), tokenizer, torch.float32)


def check(modules: dict[str, nn.Module], tokenizer: GemmaTokenizer, held_out: bool, seed: int) -> float:
    """Part of the facts that tokens of fresh prompts tell wrongly."""
    scenes, texts = sample_prompts(500, seed, held_out)
    pool, total = PromptPool(tokenizer, scenes, texts), 0.0
    for ids, members in pool.groups:
        logits = modules["heads"](modules["encoder"](ids, compute_dtype=torch.float32))
        total += float(errors(logits, pool.labels[members])[1]) * len(members)
    return total / len(scenes)


def export(folder: Path, target: Path) -> None:
    """Writes the text model in the released layout, without the decoder, which nothing reads."""
    encoder = load_trained_encoder(folder)
    target = target / NAME
    target.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.encoder.{name}": value.bfloat16() for name, value in encoder.model.state_dict().items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    settings = SETTINGS | {"vocab_size": encoder.model.config.vocab_size}
    config = {"model_type": "t5gemma", "torch_dtype": "bfloat16", "is_encoder_decoder": True, "encoder": settings}
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(folder / TOKENIZER, target / TOKENIZER)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the run is kept")
    parser.add_argument("--minutes", type=float, default=120, help="stop after so long; the next call goes on")
    parser.add_argument("--seed", type=int, default=0)
    add_device(parser)
    parser.add_argument("--export", type=Path, help="write the trained encoder under this folder, and nothing else")
    options = parser.parse_args(arguments)
    if options.export is not None:
        export(options.folder, options.export)
        return
    tokenizer, modules, pool = build(options.folder, options.seed)

    def step(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        ids, members = pool.draw(BATCH, generator)
        hidden = modules["encoder"](ids.to(options.device), compute_dtype=torch.float32)
        loss, wrong = errors(modules["heads"](hidden), pool.labels[members].to(options.device))
        return {"loss": loss, "wrong": wrong}

    settings = {"steps": STEPS, "minutes": options.minutes, "lr": RATE, "seed": options.seed}
    train("text", options.folder, modules, step, device=options.device, **settings)
    modules = make_modules(tokenizer, options.seed)
    load_trained(options.folder, modules)
    with torch.no_grad():
        for held_out in (False, True):
            wrong = check(modules, tokenizer, held_out, options.seed + 1)
            print(f"fresh prompts{' of combinations kept out' if held_out else ''}: {100 * wrong:.3f} % of facts wrong")


if __name__ == "__main__":
    main()
