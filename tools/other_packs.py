"""Other people's packs beside ours in one ComfyUI: ``python -m tools.other_packs FOLDER...``, each a pack's checkout.

Runs the text to video workflow on a server with this pack alone and on one with all, and compares the bytes of latents,
picture and sound. Then sends our MODEL, CONDITIONING, LATENT, VAE, CLIP, IMAGE and AUDIO through each of their nodes
that takes them and needs nothing that has no default, samples where a MODEL or CONDITIONING comes out, and says what
came of it. COMFYUI_PYTHON names a Python that has their libraries too.
"""

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests")]  # appended: the pack's folder `nodes` would hide ComfyUI's module

from comfy_host import (  # noqa: E402
    PACK_NAME,
    ComfyServer,
    PromptFailedError,
    PromptRefusedError,
    find_comfyui,
    link_or_copy,
)
from workflow_cases import node_of, put_files, small  # noqa: E402

from .make_tiny_checkpoints import write_stack  # noqa: E402
from .soak import bytes_of, with_bytes  # noqa: E402

FITTING = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SAMPLER = "HappyHorseSampler"
VIDEO = ("VHS_VideoCombine", {"frame_rate": 25.0, "format": "video/h264-mp4", "save_output": True})


def serve(base: Path, packs: list[Path]) -> ComfyServer:
    write_stack(base / "models", "comfyui", 0)
    names = [PACK_NAME, *(pack.name for pack in packs)]
    server = ComfyServer(find_comfyui(), base, arguments=["--disable-metadata", "--whitelist-custom-nodes", *names])
    for pack in packs:
        link_or_copy(pack.resolve(), base / "custom_nodes" / pack.name)
    put_files(server)
    return server


def sources(prompt: dict) -> dict[str, list]:
    """Where in the text to video workflow each kind of value comes from."""
    inputs = prompt[node_of(prompt, SAMPLER)]["inputs"]
    decode = node_of(prompt, "HappyHorseDecode")
    found = {"MODEL": inputs["model"], "CONDITIONING": inputs["positive"], "LATENT": inputs["latent"]}
    found |= {"IMAGE": [decode, 0], "AUDIO": [decode, 1]}
    for name, value in prompt[decode]["inputs"].items():
        if "vae" in name and isinstance(value, list):
            found.setdefault("VAE", value)
    text = next(node for node in prompt.values() if node["class_type"] == "CLIPTextEncode")
    return found | {"CLIP": text["inputs"]["clip"]}


def inputs_for(info: dict, known: dict[str, list]) -> dict | None:
    """Values for a node's required inputs; None where one has no default, or none of ours goes in."""
    values, ours = {}, False
    for name, (kind, *options) in info["input"].get("required", {}).items():
        options = options[0] if options and isinstance(options[0], dict) else {}
        if isinstance(kind, str) and kind in known:
            values[name], ours = known[kind], True
        elif isinstance(kind, list) or kind == "COMBO":
            choices = kind if isinstance(kind, list) else options.get("options", [])
            if not choices:
                return None
            values[name] = options.get("default", choices[0])
        elif kind in FITTING and (kind == "STRING" or "default" in options):
            values[name] = options.get("default", "")
        else:
            return None
    return values if ours else None


def prompt_with(prompt: dict, node: str, info: dict, inputs: dict) -> dict:
    """The workflow with a node put into it: what it gives takes the place of ours, or is only shown."""
    made = {key: {"class_type": value["class_type"], "inputs": dict(value["inputs"])} for key, value in prompt.items()}
    made["theirs"] = {"class_type": node, "inputs": inputs}
    places = {"MODEL": "model", "CONDITIONING": "positive", "LATENT": "latent"}
    sampler = made[node_of(made, SAMPLER)]["inputs"]
    for slot, kind in enumerate(info["output"]):
        if kind in places:
            sampler[places[kind]] = ["theirs", slot]
            return with_bytes(made)
    if info["output_node"]:
        return made
    made["shown"] = {"class_type": "PreviewAny", "inputs": {"source": ["theirs", 0]}}
    return made


def outcome(server: ComfyServer, prompt: dict, plain: dict[str, str]) -> str:
    try:
        found = bytes_of(server, server.queue(prompt))
    except PromptRefusedError as error:
        return f"refused: {str(error).splitlines()[-1]}"
    except PromptFailedError as error:
        return f"failed: {str(error).splitlines()[0]}"
    return "works" if not found else "works, same bytes" if found == plain else "works, other bytes"


def combine(server: ComfyServer, prompt: dict, known: dict[str, list]) -> str:
    """Their video writer on our frames and sound: the streams of the file that it says it made."""
    import av

    node, values = VIDEO
    inputs = values | {"images": known["IMAGE"], "audio": known["AUDIO"], "loop_count": 0, "filename_prefix": "theirs"}
    made = prompt | {"theirs": {"class_type": node, "inputs": inputs | {"pingpong": False}}}
    server.queue(made)
    lines = []
    for path in sorted(server.output.glob("theirs*.mp4")):
        with av.open(str(path)) as file:
            seconds = {stream.type: float(stream.duration * stream.time_base) for stream in file.streams}
            lines.append(f"{path.name}: " + ", ".join(f"{kind} {length:.2f} s" for kind, length in seconds.items()))
    return "; ".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.other_packs", description=__doc__.splitlines()[0])
    parser.add_argument("packs", nargs="+", type=Path, metavar="FOLDER", help="a checkout of a pack")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what came of each node")
    asked = parser.parse_args(arguments)
    prompt = small("text_to_video")
    with TemporaryDirectory() as folder:
        with serve(Path(folder) / "alone", []) as server:
            before = set(server.object_info())
            plain = bytes_of(server, server.queue(with_bytes(prompt)))
        with serve(Path(folder) / "all", asked.packs) as server:
            same = bytes_of(server, server.queue(with_bytes(prompt))) == plain
            print("our graph beside them:", "the same bytes" if same else "OTHER BYTES", flush=True)
            known, seen = sources(prompt), {}
            info = server.object_info()
            for node in sorted(set(info) - before):
                inputs = inputs_for(info[node], known)
                if inputs is not None:
                    seen[node] = outcome(server, prompt_with(prompt, node, info[node], inputs), plain)
                    print(f"{node}: {seen[node]}", flush=True)
            if VIDEO[0] in info:
                print(f"{VIDEO[0]}: {combine(server, prompt, known)}", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(seen, indent=1), encoding="utf-8")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
