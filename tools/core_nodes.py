"""Core's nodes on our models: ``python -m tools.core_nodes [NODE...] [--json FILE] [--write]``.

Starts one ComfyUI server with this pack and tiny checkpoints and takes each core node that has an input of the kind
MODEL, CONDITIONING, LATENT or VAE. Ours goes through it with the node's defaults, what comes out is sampled, and the
outcome is one of ``core_table.OUTCOMES``. ``--write`` puts the tables into docs/compatibility.md.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]  # appended: the pack's folder `nodes` would hide ComfyUI's module

from comfy_host import PACK_NAME, ComfyServer, PromptFailedError, PromptRefusedError, find_comfyui  # noqa: E402
from workflow_cases import put_files  # noqa: E402

from .core_table import (  # noqa: E402
    CHANGES,
    CORE,
    NEEDS,
    PAGE,
    RAW,
    REFUSED,
    SAME,
    UNREAD,
    Found,
    section_of,
    tables,
    written,
)
from .make_tiny_checkpoints import write_stack  # noqa: E402
from .soak import bytes_of  # noqa: E402

Prompt = dict[str, dict[str, Any]]

LONGEST = 300
"""Seconds for one node; compiling the model is the longest."""
OURS = ("MODEL", "CONDITIONING", "LATENT", "VAE")
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN"}
WARNING = "without effect on this model: "
"""In each warning of ours about what the model does not read."""
OUR_WORDS = re.compile(r"[\w ]+: ")
NEW = {"weight_dtype": "default", "device": "default"}
SMALL = {"width": 96, "height": 64, "length": 9, "batch_size": 1, "resolution": 64, "steps": 2, "tile_size": 64}
"""Values for widgets of these names, where the node allows them."""
CHOSEN: dict[str, dict[str, Any]] = {
    "LatentMultiply": {"multiplier": 0.9},
    "ConditioningMultiply": {"multiplier": 0.5},
    "ConditioningAverage": {"conditioning_to_strength": 0.5},
    "ModelNoiseScale": {"noise_scale": 0.5},
    "SkipLayerGuidanceDiT": {"double_layers": "1", "single_layers": "1", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiTSimple": {
        "double_layers": "1",
        "single_layers": "1",
        "start_percent": 0.0,
        "end_percent": 1.0,
    },
    "SkipLayerGuidanceSD3": {"layers": "1", "start_percent": 0.0, "end_percent": 1.0},
    "EasyCache": {"reuse_threshold": 3.0, "start_percent": 0.0},
    "LazyCache": {"reuse_threshold": 3.0, "start_percent": 0.0},
    "ContextWindowsManual": {"context_length": 2, "context_overlap": 1, "dim": 2},
    "WanContextWindowsManual": {"context_length": 5, "context_overlap": 1},
    "LTXVContextWindows": {"context_length": 9, "context_overlap": 0},
    "ChromaRadianceOptions": {"nerf_tile_size": 64},
    "ScaleROPE": {"scale_x": 2.0},
    "ModelMergeSimple": {"ratio": 0.5},
    "ModelMergeBlocks": {"input": 0.5, "middle": 0.5, "out": 0.5},
    "LatentUpscaleBy": {"scale_by": 2.0},
    "LatentCut": {"amount": 2},
    "TrainLoraNode": {"steps": 1, "batch_size": 1},
    "LTXVConcatAVLatent": {"video_latent": ["parts", 0], "audio_latent": ["parts", 1]},
}
"""Where a node's defaults would do nothing, or take long."""


def node(kind: str, **inputs: object) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def loader(role: str) -> dict[str, Any]:
    return node("HappyHorseModelLoader", model_name=f"daVinci-MagiHuman/{role}", weight_dtype="default", role="auto")


