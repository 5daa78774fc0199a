"""Everything that users read about the nodes: names, descriptions, tooltips, help pages, in every language."""

import json
import re

import pytest

from comfy_host import PACK_NAME, ROOT
from scripts import build_locales
from scripts.build_locales import MissingTranslationError, inputs_of, our_nodes

CHINESE = re.compile(r"[\u4e00-\u9fff]")
MESSAGE_SYNTAX = re.compile(r"[{}@|]")
"""What means something of its own in the editor's message format."""


@pytest.fixture(scope="module")
def object_info(comfy_server):
    return comfy_server.object_info()


@pytest.fixture(scope="module")
def nodes(object_info):
    found = our_nodes(object_info)
    assert found and all(info["python_module"].endswith(PACK_NAME) for info in found.values())
    return found


def test_every_node_has_all_its_texts(nodes):
    lacking = []
    for name, info in nodes.items():
        texts = {"display_name": info["display_name"], "description": info["description"]}
        texts |= {f"tooltip of {key}": options.get("tooltip") for key, options in inputs_of(info)}
        texts |= {f"tooltip of output {i}": text for i, text in enumerate(info["output_tooltips"])}
        texts["search_aliases"] = info["search_aliases"]
        lacking += [f"{name}: {what}" for what, text in texts.items() if not text]
        assert len(info["output_tooltips"]) == len(info["output"])
    assert not lacking


def test_every_node_has_a_help_page_that_names_its_sockets(nodes, comfy_server):
    for name, info in nodes.items():
        page = comfy_server.get(f"/extensions/{PACK_NAME}/docs/{name}.md").decode()
        assert page.startswith(f"# {info['display_name']}\n")
        wanted = [*(key for key, _ in inputs_of(info)), *info["output_name"]]
        assert not [key for key in wanted if f"`{key}`" not in page], name


def test_locale_files_are_up_to_date(object_info):
    # Otherwise: python scripts/build_locales.py --server ADDRESS
    stale = [path.name for path, text in build_locales.files(object_info).items() if read(path) != text]
    assert not stale


def read(path) -> str:
    return path.read_text(encoding="utf-8")


def test_no_translation_is_left_over(object_info):
    for language in build_locales.LANGUAGES:
        known = json.loads(read(ROOT / "scripts" / f"translations_{language}.json"))
        assert set(known) == set(build_locales.texts_of(object_info))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_server_gives_every_text_in_every_language(nodes, comfy_server, language):
    served = comfy_server.get("/i18n")[language]["nodeDefs"]
    for name, info in nodes.items():
        entry = served[name]
        assert set(entry["inputs"]) >= {key for key, _ in inputs_of(info)}
        assert len(entry["outputs"]) == len(info["output"])
        for texts in (entry, *entry["inputs"].values(), *entry["outputs"].values()):
            for what, text in texts.items():
                if isinstance(text, str):
                    assert text and not MESSAGE_SYNTAX.search(text), (name, text)
                    long = what in ("description", "tooltip")
                    assert not long or bool(CHINESE.search(text)) == (language == "zh"), (name, text)


def test_text_without_translation_is_named(object_info):
    changed = json.loads(json.dumps(object_info))
    changed["HappyHorseSampler"]["description"] = "Something new."
    with pytest.raises(MissingTranslationError, match=r"translations_zh\.json lacks:\n  Something new\.$"):
        build_locales.files(changed)


def test_command_says_what_is_stale_and_writes_nothing(comfy_server, capsys, monkeypatch, tmp_path):
    (tmp_path / "scripts").mkdir()
    source = ROOT / "scripts" / "translations_zh.json"
    (tmp_path / "scripts" / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(build_locales, "ROOT", tmp_path)
    server = ["--server", f"127.0.0.1:{comfy_server.port}"]
    assert build_locales.main([*server, "--check"]) == 1
    assert "stale: locales/zh/nodeDefs.json" in capsys.readouterr().out
    assert not (tmp_path / "locales").exists()
    assert build_locales.main(server) == 0
    assert build_locales.main([*server, "--check"]) == 0
    assert read(tmp_path / "locales" / "zh" / "nodeDefs.json") == read(ROOT / "locales" / "zh" / "nodeDefs.json")
