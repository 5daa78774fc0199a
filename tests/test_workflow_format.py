"""From the canvas format to the API format, on small documents; what is expected is what ComfyUI 0.33's editor sends.

The node descriptions are those of core nodes, cut down to what the editor goes by.
"""

import copy
import json

import pytest

from scripts.workflow_format import WorkflowError, connects, node_classes, to_api

INT, FLOAT, STRING, BOOLEAN = ["INT", {"default": 512}], ["FLOAT", {"default": 0.5}], ["STRING", {}], ["BOOLEAN", {}]
SEED = ["INT", {"default": 0, "control_after_generate": True}]
CODEC = [
    "COMFY_DYNAMICCOMBO_V3",
    {
        "options": [
            {"key": "auto", "inputs": {"required": {}}},
            {
                "key": "h264",
                "inputs": {"required": {}, "optional": {"crf": ["FLOAT", {"default": 23.0}], "two_pass": BOOLEAN}},
            },
        ]
    },
]
OBJECT_INFO = {
    "EmptyImage": {"input": {"required": {"width": INT, "height": INT}}, "display_name": "Empty Image"},
    "ImageInvert": {"input": {"required": {"image": ["IMAGE"]}}},
    "ImageBlend": {
        "input": {
            "required": {
                "image1": ["IMAGE"],
                "image2": ["IMAGE"],
                "blend_factor": FLOAT,
                "blend_mode": ["COMBO", {"options": ["normal", "multiply"]}],
            }
        }
    },
    "ImageScale": {
        "input": {
            "required": {
                "image": ["IMAGE"],
                "upscale_method": [["nearest-exact", "area"]],
                "width": INT,
                "height": INT,
            }
        }
    },
    "SaveImage": {"input": {"required": {"images": ["IMAGE"], "filename_prefix": STRING}}},
    "KSampler": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": SEED,
                "steps": ["INT", {"default": 20}],
                "latent_image": ["LATENT"],
            }
        }
    },
    "CLIPTextEncode": {
        "input": {"required": {"text": ["STRING", {"multiline": True, "dynamicPrompts": True}], "clip": ["CLIP"]}}
    },
    "ImageCropV2": {
        "input": {"required": {"image": ["IMAGE"], "crop_region": ["BOUNDING_BOX", {"socketless": True}], "zoom": INT}}
    },
    "BatchImagesNode": {
        "input": {
            "required": {
                "images": [
                    "COMFY_AUTOGROW_V3",
                    {"template": {"input": {"required": {"image": ["IMAGE"]}}, "prefix": "image", "min": 1, "max": 50}},
                ]
            }
        }
    },
    "SaveVideo": {
        "input": {
            "required": {
                "video": ["VIDEO"],
                "filename_prefix": STRING,
                "format": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {"options": [{"key": key, "inputs": {"required": {"codec": CODEC}}} for key in ("auto", "mp4")]},
                ],
            },
            "optional": {"quality": ["INT", {"default": 7}]},
        }
    },
    "MaskToImage": {"input": {"required": {"mask": ["MASK"]}}},
    "ImageCompare": {"input": {"required": {"compare_view": ["IMAGECOMPARE", {}]}, "optional": {"image_a": ["IMAGE"]}}},
    "CustomCombo": {"input": {"required": {"choice": ["COMBO", {"options": []}]}}},
    "LoadImage": {"input": {"required": {"image": [["a.png"], {"image_upload": True}]}}},
    "Load3D": {"input": {"required": {"model_file": [["none"]], "image": ["LOAD_3D", {}]}}},
    "Forced": {"input": {"required": {"prompt": ["STRING", {"forceInput": True}], "strength": FLOAT}}},
    "Ordered": {
        "input": {"required": {"b": INT, "a": INT}, "optional": {"d": INT, "c": INT}},
        "input_order": {"required": ["a", "b"], "optional": ["c", "d"]},
    },
}