def sampler(latent: str, denoise: float, steps: int = 2) -> dict[str, Any]:
    """Core's sampler with guidance, on the graph's own model and prompts."""
    links = {"model": ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0]}
    chosen = {"seed": 11, "steps": steps, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple"}
    return node("KSampler", **links, **chosen, latent_image=[latent, 0], denoise=denoise)


def plain_prompt() -> Prompt:
    """A graph of ours: ``first`` makes a clip, ``second`` samples it again at half its noise, and that is saved."""
    return {
        "model": loader("base"),
        "clip": node("HappyHorseTextEncoderLoader", text_encoder_name="t5gemma-9b-9b-ul2", **NEW),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text="A woman speaks softly."),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text="blurred picture, noise"),
        "empty": node("HappyHorseEmptyLatent", width=96, height=64, seconds=1.0, frames=9, batch_size=1),
        "first": sampler("empty", 1.0),
        "parts": node("LTXVSeparateAVLatent", av_latent=["first", 0]),
        "second": sampler("first", 0.5, 4),
        "split": node("LTXVSeparateAVLatent", av_latent=["second", 0]),
        "video": node("SaveLatent", samples=["split", 0], filename_prefix="video"),
        "audio": node("SaveLatent", samples=["split", 1], filename_prefix="audio"),
    }


def sources() -> dict[str, tuple[list, Prompt]]:
    """For each kind of socket where a value comes from, and the nodes that are added to the graph for it."""
    noise, sigmas = node("RandomNoise", noise_seed=3), node("HappyHorseSigmas", steps=2, shift=5.0)
    picture = node("LoadImage", image="example.png")
    video_vae = node("HappyHorseVideoVAELoader", decoder_name="checkpoint-340000.ckpt", encoder_name="Wan2.2_VAE.pth")
    audio_vae = node("HappyHorseAudioVAELoader", audio_vae_name="stable_audio_open_1.0.safetensors")
    small = node("ImageScale", image=["picture", 0], upscale_method="area", width=96, height=64, crop="disabled")
    guider = node("BasicGuider", model=["model", 0], conditioning=["positive", 0])
    return {
        "MODEL": (["model", 0], {}),
        "MODEL 2": (["other", 0], {"other": loader("distill")}),
        "CLIP": (["clip", 0], {}),
        "CONDITIONING": (["positive", 0], {}),
        "CONDITIONING 2": (["negative", 0], {}),
        "LATENT": (["first", 0], {}),
        "LATENT 2": (["again", 0], {"again": sampler("empty", 0.9)}),
        "VAE": (["vae", 0], {"vae": video_vae}),
        "VAE audio": (["audio_vae", 0], {"audio_vae": audio_vae}),
        "IMAGE": (["image", 0], {"image": small, "picture": picture}),
        "MASK": (["mask", 0], {"mask": node("SolidMask", value=0.5, width=96, height=64)}),
        "AUDIO": (["sound", 0], {"sound": node("EmptyAudio", duration=0.36, sample_rate=44100, channels=2)}),
        "NOISE": (["noise", 0], {"noise": noise}),
        "SIGMAS": (["sigmas", 0], {"sigmas": sigmas}),
        "SAMPLER": (["solver", 0], {"solver": node("KSamplerSelect", sampler_name="euler")}),
        "GUIDER": (["guider", 0], {"guider": guider}),
        "LATENT_OPERATION": (["operation", 0], {"operation": node("LatentOperationTonemapReinhard", multiplier=1.0)}),
    }


def kinds_of(info: dict) -> Iterator[tuple[str, bool, Any, dict]]:
    """(name, required, kind or choices, options) of each input of a node's description."""
    for part in ("required", "optional"):
        for name, (kind, *options) in info["input"].get(part, {}).items():
            yield name, part == "required", kind, options[0] if options and isinstance(options[0], dict) else {}


def is_candidate(info: dict) -> bool:
    """A node of core, none of a pack, that takes one of ours."""
    packs = ("custom_nodes", "comfy_api_nodes")
    ours = {kind for _, _, kind, _ in kinds_of(info) if isinstance(kind, str)} & set(OURS)
    return bool(ours) and not str(info.get("python_module", "")).startswith(packs) and not info.get("api_node")


def source_of(kind: str, name: str, title: str, seen: list[str]) -> str:
    """The key of ``sources`` for an input; second models, prompts and latents are others than the first."""
    if kind == "VAE":
        return "VAE audio" if "audio" in name or "Audio" in title else "VAE"
    return f"{kind} 2" if kind in seen and f"{kind} 2" in sources() else kind


