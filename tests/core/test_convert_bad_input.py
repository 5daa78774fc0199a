"""Conversions that must not happen: the error says why, nothing stands under the final name, nothing else is left."""

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from convert_helpers import checksums, community_float8, saved, split_layout, tensors_of

from happyhorse_core.atomic import part_of
from happyhorse_core.convert.run import convert
from happyhorse_core.errors import CheckpointError, HappyHorseError, InputError, OutputError

WEIGHT = "block.layers.2.mlp.down_proj.weight"
NORM = "block.layers.3.attention.pre_norm.weight"


@pytest.fixture
def source(models: Path, tmp_path: Path) -> Path:
    """A folder of shards that a test may spoil."""
    return Path(shutil.copytree(models / "distill", tmp_path / "distill"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "new.safetensors"


def refused(
    error: type[HappyHorseError], source: Path, target: Path, *parts: str, left: tuple[str, ...] = (), **options: object
) -> None:
    """The conversion fails with such an error that says ``parts``; the folder holds ``left`` and no more."""
    with pytest.raises(error) as caught:
        convert(source, target, **options)
    for part in parts:
        assert part in str(caught.value)
    assert sorted(path.name for path in target.parent.iterdir()) == sorted(left)


def on_first_progress(act: Callable[[], None]) -> Callable:
    """A listener that acts once, while the tensors are on their way."""
    done = []

    def report(name: str, unit: str) -> Callable[[int, int], None]:
        def progress(count: int, total: int) -> None:
            if not done:
                done.append(act())

        return progress

    return report


# What is in the source


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "fp8-scaled", "nvfp4"])
def test_every_tensor_that_is_not_finite_is_named(source, target, dtype):
    tensors = tensors_of(source)
    tensors[WEIGHT].view(-1)[-1] = float("nan")
    tensors[NORM][0] = float("inf")
    tensors["adapter.text_embedder.bias"][1] = float("-inf")
    old = saved(source.parent / "old.safetensors", tensors)
    names = (WEIGHT, NORM, "adapter.text_embedder.bias")
    refused(CheckpointError, old, target, str(old), "3 of 59", *names, dtype=dtype, role="base")


def test_a_nan_in_a_stack_is_found_in_the_last_expert(source, target):
    tensors = tensors_of(source)
    tensors["block.layers.0.mlp.down_proj.weight"][-1, -1] = float("nan")
    old = saved(source.parent / "old.safetensors", tensors)
    refused(CheckpointError, old, target, "block.layers.0.mlp.down_proj.weight", dtype="fp8-scaled", role="base")


def test_numbers_that_plain_float8_has_no_room_for(source, target):
    tensors = tensors_of(source)
    tensors[WEIGHT][0, 0] = 500.0
    old = saved(source.parent / "old.safetensors", tensors)
    refused(CheckpointError, old, target, WEIGHT, "--dtype fp8-scaled", dtype="fp8", role="base")
    convert(old, target, dtype="fp8-scaled", role="base")
    found = tensors_of(target)
    assert found[WEIGHT].float().mul(found[f"{WEIGHT}_scale"])[0, 0] == pytest.approx(500, rel=1 / 16)


@pytest.mark.parametrize("dtype", ["fp8", "fp8-scaled", "nvfp4"])
@pytest.mark.parametrize("scaled", [True, False])
def test_float8_of_what_is_float8_already(source, target, dtype, scaled):
    tensors = community_float8(tensors_of(source))
    if not scaled:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("__fp8_scale")}
    old = saved(source.parent / "old.safetensors", tensors)
    refused(CheckpointError, old, target, "24 of 24 weights", "float8_e4m3fn already", dtype=dtype, role="base")
    convert(old, target, dtype="bf16", role="base")
    assert tensors_of(target)[WEIGHT].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["fp8", "fp8-scaled", "nvfp4"])
def test_rounding_what_is_in_four_bits_already(source, target, dtype):
    packed = source.parent / "packed.safetensors"
    convert(source, packed, dtype="nvfp4", role="base")
    refused(CheckpointError, packed, target, "24 of 24 weights are nvfp4 already", WEIGHT.split(".")[0], dtype=dtype)
    convert(packed, target, dtype="bf16")
    assert tensors_of(target)[WEIGHT].shape == tensors_of(source)[WEIGHT].shape