def node(key, kind, values=(), inputs=(), outputs=("IMAGE",), **more):
    """A node of the canvas; ``inputs`` are (name, type, link) or, for a widget that is a socket, (..., widget)."""
    slots = [
        {"name": name, "type": type_, "link": link} | ({"widget": {"name": widget[0]}} if widget else {})
        for name, type_, link, *widget in inputs
    ]
    outs = [{"name": type_, "type": type_, "links": []} for type_ in outputs]
    return {
        "id": key, "type": kind, "mode": 0, "inputs": slots, "outputs": outs, "widgets_values": list(values),
        "properties": {}, "pos": [0, 0], "size": [200, 100], "flags": {}, "order": 0,
    } | more  # fmt: skip


def canvas(nodes, links=(), **more):
    """A document; ``links`` are (id, from, slot, to, slot, type)."""
    return {"nodes": nodes, "links": [list(link) for link in links], "version": 0.4} | more


def inputs_of(workflow, key):
    return to_api(workflow, OBJECT_INFO)[key]["inputs"]


def between(middle, *, type_="IMAGE", extra=()):
    """An empty image, ``middle`` (id 2, linked by 1 and 2), and a node that saves what comes out."""
    return canvas(
        [node(1, "EmptyImage", [8, 4]), middle, node(3, "SaveImage", ["x"], [("images", type_, 2)], ()), *extra],
        [(1, 1, 0, 2, 0, "IMAGE"), (2, 2, 0, 3, 0, type_)],
    )


def test_nodes_values_and_links():
    answer = to_api(between(node(2, "ImageInvert", [], [("image", "IMAGE", 1)])), OBJECT_INFO)
    assert answer == {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 4}, "_meta": {"title": "Empty Image"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}, "_meta": {"title": "ImageInvert"}},
        "3": {
            "class_type": "SaveImage",
            "inputs": {"images": ["2", 0], "filename_prefix": "x"},
            "_meta": {"title": "SaveImage"},
        },
    }


def test_api_format_is_copied():
    workflow = {"1": {"class_type": "Unknown", "inputs": {"a": [1]}}}
    answer = to_api(workflow, {})
    assert answer == workflow
    answer["1"]["inputs"]["a"] = 2
    assert workflow["1"]["inputs"]["a"] == [1]


@pytest.mark.parametrize("workflow", [{}, [], None, {"nodes": 3}, {"nodes": [{"id": 1}]}, {"1": {"inputs": {}}}])
def test_what_is_no_workflow_is_refused(workflow):
    with pytest.raises(WorkflowError, match=r"neither .*canvas.* nor .*API"):
        to_api(workflow, OBJECT_INFO)


def test_the_document_is_left_alone():
    workflow = between(node(2, "ImageInvert", [], [("image", "IMAGE", 1)]))
    before = copy.deepcopy(workflow)
    to_api(workflow, OBJECT_INFO)
    assert workflow == before


def test_a_seeds_control_is_skipped():
    sampler = node(1, "KSampler", [5, "randomize", 30], [("model", "MODEL", None)])
    assert inputs_of(canvas([sampler]), "1") == {"seed": 5, "steps": 30}


def test_a_box_brings_four_numbers_along():
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    assert inputs_of(canvas([node(1, "ImageCropV2", [box, 1, 2, 3, 4, 9])]), "1") == {"crop_region": box, "zoom": 9}


def test_order_is_the_declared_one():
    assert inputs_of(canvas([node(1, "Ordered", [1, 2, 3, 4])]), "1") == {"a": 1, "b": 2, "c": 3, "d": 4}


def test_values_that_the_file_lacks_are_the_defaults():
    assert inputs_of(canvas([node(1, "ImageBlend", [])]), "1") == {"blend_factor": 0.5, "blend_mode": "normal"}
    assert inputs_of(canvas([node(1, "ImageBlend", [0.25, None])]), "1") == {
        "blend_factor": 0.25,
        "blend_mode": "normal",
    }
    assert inputs_of(canvas([node(1, "SaveVideo", ["v"])]), "1") == {
        "filename_prefix": "v",
        "format": "auto",
        "format.codec": "auto",
        "quality": 7,
    }


