"""Writes locales/: the texts of all nodes in English, read from a running ComfyUI, and in the other languages.

    python scripts/build_locales.py [--server ADDRESS] [--check]

English is what the nodes say themselves. The other languages are looked up text by text in translations_LANGUAGE.json
beside this file, so a text that was changed has no translation any more and is named. With --check nothing is written,
and the exit code is 1 where a file is not as it would be written.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from scripts.comfy_client import ServerError, read_object_info

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = ("zh",)
PREFIX = "HappyHorse"
CONTROL, CONTROL_NAME = "control_after_generate", "control after generate"
OF_THE_EDITOR = {"conditioning", "latent", "loaders", "sampling"}
"""Parts of categories that the editor itself translates, for core's nodes."""

Json = Any
"""What json.loads returns."""


class MissingTranslationError(LookupError):
    """Names the texts that a language lacks."""


def our_nodes(object_info: Mapping[str, Json]) -> dict[str, Json]:
    """Of what /object_info says, the nodes of this pack."""
    return {
        name: info
        for name, info in sorted(object_info.items())
        if name.startswith(PREFIX) and info["python_module"].startswith("custom_nodes.")
    }


def inputs_of(info: Mapping[str, Json]) -> Iterator[tuple[str, Mapping[str, Json]]]:
    """(name, options) of all inputs of a node that a user sees."""
    for part in ("required", "optional"):
        for name, (_, *options) in info["input"].get(part, {}).items():
            yield name, options[0] if options else {}


def node_definitions(object_info: Mapping[str, Json], translate: Callable[[str], str]) -> dict[str, Json]:
    """The content of nodeDefs.json, each text handed through ``translate``."""
    found: dict[str, Json] = {}
    for name, info in our_nodes(object_info).items():
        inputs = {}
        for key, options in inputs_of(info):
            inputs[key] = {"name": translate(key), "tooltip": translate(options["tooltip"])}
            if options.get(CONTROL):
                inputs[CONTROL] = {"name": translate(CONTROL_NAME)}
        texts = zip(info["output_name"], info["output_tooltips"], strict=True)
        found[name] = {
            "display_name": translate(info["display_name"]),
            "description": translate(info["description"]),
            "inputs": inputs,
            "outputs": {str(i): {"name": translate(n), "tooltip": translate(t)} for i, (n, t) in enumerate(texts)},
        }
    return found


def categories(object_info: Mapping[str, Json], translate: Callable[[str], str]) -> dict[str, Json]:
    """The content of main.json: the folders that the nodes lie in, as far as they are ours alone."""
    parts = {part for info in our_nodes(object_info).values() for part in info["category"].split("/")}
    return {"nodeCategories": {part: translate(part) for part in sorted(parts - OF_THE_EDITOR)}}


def translator(language: str) -> Callable[[str], str]:
    """A look-up of texts in a language, which raises KeyError for those that it lacks."""
    texts = json.loads((ROOT / "scripts" / f"translations_{language}.json").read_text(encoding="utf-8"))
    return texts.__getitem__


def files(object_info: Mapping[str, Json]) -> dict[Path, str]:
    """Path and text of every file. Raises MissingTranslationError."""
    found = {ROOT / "locales" / "en" / "nodeDefs.json": as_text(node_definitions(object_info, str))}
    for language in LANGUAGES:
        missing = untranslated(object_info, language)
        if missing:
            lines = "\n".join(f"  {text}" for text in missing)
            raise MissingTranslationError(f"scripts/translations_{language}.json lacks:\n{lines}")
        folder, translate = ROOT / "locales" / language, translator(language)
        found[folder / "nodeDefs.json"] = as_text(node_definitions(object_info, translate))
        found[folder / "main.json"] = as_text(categories(object_info, translate))
    return found


def texts_of(object_info: Mapping[str, Json]) -> list[str]:
    """All texts that are translated, each once."""
    seen: dict[str, None] = {}

    def note(text: str) -> str:
        seen.setdefault(text)
        return text

    node_definitions(object_info, note)
    categories(object_info, note)
    return list(seen)


def untranslated(object_info: Mapping[str, Json], language: str) -> list[str]:
    known = json.loads((ROOT / "scripts" / f"translations_{language}.json").read_text(encoding="utf-8"))
    return [text for text in texts_of(object_info) if not known.get(text)]


def as_text(content: Json) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="a ComfyUI that runs with this pack")
    parser.add_argument("--check", action="store_true", help="write nothing; say which files are not up to date")
    options = parser.parse_args(arguments)
    try:
        wanted = files(asyncio.run(read_object_info(options.server)))
    except (ServerError, MissingTranslationError) as error:
        print(error, file=sys.stderr)
        return 1
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{'stale' if options.check else 'written'}: {path.relative_to(ROOT)}")
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
