"""Weights lie where the host can stream them from: in the tensors that its own loader made."""

import json
import threading
from pathlib import Path

import comfy.memory_management
import pytest
import tiny
import torch
from happyhorse_pack.happyhorse_core.errors import CheckpointError
from happyhorse_pack.happyhorse_core.weights.tensors import TensorSource
from happyhorse_pack.nodes.host import files, load, weights
from happyhorse_pack.nodes.host.fill import check_tensors
from happyhorse_pack.nodes.host.text_encoder import load_clip
from happyhorse_pack.nodes.host.vae import load_video_vae
from safetensors import safe_open
from safetensors.torch import load_file, save_file

LARGE = 2**10
"""Bytes from which a weight of the tiny models counts as large."""
SLICE = "_comfy_tensor_file_slice"


def path_of(kind: str, name: str) -> str:
    return files.resolve_entry(kind, name, "name")


def file_places(folder: Path) -> dict[str, tuple[Path, int, int, str]]:
    """Tensor -> file, offset, length and dtype, from the headers themselves."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else [folder]:
        length = int.from_bytes(path.read_bytes()[:8], "little")
        header = json.loads(path.read_bytes()[8 : 8 + length])
        for name, fields in header.items():
            if name != "__metadata__":
                begin, end = fields["data_offsets"]
                found[name] = (path, 8 + length + begin, end - begin, fields["dtype"])
    return found


def in_bf16(source: Path, target: Path, prefix: str = "") -> Path:
    """The tensors of a folder of shards in two files of bfloat16, with their index."""
    target.mkdir(parents=True)
    tensors = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors |= {name: tensor.bfloat16() for name, tensor in load_file(path).items() if name.startswith(prefix)}
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, target / file)
        places |= dict.fromkeys(part, file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return target


def check_slices(module: torch.nn.Module, places: dict, prefix: str = "") -> int:
    """Each large tensor that kept its file's dtype carries its place; returns how many there were."""
    count = 0
    dtypes = {"BF16": torch.bfloat16, "F32": torch.float32}
    for name, tensor in module.state_dict().items():
        _, offset, size, dtype = places[prefix + name]
        if tensor.nbytes < LARGE or dtypes[dtype] != tensor.dtype:
            continue
        place = getattr(tensor.untyped_storage(), SLICE, None)
        assert place is not None, name
        assert (place.offset, place.size) == (offset, size), name
        assert tensor.storage_offset() == 0
        assert tensor.is_contiguous()
        count += 1
    return count


@pytest.fixture
def handed_over(monkeypatch, dynamic_memory):
    """As on a GPU: layers keep the tensors that they are handed."""

    class Dynamic(load.comfy.model_patcher.ModelPatcher):
        def is_dynamic(self) -> bool:
            return True

    monkeypatch.setattr(load.comfy.model_patcher, "CoreModelPatcher", Dynamic)


def test_the_transformers_weights_carry_their_place_in_the_file(tmp_path, handed_over):
    folder = in_bf16(Path(path_of("diffusion_models", tiny.DISTILLED)), tmp_path / "distill")
    model = load.load_diffusion_model(str(folder), weight_dtype="bf16").model.diffusion_model
    places = file_places(folder)
    assert check_slices(model, places) > 8
    check_reading(model.block.layers[1].mlp.down_proj.weight, places["block.layers.1.mlp.down_proj.weight"][0])


def check_reading(weight: torch.Tensor, path: Path) -> None:
    """The host's own function reads it. Its native file handle wants a device, so the file is opened for it here."""
    storage, place = weight.untyped_storage(), getattr(weight.untyped_storage(), SLICE)
    destination = torch.zeros_like(weight)
    with path.open("rb") as file:
        setattr(storage, SLICE, place._replace(file_ref=file, lock=threading.Lock()))
        try:
            assert comfy.memory_management.read_tensor_file_slice_into(weight, destination)
        finally:
            setattr(storage, SLICE, place)
    assert torch.equal(weight, destination)
    assert destination.any()