def test_values_below_a_dynamic_combo_follow_it():
    assert inputs_of(canvas([node(1, "SaveVideo", ["v", "mp4", "h264", 12.5, True, 3])]), "1") == {
        "filename_prefix": "v",
        "format": "mp4",
        "format.codec": "h264",
        "format.codec.crf": 12.5,
        "format.codec.two_pass": True,
        "quality": 3,
    }
    assert inputs_of(canvas([node(1, "SaveVideo", ["v", "mp4", "auto", 3])]), "1")["quality"] == 3


def test_names_in_the_file_decide_where_its_order_is_another():
    odd = node(1, "KSampler", [5, "button", 30])
    odd["widgets_values_named"] = {"seed": 5, "a button": "button", "steps": 30}
    assert inputs_of(canvas([odd]), "1") == {"seed": 5, "steps": 30}
    # Where the order is the expected one, the plain list counts, as in the editor.
    edited = node(1, "KSampler", [6, "fixed", 30])
    edited["widgets_values_named"] = {"seed": 5, "control_after_generate": "fixed", "steps": 30}
    assert inputs_of(canvas([edited]), "1") == {"seed": 6, "steps": 30}


def test_nodes_that_save_their_widgets_by_name():
    stored = node(1, "KSampler") | {"widgets_values": {"steps": 3, "seed": 4, "preview": {}}}
    assert inputs_of(canvas([stored]), "1") == {"seed": 4, "steps": 3}


def test_values_of_inputs_that_are_sockets_by_now_are_skipped():
    assert inputs_of(canvas([node(1, "Forced", ["old", 0.75])]), "1") == {"strength": 0.75}
    assert inputs_of(canvas([node(1, "Forced", [0.75])]), "1") == {"strength": 0.75}


def test_a_widget_made_into_an_input_keeps_its_place_and_takes_the_link():
    workflow = canvas(
        [
            node(1, "KSampler", [5, "fixed", 30], outputs=("INT",)),
            node(2, "EmptyImage", [8, 4], [("width", "INT", 1, "width")]),
        ],
        [(1, 1, 0, 2, 0, "INT")],
    )
    assert inputs_of(workflow, "2") == {"width": ["1", 0], "height": 4}


def test_lists_as_values_are_told_from_links():
    assert inputs_of(canvas([node(1, "SaveImage", [["a", 0]])]), "1") == {"filename_prefix": {"__value__": ["a", 0]}}


def test_images_of_a_growing_input():
    workflow = canvas(
        [
            node(1, "EmptyImage", [8, 4]),
            node(2, "BatchImagesNode", [], [("images.image0", "IMAGE", 1), ("images.image1", "IMAGE", None)]),
        ],
        [(1, 1, 0, 2, 0, "IMAGE")],
    )
    assert inputs_of(workflow, "2") == {"images.image0": ["1", 0]}


def test_notes_are_left_out_and_reroutes_looked_through():
    reroute = node(2, "Reroute", [], [("", "*", 1)])
    workflow = between(reroute, extra=[node(7, "Note", ["hello"]), node(8, "MarkdownNote", ["hello"])])
    assert to_api(workflow, OBJECT_INFO).keys() == {"1", "3"}
    assert inputs_of(workflow, "3")["images"] == ["1", 0]