def test_a_scale_without_its_weight(source, target):
    tensors = community_float8(tensors_of(source))
    del tensors[WEIGHT]
    old = saved(source.parent / "old.safetensors", tensors)
    refused(CheckpointError, old, target, WEIGHT, role="base")
    tensors = tensors_of(source) | {"final_linear_text.weight_scale": torch.tensor(1.0)}
    old = saved(source.parent / "old.safetensors", tensors)
    parts = ("final_linear_text.weight_scale", "there is no weight")
    refused(CheckpointError, old, target, *parts, role="base")


@pytest.mark.parametrize("change", ["missing", "left over"])
def test_tensors_that_are_missing_or_left_over(source, target, change):
    tensors = tensors_of(source)
    if change == "missing":
        del tensors["final_norm_audio.weight"]
    else:
        tensors["final_norm_audio.bias"] = torch.zeros(3)
    old = saved(source.parent / "old.safetensors", tensors)
    refused(CheckpointError, old, target, "final_norm_audio", role="base")


def test_int8_of_experts_apart(source, target):
    tensors = split_layout(tensors_of(source))
    name = "block.layers.0.attention.linear_q_video.weight"
    weight = tensors.pop(name)
    tensors |= {f"{name}._data": weight.to(torch.int8), f"{name}._scale": torch.ones(weight.shape[0], 1)}
    old = saved(source.parent / "old.safetensors", tensors)
    refused(CheckpointError, old, target, "quantised by quanto", f"{name}._data", "bf16", role="base")


def test_a_folder_of_no_known_model(tmp_path, target):
    old = saved(tmp_path / "other.safetensors", {"some.weight": torch.zeros(2)})
    refused(CheckpointError, old, target, "no known model", "some.weight", "text-encoder")


def test_a_text_encoder_without_its_tokenizer(models, tmp_path, target):
    folder = Path(shutil.copytree(models / "t5gemma-9b-9b-ul2", tmp_path / "text"))
    (folder / "tokenizer.json").unlink()
    refused(CheckpointError, folder, target, "tokenizer.json")


# What was asked for


def test_a_role_that_nothing_tells(source, target):
    old = saved(source.parent / "old.safetensors", tensors_of(source))
    refused(InputError, old, target, "--role", "--role 1080p_sr")


def test_a_role_that_contradicts_the_metadata(source, target):
    old = saved(source.parent / "old.safetensors", tensors_of(source), **{"happyhorse.role": "540p_sr"})
    refused(CheckpointError, old, target, "540p_sr", "base", role="base")


def test_a_role_of_what_has_none(models, target):
    refused(InputError, models / "stable-audio-open-1.0", target, "--role", "audio-vae", role="base")


@pytest.mark.parametrize("part", ["turbo_vae/checkpoint-340000.ckpt", "stable-audio-open-1.0"])
def test_float8_of_an_autoencoder(models, target, part):
    refused(InputError, models / part, target, "--dtype", "bf16", dtype="fp8")


def test_another_kind_than_was_asked_for(models, target):
    refused(CheckpointError, models / "stable-audio-open-1.0", target, "transformer", kind="transformer")


# Where it is to go


def test_a_target_that_exists(source, target):
    target.write_bytes(b"precious")
    refused(OutputError, source, target, "--force", left=("new.safetensors",))
    assert target.read_bytes() == b"precious"


def test_a_forced_conversion_that_fails_leaves_the_old_target(source, target):
    target.write_bytes(b"precious")
    tensors = tensors_of(source)
    tensors[WEIGHT][0, 0] = float("nan")
    old = saved(source.parent / "old.safetensors", tensors)
    refused(CheckpointError, old, target, WEIGHT, left=("new.safetensors",), force=True, role="base")
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["new.bin", "new", "absent/new.safetensors"])
def test_a_target_that_can_not_be(source, target, name):
    with pytest.raises(OutputError, match=name):
        convert(source, target.parent / name)
    assert not list(target.parent.iterdir())


def test_a_target_that_is_a_folder(source, target):
    target.mkdir()
    refused(OutputError, source, target, "is a folder", left=("new.safetensors",), force=True)


@pytest.mark.parametrize("through_a_link", [True, False])
def test_a_target_that_is_the_source(source, target, through_a_link):
    old = saved(source.parent / "old.safetensors", tensors_of(source), **{"happyhorse.role": "base"})
    before = checksums(old)
    name = old
    if through_a_link:
        target.symlink_to(old)
        name = target
    with pytest.raises(OutputError, match="would be read"):
        convert(old, name, force=True)
    assert checksums(old) == before
    assert not list(name.parent.glob(".*.part"))