def test_the_text_encoders_weights_carry_their_place(tmp_path, handed_over):
    source = Path(path_of("text_encoders", tiny.TEXT_ENCODER))
    folder = in_bf16(source, tmp_path / "t5gemma", "model.encoder.")
    for name in ("tokenizer.json", "config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    clip = load_clip(str(folder))
    assert check_slices(clip.cond_stage_model.encoder, file_places(folder), "model.encoder.") > 4


def test_the_autoencoders_weights_carry_their_place(tmp_path, dynamic_memory):
    released = tiny.video_vae()
    path = tmp_path / "turbo.safetensors"
    tensors = released.first_stage_model.turbo.state_dict()
    save_file({name: tensor.to(released.vae_dtype).contiguous() for name, tensor in tensors.items()}, path)
    vae = load_video_vae(str(path), None)
    assert check_slices(vae.first_stage_model.turbo, file_places(path)) > 4


def test_one_dict_for_all_shards(dynamic_memory):
    folder = Path(path_of("diffusion_models", tiny.DISTILLED))
    with weights.open_weights(folder) as source:
        tensors = weights.state_dict(source)
        assert type(tensors) is dict
        assert sorted(tensors) == sorted(file_places(folder))
        assert weights.source_paths(source) == [str(path) for path in sorted(folder.glob("*.safetensors"))]


def test_released_tensors_read_the_same_again(tmp_path):
    path = tmp_path / "one.safetensors"
    save_file({"a": torch.randn(64, 1024), "b": torch.randn(7)}, path)
    source = weights.open_weights(path)
    before = {name: source.read(name).clone() for name in source.names}
    for entry in source.entries.values():
        entry.release()
    assert all(torch.equal(source.read(name), before[name]) for name in before)


def test_a_copy_that_the_host_made_is_not_released(tmp_path, monkeypatch):
    """With --disable-mmap the host's tensors are no view of the file: dropping their pages would empty them."""
    monkeypatch.setattr(weights.comfy.utils, "DISABLE_MMAP", True)
    path = tmp_path / "one.safetensors"
    save_file({"a": torch.randn(64, 1024)}, path)
    source = weights.open_weights(path)
    before = source.read("a").clone()
    source.entries["a"].release()
    assert torch.equal(source.read("a"), before)


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_truncated_file_is_named(tmp_path, dynamic, request):
    if dynamic:
        request.getfixturevalue("dynamic_memory")
    path = tmp_path / "one.safetensors"
    save_file({"a": torch.randn(64, 64)}, path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"one\.safetensors: the file is incomplete"):
        weights.open_weights(path)


def test_a_dtype_that_the_host_has_no_name_for(tmp_path, dynamic_memory):
    path = tmp_path / "one.safetensors"
    header = json.dumps({"a": {"dtype": "F8_E8M0", "shape": [8], "data_offsets": [0, 8]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(CheckpointError, match=r"one\.safetensors: found dtype F8_E8M0, which this ComfyUI can't load"):
        weights.open_weights(path)


# Formats


def noted(note: dict, **extra: torch.Tensor) -> TensorSource:
    """A linear layer in a format of the host, or what claims to be one."""
    content = torch.frombuffer(bytearray(json.dumps(note).encode()), dtype=torch.uint8)
    tensors = {"weight": torch.zeros(8, 8, dtype=torch.int8), "comfy_quant": content, **extra}
    return TensorSource.of_tensors(Path("file"), {f"layer.{name}": tensor for name, tensor in tensors.items()})


def one_layer() -> torch.nn.Module:
    return torch.nn.ModuleDict({"layer": torch.nn.Linear(16, 8, bias=False)})


def test_tensors_of_a_format_belong_to_it():
    parts = {name: torch.ones(8) for name in ("weight_s_rel", "weight_s_channel", "weight_codebook")}
    check_tensors(noted({"format": "asym_w4a8_int8"}, **parts), one_layer(), quantised=True)
    check_tensors(noted({"format": "int8_tensorwise"}, weight_scale=torch.ones(())), one_layer(), quantised=True)


def test_a_tensor_that_belongs_to_no_format_is_refused():
    with pytest.raises(CheckpointError, match=r"1 tensors are not expected: layer\.stray"):
        check_tensors(noted({"format": "int8_tensorwise"}, stray=torch.ones(())), one_layer(), quantised=True)


@pytest.mark.parametrize("note", [{"format": "w2a2"}, {}, []])
def test_a_format_that_the_host_does_not_know(note):
    with pytest.raises(CheckpointError, match=r"file: tensor layer\.comfy_quant: (found format 'w2a2'; this|expected)"):
        check_tensors(noted(note), one_layer(), quantised=True)


def test_an_orphan_header_reads_as_the_host_reads_it(tmp_path):
    """The same metadata, by whichever way a file is opened."""
    path = tmp_path / "one.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata={"happyhorse.role": "base"})
    with safe_open(path, "pt") as file:
        assert weights.open_weights(path).metadata == file.metadata()