def test_a_primitive_gives_its_value_also_through_a_reroute():
    workflow = canvas(
        [
            node(1, "PrimitiveNode", [77, "fixed"], outputs=("INT",)),
            node(2, "Reroute", [], [("", "*", 2)]),
            node(3, "EmptyImage", [8, 4], [("width", "INT", 1, "width"), ("height", "INT", 3, "height")]),
        ],
        [(1, 1, 0, 3, 0, "INT"), (2, 1, 0, 2, 0, "*"), (3, 2, 0, 3, 1, "INT")],
    )
    assert to_api(workflow, OBJECT_INFO).keys() == {"3"}
    assert inputs_of(workflow, "3") == {"width": 77, "height": 77}


def test_a_muted_node_and_links_from_it_are_left_out():
    muted = between(node(2, "ImageInvert", [], [("image", "IMAGE", 1)], mode=2))
    assert to_api(muted, OBJECT_INFO).keys() == {"1", "3"}
    assert inputs_of(muted, "3") == {"filename_prefix": "x"}


def test_a_bypassed_node_hands_on_its_input():
    bypassed = between(node(2, "ImageInvert", [], [("image", "IMAGE", 1)], mode=4))
    assert to_api(bypassed, OBJECT_INFO).keys() == {"1", "3"}
    assert inputs_of(bypassed, "3")["images"] == ["1", 0]


def test_a_bypassed_node_chooses_the_first_input_of_the_type():
    middle = node(2, "ImageBlend", [0.5, "normal"], [("image1", "IMAGE", None), ("image2", "IMAGE", 1)], mode=4)
    assert "images" not in inputs_of(between(middle), "3"), "the input at the same place comes first, linked or not"
    second = copy.deepcopy(middle)
    second["inputs"] = [{"name": "blend_factor", "type": "FLOAT", "link": None}, *reversed(second["inputs"])]
    assert "images" not in inputs_of(between(second), "3"), "the declared order counts, not the file's"


def test_a_bypassed_node_without_an_input_of_the_type_hands_on_nothing():
    middle = node(2, "MaskToImage", [], [("mask", "MASK", 1)], mode=4)
    assert inputs_of(between(middle), "3") == {"filename_prefix": "x"}


@pytest.mark.parametrize(
    ("one", "other", "fits"),
    [
        ("IMAGE", "IMAGE", True),
        ("IMAGE", "MASK", False),
        ("*", "MASK", True),
        ("A,b", "B,c", True),
        ("A,b", "c", False),
    ],
)
def test_types_that_connect(one, other, fits):
    assert connects(one, other) is fits


def test_loose_ends_are_left_out():
    workflow = between(node(2, "ImageInvert", [], [("image", "IMAGE", 99)]))
    assert inputs_of(workflow, "2") == {}


def test_a_loop_of_reroutes_is_refused():
    workflow = canvas(
        [
            node(1, "Reroute", [], [("", "*", 2)]),
            node(2, "Reroute", [], [("", "*", 1)]),
            node(3, "ImageInvert", [], [("image", "IMAGE", 3)]),
        ],
        [(1, 1, 0, 2, 0, "*"), (2, 2, 0, 1, 0, "*"), (3, 2, 0, 3, 0, "IMAGE")],
    )
    with pytest.raises(WorkflowError, match="leads back to itself"):
        to_api(workflow, OBJECT_INFO)


# subgraphs


def subgraph(nodes, links, inputs=(), outputs=(), key="sub"):
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return {
        "id": key, "name": key, "nodes": nodes, "links": [dict(zip(names, link, strict=True)) for link in links],
        "inputNode": {"id": -10}, "outputNode": {"id": -20},
        "inputs": [{"id": name, "name": name, "type": type_, "linkIds": ids} for name, type_, ids in inputs],
        "outputs": [{"id": name, "name": name, "type": type_, "linkIds": ids} for name, type_, ids in outputs],
    }  # fmt: skip