def widget(name: str, kind: Any, options: dict) -> Any:
    """A value for a widget; None where it has none."""
    if isinstance(kind, list) or kind == "COMBO":
        choices = kind if isinstance(kind, list) else options.get("options", [])
        return options.get("default", choices[0] if choices else None)
    value = options.get("default", {"STRING": "", "BOOLEAN": False}.get(kind))
    chosen = SMALL.get(name)
    if chosen is None or kind != "INT":
        return value
    return min(max(chosen, options.get("min", chosen)), options.get("max", chosen))


def inputs_for(title: str, info: dict) -> tuple[dict, Prompt] | str:
    """The node's inputs and the nodes that they come from, or what it needs that we have not."""
    values: dict[str, Any] = {}
    added: Prompt = {}
    seen: list[str] = []
    known = sources()
    for name, required, kind, options in kinds_of(info):
        value: Any = None
        if isinstance(kind, str) and kind in known:
            value, extra = known[source_of(kind, name, title, seen)]
            added |= extra
            seen.append(kind)
        elif isinstance(kind, list) or kind == "COMBO" or kind in WIDGETS:
            value = widget(name, kind, options)
        elif kind == "FLOAT,INT":
            value = options.get("default", 1.0)
        elif kind == "COMFY_DYNAMICCOMBO_V3":
            value = options["options"][0]["key"]
        elif kind == "COMFY_AUTOGROW_V3" and "IMAGE" in json.dumps(options):
            template = options["template"]
            first = template["names"][0] if "names" in template else f"{template['prefix']}0"
            link, extra = known["IMAGE"]
            values[f"{name}.{first}"] = link
            added |= extra
            continue
        if value is not None:
            values[name] = value
        elif required:
            return name if isinstance(kind, list) or kind == "COMBO" else str(kind)
    if title.startswith("ModelMerge"):
        values |= {name: 0.5 for name, value in values.items() if isinstance(value, float)}
    return values | CHOSEN.get(title, {}), added


def prompt_with(title: str, info: dict, inputs: dict, added: Prompt, alone: bool) -> Prompt:
    """The graph with the node put before ``second``; what is no use to a sampler is shown as text."""
    made = plain_prompt() | added | {"tried": node(title, **inputs)}
    second = made["second"]["inputs"]
    free = {"MODEL": ["model"], "CONDITIONING": ["positive", "negative"], "LATENT": ["latent_image"]}
    used = False
    for slot, kind in enumerate(() if "VAEEncode" in title else info["output"]):
        if free.get(kind):
            second[free[kind].pop(0)] = ["tried", slot]
            used = True
    if title == "LTXVSeparateAVLatent":
        made["joined"] = node("LTXVConcatAVLatent", video_latent=["tried", 0], audio_latent=["tried", 1])
        second["latent_image"] = ["joined", 0]
    elif alone:
        made["joined"] = node("LTXVConcatAVLatent", video_latent=second["latent_image"], audio_latent=["parts", 1])
        second["latent_image"] = ["joined", 0]
    if title == "SetLatentNoiseMask":  # core can't take apart a pair with a mask on the picture alone
        made = {key: value for key, value in made.items() if key not in ("split", "video", "audio")}
        made["kept"] = node("PreviewAny", source=["second", 0])
    custom = {"GUIDER": "guider", "NOISE": "noise", "SIGMAS": "sigmas", "SAMPLER": "sampler"}
    for slot, kind in enumerate(info["output"]):
        if kind in custom:
            links = {name: sources()[known][0] for known, name in custom.items()} | {"latent_image": ["first", 0]}
            for known in custom:
                made |= sources()[known][1]
            made["second"] = node("SamplerCustomAdvanced", **(links | {custom[kind]: ["tried", slot]}))
            used = True
    if not used and info["output"]:
        made["shown"] = node("PreviewAny", source=["tried", 0])
    return made