def test_a_folder_that_may_not_be_written_to(source, target):
    with pytest.raises(OutputError, match="writing failed"):
        convert(source, Path("/proc/new.safetensors"))


def test_of_two_conversions_into_one_file_the_one_that_ends_last_counts(source, target):
    report = on_first_progress(lambda: convert(source, target, dtype="fp8"))
    refused(OutputError, source, target, "--force", left=("new.safetensors",), report=report)
    report = on_first_progress(lambda: convert(source, target, dtype="nvfp4", force=True))
    convert(source, target, report=report, force=True)
    assert tensors_of(target)[WEIGHT].dtype == torch.bfloat16
    assert list(target.parent.iterdir()) == [target]


# What happens meanwhile


def changes(shard: Path) -> dict[str, Callable[[], object]]:
    content = shard.read_bytes()
    return {
        "grows": lambda: shard.write_bytes(content + b"x"),
        "is cut short": lambda: os.truncate(shard, len(content) // 2),
        "is replaced": lambda: (shard.unlink(), shard.write_bytes(content)),
        "is touched": lambda: os.utime(shard, ns=(1, 1)),
        "is deleted": shard.unlink,
    }


@pytest.mark.parametrize("change", ["grows", "is cut short", "is replaced", "is touched", "is deleted"])
@pytest.mark.parametrize("shard", [1, 3])
def test_a_source_that_changes(source, target, change, shard):
    path = source / f"model-0000{shard}-of-00003.safetensors"
    act = changes(path)[change]
    refused(CheckpointError, source, target, str(path), report=on_first_progress(act))


def test_a_disk_that_loses_what_was_written(source, target):
    def report(name: str, unit: str) -> Callable[[int, int], None]:
        def progress(count: int, total: int) -> None:
            if count == total:
                (part,) = target.parent.iterdir()
                os.truncate(part, part.stat().st_size - 1)

        return progress

    refused(OutputError, source, target, "incomplete", "check the disk", report=report)


def test_a_target_that_somebody_writes_meanwhile(source, target):
    def write() -> None:
        target.write_bytes(b"precious")

    refused(OutputError, source, target, "--force", left=("new.safetensors",), report=on_first_progress(write))
    assert target.read_bytes() == b"precious"


def test_an_interruption(source, target):
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, target, report=on_first_progress(interrupt))
    assert not list(target.parent.iterdir())


def test_a_file_that_may_not_grow_further(source, target):
    """A limit on a file's size ends the writing as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, hard))
    try:
        refused(OutputError, source, target, str(target), "no room")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_without_room(source, small_disk):
    (small_disk / "filler").write_bytes(bytes(3_500_000))
    refused(OutputError, source, small_disk / "new.safetensors", "1.35 MiB", "free", left=("filler",))


def test_a_disk_that_fills_up(source, small_disk):
    def fill() -> None:
        with pytest.raises(OSError, match="No space"):
            (small_disk / "filler").write_bytes(bytes(8_000_000))

    target = small_disk / "new.safetensors"
    refused(OutputError, source, target, str(target), "no room", left=("filler",), report=on_first_progress(fill))


@pytest.mark.parametrize("name", ["new.safetensors", "new [1].safetensors"])
def test_what_a_killed_process_left_is_deleted_and_nothing_else(source, target, name):
    others = [part_of(target.with_name(other)) for other in ("new 1.safetensors", "new.safetensors.safetensors")]
    for part in (part_of(target.with_name(name)), part_of(target.with_name(name)), *others):
        part.write_bytes(bytes(10))
    convert(source, target.with_name(name))
    assert set(target.parent.iterdir()) == {target.with_name(name), *others}


def test_a_dtype_that_the_format_has_no_name_for(models, tmp_path, target):
    content = torch.load(models / "Wan2.2-TI2V-5B" / "Wan2.2_VAE.pth", weights_only=True)
    content["decoder.odd"] = torch.zeros(2, dtype=torch.complex64)
    torch.save(content, tmp_path / "Wan2.2_VAE.pth")
    refused(CheckpointError, tmp_path / "Wan2.2_VAE.pth", target, "decoder.odd", "complex64")