def scaled(**host):
    """An image into a subgraph that inverts and scales it, whose width is shown on the outside."""
    inside = subgraph(
        [
            node(11, "ImageInvert", [], [("image", "IMAGE", 1)]),
            node(12, "ImageScale", ["area", 64, 32], [("image", "IMAGE", 2), ("width", "INT", 4, "width")]),
        ],
        [
            (1, -10, 0, 11, 0, "IMAGE"),
            (2, 11, 0, 12, 0, "IMAGE"),
            (3, 12, 0, -20, 0, "IMAGE"),
            (4, -10, 1, 12, 1, "INT"),
        ],
        inputs=[("image", "IMAGE", [1]), ("wide", "INT", [4])],
        outputs=[("IMAGE", "IMAGE", [3])],
    )
    outside = node(2, "sub", [], [("image", "IMAGE", 1), ("wide", "INT", None, "wide")]) | host
    return between(outside) | {"definitions": {"subgraphs": [inside]}}


def test_a_subgraph_is_opened():
    answer = to_api(scaled(), OBJECT_INFO)
    assert answer.keys() == {"1", "2:11", "2:12", "3"}
    assert answer["2:11"]["inputs"] == {"image": ["1", 0]}
    assert answer["2:12"]["inputs"] == {"image": ["2:11", 0], "upscale_method": "area", "width": 64, "height": 32}
    assert answer["3"]["inputs"]["images"] == ["2:12", 0]


@pytest.mark.parametrize(
    "host",
    [
        {"widgets_values": [48]},
        {"widgets_values": [48], "properties": {"proxyWidgets": [["12", "width"]]}},
        {"widgets_values": [48], "properties": {"proxyWidgets": [["-1", "wide"]]}},
        {"widgets_values": [16, 48], "properties": {"proxyWidgets": [["12", "height"], ["12", "width"]]}},
    ],
)
def test_what_the_node_of_a_subgraph_shows_goes_before_what_is_inside(host):
    answer = to_api(scaled(**host), OBJECT_INFO)
    assert answer["2:12"]["inputs"]["width"] == 48
    assert answer["2:12"]["inputs"]["height"] == (16 if len(host["widgets_values"]) == 2 else 32)


def test_a_primitive_does_not_reach_into_a_subgraph():
    workflow = scaled(widgets_values=[48])
    workflow["nodes"][1]["inputs"][1]["link"] = 5
    workflow["nodes"].append(node(5, "PrimitiveNode", [96, "fixed"], outputs=("INT",)))
    workflow["links"].append([5, 5, 0, 2, 1, "INT"])
    assert inputs_of(workflow, "2:12")["width"] == 64


@pytest.mark.parametrize(("mode", "images"), [(2, None), (4, ["1", 0])])
def test_a_muted_or_bypassed_subgraph(mode, images):
    answer = to_api(scaled(mode=mode), OBJECT_INFO)
    assert answer.keys() == {"1", "3"}
    assert answer["3"]["inputs"].get("images") == images


def test_two_uses_of_a_subgraph_inside_another():
    inner = scaled()["definitions"]["subgraphs"][0]
    outer = subgraph(
        [
            node(21, "sub", [48], [("image", "IMAGE", 1), ("wide", "INT", None, "wide")]),
            node(22, "sub", [24], [("image", "IMAGE", 2), ("wide", "INT", 4, "wide")]),
        ],
        [
            (1, -10, 0, 21, 0, "IMAGE"),
            (2, 21, 0, 22, 0, "IMAGE"),
            (3, 22, 0, -20, 0, "IMAGE"),
            (4, -10, 1, 22, 1, "INT"),
        ],
        inputs=[("image", "IMAGE", [1]), ("size", "INT", [4])],
        outputs=[("IMAGE", "IMAGE", [3])],
        key="outer",
    )
    host = node(2, "outer", [], [("image", "IMAGE", 1), ("size", "INT", None, "size")])
    workflow = between(host) | {"definitions": {"subgraphs": [outer, inner]}}
    answer = to_api(workflow, OBJECT_INFO)
    assert answer.keys() == {"1", "2:21:11", "2:21:12", "2:22:11", "2:22:12", "3"}
    assert [answer[key]["inputs"]["width"] for key in ("2:21:12", "2:22:12")] == [48, 24]
    assert answer["2:22:11"]["inputs"] == {"image": ["2:21:12", 0]}
    assert answer["3"]["inputs"]["images"] == ["2:22:12", 0]
    workflow["nodes"][1]["widgets_values"] = [12]
    assert inputs_of(workflow, "2:22:12")["width"] == 12
    assert node_classes(workflow) == {"EmptyImage", "SaveImage", "ImageInvert", "ImageScale"}


