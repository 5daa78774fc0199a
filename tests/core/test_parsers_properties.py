"""Whatever a file holds, reading it ends in what it means or in one line that says what is wrong, and runs nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from happyhorse_core.describe.report import describe
from happyhorse_core.dit.load import inspect_transformer, load_transformer
from happyhorse_core.errors import LONGEST_MESSAGE, HappyHorseError
from happyhorse_core.text.config import TextEncoderConfig, detect_text_encoder
from happyhorse_core.text.load import load_text_encoder
from happyhorse_core.text.tokenizer import GemmaTokenizer
from happyhorse_core.video_vae.load import load_turbo_decoder
from happyhorse_core.weights.json_file import parse_object
from happyhorse_core.weights.safetensors_file import DTYPE_NAMES, SafetensorsFile
from happyhorse_core.weights.source import open_source
from tools.make_tiny_checkpoints import tokenizer_json
from tools.mutate import INDEX, KINDS, MARK, PART_OF, WEIGHTS, make, write_safetensors

FEW = settings(derandomize=True, database=None, deadline=None, max_examples=60)

# Lone surrogates and numbers that no 64 bits hold are JSON as well, for Python at least.
CHARACTERS = st.characters(codec=None)
TEXTS = st.text(CHARACTERS, max_size=12) | st.sampled_from(["\0", "\ud800", "../x", "model.safetensors", "F32", "U8"])
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, 2**64, 10**400, 1e308, -0.0])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=5)


def outcome(read: Callable[..., Any], *arguments: Any) -> Any:
    """What ``read`` gives; None where it refuses, in one line that every terminal and log can show."""
    try:
        return read(*arguments)
    except HappyHorseError as error:
        assert str(error).isprintable()
        assert 20 < len(str(error)) <= LONGEST_MESSAGE
        return None


@FEW
@given(st.binary(max_size=60) | st.text(CHARACTERS, max_size=60) | VALUES.map(json.dumps))
def test_any_text_is_an_object_or_refused(text: str | bytes) -> None:
    found = outcome(parse_object, text, "file.json")
    assert found is None or found == json.loads(text)


@FEW
@given(st.dictionaries(st.text(max_size=9), st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text()))
def test_objects_are_read_as_they_were_written(tree: dict[str, Any]) -> None:
    assert parse_object(json.dumps(tree), "file.json") == tree


@FEW
@given(OBJECTS | st.fixed_dictionaries({"weight_map": VALUES | OBJECTS, "metadata": VALUES}))
def test_any_index_is_refused_where_its_files_are_not_there(tree: Any) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / INDEX).write_text(json.dumps(tree), encoding="utf-8")
        assert outcome(open_source, folder) is None
        assert outcome(describe, Path(folder)) is None


SIZES = st.integers(0, 4) | NUMBERS
TENSORS = VALUES | st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(sorted(DTYPE_NAMES)) | VALUES,
        "shape": st.lists(SIZES, max_size=3) | VALUES,
        "data_offsets": st.lists(SIZES, min_size=2, max_size=2) | VALUES,
    }
)


@FEW
@given(st.dictionaries(TEXTS | st.just("__metadata__"), TENSORS, max_size=3), st.binary(max_size=8))
def test_any_header_gives_tensors_within_the_file_or_is_refused(header: dict[str, Any], data: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = write_safetensors(Path(folder) / WEIGHTS, header, data)
        file = outcome(SafetensorsFile, path)
        assert file is None or sum(entry.nbytes for entry in file.entries.values()) == len(data)
        for entry in () if file is None else file.entries.values():
            assert (tuple(entry.read().shape), entry.read().dtype) == (entry.shape, entry.dtype)
        if file is not None:
            file.close()


def encoder_shapes() -> dict[str, tuple[int, ...]]:
    names = ["pre_self_attn_layernorm.weight", "self_attn.q_proj.weight", "self_attn.k_proj.weight"]
    layer = {f"layers.0.{name}": (32, 32) for name in [*names, "mlp.gate_proj.weight"]}
    return layer | {"embed_tokens.weight": (40, 32), "norm.weight": (32,)}


TOKENIZER = tokenizer_json()
FIELDS = ["head_dim", "sliding_window", "layer_types", "rope_scaling", "rope_parameters", "rope_theta", "rms_norm_eps"]
FIELDS += ["encoder", "hidden_size", "query_pre_attn_scalar", "attn_logit_softcapping", "hidden_activation"]


@FEW
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
def test_any_config_gives_numbers_that_can_be_computed_with_or_is_refused(changes: dict[str, Any]) -> None:
    found = outcome(detect_text_encoder, encoder_shapes(), {"head_dim": 8} | changes, "config")
    if found is not None:
        assert isinstance(found, TextEncoderConfig)
        numbers = torch.tensor([found.query_scalar, found.softcap, found.norm_eps, found.rope_theta])
        assert (numbers.isfinite() & (numbers > 0)).all()
        assert all(window is None or 0 < window < 2**62 for window in found.windows)


@FEW
@given(
    st.sampled_from(
        ["model", "added_tokens", "normalizer", "pre_tokenizer", "vocab", "merges", "dropout", "unk_token"]
    ),
    VALUES | st.dictionaries(TEXTS, st.integers(0, 10), max_size=2),
)
def test_any_tokenizer_gives_ids_that_it_names_or_is_refused(field: str, value: Any) -> None:
    tree = json.loads(TOKENIZER)
    if field in tree:
        tree[field] = value
    elif isinstance(value, dict) and field == "vocab":
        tree["model"]["vocab"] |= value
    else:
        tree["model"][field] = value
    found = outcome(GemmaTokenizer.from_bytes, json.dumps(tree).encode())
    assert found is None or max(found.encode("A horse É\n\0")) <= found.highest_id


LOADS: dict[str, Callable[[Path], Any]] = {
    "text_encoder": lambda path: load_text_encoder(path).encode_prompt("a pony runs É"),
    "video_decoder": load_turbo_decoder,
    "transformer": lambda path: load_transformer(inspect_transformer(path)),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_and_hostile_files_end_in_a_line_and_run_nothing(kind: str) -> None:
    for seed in range(4):
        with TemporaryDirectory() as folder:
            path = make(kind, seed, Path(folder))
            outcome(LOADS[PART_OF[kind]], path)
            described = outcome(describe, path)
            assert described is None or str(described).encode()
            assert not (Path(folder) / MARK).exists()


def test_a_refusal_is_told_from_other_errors() -> None:
    def fails() -> None:
        raise ValueError("not ours, and no refusal")

    with pytest.raises(ValueError, match="not ours"):
        outcome(fails)
    assert outcome(parse_object, "[]", "x") is None
