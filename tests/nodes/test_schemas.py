"""What users and the host see of the nodes."""

import ast
import asyncio
import inspect
import json
from pathlib import Path

import happyhorse_pack
import pytest
from happyhorse_pack.nodes import NODES, comfy_entrypoint
from happyhorse_pack.nodes.host import inputs

ROOT = Path(happyhorse_pack.__file__).parent
PACK_FILES = sorted((ROOT / "nodes").glob("*.py"))
each_node = pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)


@each_node
def test_schema_tells_what_the_node_is(node):
    schema = node.GET_SCHEMA()
    assert schema.node_id == node.__name__
    assert schema.node_id.startswith("HappyHorse")
    assert schema.display_name and "HappyHorse" in schema.display_name
    assert schema.description and schema.description.endswith(".")
    assert schema.category.startswith("HappyHorse/")
    assert schema.search_aliases


@each_node
def test_every_input_and_output_is_explained(node):
    schema = node.GET_SCHEMA()
    for item in [*schema.inputs, *schema.outputs]:
        assert item.tooltip and len(item.tooltip) > 15, item
    assert all(output.display_name for output in schema.outputs)


@each_node
def test_inputs_are_the_arguments_of_execute(node):
    names = {item.id for item in node.GET_SCHEMA().inputs}
    assert set(inspect.signature(node.execute).parameters) == names


@each_node
def test_every_input_is_checked(node):
    """``checked`` knows the kind of each input, and stands before every ``execute``."""
    assert node.execute.__func__.__wrapped__
    for item in node.GET_SCHEMA().inputs:
        assert item.get_io_type() in inputs.WIDGETS | inputs.SOCKETS


@each_node
def test_help_page_names_every_input_and_output(node):
    schema = node.GET_SCHEMA()
    page = (ROOT / "web" / "docs" / f"{node.__name__}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {schema.display_name}\n")
    for name in [*(item.id for item in schema.inputs), *(item.display_name for item in schema.outputs)]:
        assert f"`{name}`" in page, name


def test_list_of_nodes_is_complete():
    extension = asyncio.run(comfy_entrypoint())
    listed = asyncio.run(extension.get_node_list())
    written = {name for path in PACK_FILES for name in node_classes(path)}
    assert written == {node.__name__ for node in listed}


def node_classes(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [item.name for item in tree.body if isinstance(item, ast.ClassDef) and bases(item) == ["io.ComfyNode"]]


def bases(item):
    return [ast.unparse(base) for base in item.bases]


def test_ids_are_literal_so_that_scanners_find_them():
    for path in PACK_FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for item in tree.body:
            if isinstance(item, ast.ClassDef) and bases(item) == ["io.ComfyNode"]:
                ids = [k.value.value for n in ast.walk(item) if isinstance(n, ast.Call) for k in n.keywords
                       if k.arg == "node_id"]  # fmt: skip
                assert ids == [item.name]


def test_ids_are_free_in_the_host():
    import nodes as host

    assert not {node.__name__ for node in NODES} & set(host.NODE_CLASS_MAPPINGS)


def test_schemas_survive_the_way_to_the_browser():
    for node in NODES:
        json.dumps(node.GET_NODE_INFO_V1())