def test_a_subgraph_in_itself_is_refused():
    workflow = scaled()
    workflow["definitions"]["subgraphs"][0]["nodes"].append(node(13, "sub"))
    with pytest.raises(WorkflowError, match="contains itself"):
        to_api(workflow, OBJECT_INFO)


# what cannot be converted


def test_missing_nodes_are_named_unless_they_do_not_run():
    workflow = between(node(2, "FromAnotherPack", [], [("image", "IMAGE", 1)]))
    with pytest.raises(WorkflowError, match=r"does not have these nodes: FromAnotherPack\. Install the packs"):
        to_api(workflow, OBJECT_INFO)
    workflow["nodes"][1]["mode"] = 4
    assert inputs_of(workflow, "3")["images"] == ["1", 0]


def test_group_nodes_are_named():
    with pytest.raises(WorkflowError, match=r"group nodes.*workflow>Two nodes.*Export \(API\)"):
        to_api(between(node(2, "workflow>Two nodes", [], [("image", "IMAGE", 1)])), OBJECT_INFO)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("Load3D", ["none"], "its image holds a value that the browser makes"),
        ("CLIPTextEncode", ["a {red|blue} horse"], r"its text holds '\{red\|blue\}', a choice or a comment"),
        ("CLIPTextEncode", ["a horse // not a cow"], "its text holds '//'"),
        ("CLIPTextEncode", ["a /* red */ horse"], r"its text holds '/\*'"),
        ("CLIPTextEncode", [r"\{braces\}"], "its text holds"),
        ("SaveImage", ["%date:yyyy%/a"], "its filename_prefix holds '%date:yyyy%'"),
        ("SaveImage", ["%Size.width%"], "its filename_prefix holds '%Size.width%'"),
    ],
)
def test_what_the_browser_works_out_is_refused(kind, values, message):
    with pytest.raises(WorkflowError, match=rf"^Node 4 \({kind}\).*{message}.*Workflow > Export \(API\)"):
        to_api(canvas([node(4, kind, values)]), OBJECT_INFO)


@pytest.mark.parametrize("text", ["{open", "closed}", "a | b", "%", "50% and {", "\\n", "a / b"])
def test_prompts_that_the_browser_sends_as_they_are(text):
    assert inputs_of(canvas([node(1, "CLIPTextEncode", [text])]), "1") == {"text": text}


@pytest.mark.parametrize("text", ["%year%_%width%", "{a|b}", "50%.5%", "a//b"])
def test_file_names_that_the_browser_sends_as_they_are(text):
    assert inputs_of(canvas([node(1, "SaveImage", [text])]), "1") == {"filename_prefix": text}


@pytest.mark.parametrize(
    "damage",
    [
        lambda document: document["nodes"][2].update(inputs=[{"link": 2}]),
        lambda document: document["links"].append(3),
        lambda document: document.update(definitions={"subgraphs": [{}]}),
        lambda document: document["nodes"][0].update(inputs=7),
    ],
)
def test_damage_is_named(damage):
    workflow = between(node(2, "ImageInvert", [], [("image", "IMAGE", 1)]))
    damage(workflow)
    with pytest.raises(WorkflowError, match="The workflow is damaged"):
        to_api(workflow, OBJECT_INFO)


def test_it_can_be_sent():
    json.dumps(to_api(scaled(), OBJECT_INFO), allow_nan=False)