class Trial:
    """One server, what the graph gives without any node of core's in it, and the nodes of core's that it has."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server
        self.runs = 0
        self.plain = self._run(plain_prompt())
        self.nodes = {name: info for name, info in sorted(server.object_info().items()) if is_candidate(info)}

    def _run(self, prompt: Prompt) -> dict[str, str]:
        """The bytes of the two streams, in files of a new name: else a cached result would name those of before."""
        self.runs += 1
        for stream in {"video", "audio"} & set(prompt):
            prompt[stream]["inputs"]["filename_prefix"] = f"run{self.runs}/{stream}"
        return bytes_of(self.server, self.server.queue(prompt, seconds=LONGEST))

    def of(self, title: str) -> Found:
        """What comes of a node of core's on ours."""
        info = self.nodes[title]
        made = inputs_for(title, info)
        if isinstance(made, str):
            return Found(NEEDS, made)
        found = self._outcome(title, info, *made, alone=False)
        if found.outcome in (REFUSED, CORE, RAW) and "LATENT" in info["output"]:
            inputs, added = made
            inputs = {
                name: ["parts", 0] if value in (["first", 0], ["again", 0]) else value for name, value in inputs.items()
            }
            return Found(found.outcome, found.words, self._outcome(title, info, inputs, added, alone=True).outcome)
        return found

    def _outcome(self, title: str, info: dict, inputs: dict, added: Prompt, *, alone: bool) -> Found:
        logged = len(self.server.log_text())
        try:
            given = self._run(prompt_with(title, info, inputs, added, alone))
        except PromptRefusedError as error:
            return Found(NEEDS, str(error).splitlines()[-1])
        except PromptFailedError as error:
            return failure(error)
        except TimeoutError:
            return Found(RAW, f"did not end within {LONGEST} s")
        warnings = [line for line in self.server.log_text()[logged:].splitlines() if WARNING in line]
        if warnings:
            return Found(UNREAD, "; ".join(line.partition(WARNING)[2].partition(". ")[0] for line in warnings))
        passes = {"MODEL", "CONDITIONING", "LATENT"} & set(info["output"]) and "VAEEncode" not in title
        return Found(SAME if passes and given == self.plain else CHANGES)


def failure(error: PromptFailedError) -> Found:
    """Whose words an error has: ours begin with the field's name, core's are raised on purpose, others are raw."""
    messages = dict(error.entry["status"]["messages"])["execution_error"]
    words = " ".join(str(messages["exception_message"]).split())
    last = messages["traceback"][-1] if messages["traceback"] else ""
    if PACK_NAME in last and OUR_WORDS.match(words):
        return Found(REFUSED, words)
    if re.search(r"^\s*raise ", last, re.MULTILINE) and not re.search("custom_nodes|site-packages", last):
        return Found(CORE, f"{messages['node_type']}: {words}")
    return Found(RAW, f"{messages['node_type']}: {messages['exception_type']}: {words} | {' '.join(last.split())}")


def serve(base: Path) -> ComfyServer:
    """A server with tiny models and what the graph loads; it starts when it is entered."""
    write_stack(base / "models", "comfyui", 0)
    server = ComfyServer(find_comfyui(), base, arguments=["--disable-metadata"])
    put_files(server)
    return server


def sections_of(nodes: dict[str, dict]) -> dict[str, str]:
    """Node -> the table that it belongs to."""
    kinds = {
        title: {kind for _, _, kind, _ in kinds_of(info) if isinstance(kind, str)} for title, info in nodes.items()
    }
    return {title: section_of(title, info["python_module"], kinds[title]) for title, info in nodes.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.core_nodes", description=__doc__.splitlines()[0])
    parser.add_argument("nodes", nargs="*", metavar="NODE", help="only these; else all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what came of each node, with its words")
    parser.add_argument("--write", action="store_true", help="put the tables of all nodes into docs/compatibility.md")
    asked = parser.parse_args(arguments)
    if asked.write and asked.nodes:
        parser.error("--write: found nodes, expected none: the page shows all.")
    with TemporaryDirectory() as folder, serve(Path(folder)) as server:
        trial, found = Trial(server), {}
        for title in asked.nodes or trial.nodes:
            found[title] = trial.of(title)
            print(f"{title}: {found[title]}", flush=True)
        version = server.get("/system_stats")["system"]["comfyui_version"]
    made = tables(found, sections_of(trial.nodes), version)
    print(made)
    if asked.json:
        lines = {title: asdict(one) for title, one in found.items()}
        asked.json.write_text(json.dumps(lines, indent=1), encoding="utf-8")
    if asked.write:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
