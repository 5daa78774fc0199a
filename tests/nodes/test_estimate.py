"""Work that memory can't hold is refused before it starts, by the fields that ask for it; long work is said."""

import resource
import time

import psutil
import pytest
import tiny
import torch
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.errors import InputError
from happyhorse_pack.happyhorse_core.finite import is_finite
from happyhorse_pack.nodes.host import estimate

LARGEST = {"width": 4096, "height": 4096, "seconds": 30.0}
LONG_BATCH = {"width": 448, "height": 256, "seconds": 5.0, "batch_size": 64}


def resident_peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many bytes of free memory."""
    no_swap, memory = psutil.swap_memory()._replace(free=0), psutil.virtual_memory()

    def of(free):
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=int(free)))
        monkeypatch.setattr(psutil, "swap_memory", lambda: no_swap)
        monkeypatch.setattr(estimate.sys, "platform", "linux")

    return of


def refused(node, **inputs):
    """The error of a node, which came within a second and before any memory was taken."""
    before, start = resident_peak(), time.monotonic()
    with pytest.raises(InputError) as error:
        tiny.run(node, **inputs)
    assert time.monotonic() - start < 5, "a second, on a machine that does nothing else"
    assert resident_peak() - before < 500e6
    text = str(error.value)
    assert "\n" not in text and "GiB are free" in text
    return text


def test_an_empty_latent_is_refused_by_its_fields(machine):
    machine(7e9)
    text = refused(pack.HappyHorseEmptyLatent, **LARGEST)
    assert text.startswith("width, height, seconds, batch_size: found 1 x 749 frames of 4096 x 4096 to be sampled")
    text = refused(pack.HappyHorseEmptyLatent, **LARGEST, batch_size=64)
    assert text.startswith("width, height, seconds, batch_size: found 64 x 749 frames of 4096 x 4096 to be sampled")
    size = {"width": 96, "height": 64, "seconds": 1.0, "batch_size": 3}
    made = tiny.run(pack.HappyHorseEmptyLatent, **size)[0]["samples"].unbind()
    needed = estimate.LATENTS * sum(stream.nbytes for stream in made)
    machine(needed)
    assert tiny.run(pack.HappyHorseEmptyLatent, **size)
    machine(needed - 1)
    refused(pack.HappyHorseEmptyLatent, **size)


def test_what_an_empty_latent_will_take_as_frames_is_said_at_once(machine, caplog):
    machine(8e9)
    tiny.run(pack.HappyHorseEmptyLatent, **LONG_BATCH)
    assert "64 x 125 frames of 448 x 256 take 10.3 GiB of memory once they are decoded" in caplog.text
    caplog.clear()
    machine(12e9)
    tiny.run(pack.HappyHorseEmptyLatent, **LONG_BATCH)
    assert not caplog.records


def test_frames_that_do_not_fit_are_not_decoded(machine):
    machine(8e9)
    vaes = {"vae": tiny.video_vae(), "audio_vae": tiny.audio_vae()}
    text = refused(pack.HappyHorseDecode, latent=tiny.run(pack.HappyHorseEmptyLatent, **LONG_BATCH)[0], **vaes)
    assert text.startswith("latent: found 64 x 125 frames of 448 x 256 to be decoded, which takes 10.3 GiB")


def test_what_fits_exactly_is_decoded(machine):
    vaes = {"vae": tiny.video_vae(), "audio_vae": tiny.audio_vae()}
    latent = tiny.empty(batch_size=2)
    machine(10**12)
    frames = tiny.run(pack.HappyHorseDecode, latent=latent, **vaes)[0]
    machine(frames.nbytes)
    again = tiny.run(pack.HappyHorseDecode, latent=latent, **vaes)[0]
    assert again.shape == frames.shape
    machine(frames.nbytes - 1)
    refused(pack.HappyHorseDecode, latent=latent, **vaes)


def test_a_picture_that_does_not_fit_is_not_encoded(machine):
    latent = tiny.empty(width=2048, height=2048, frames=5)
    inputs = {"vae": tiny.video_vae(), "image": tiny.picture(), "latent": latent}
    machine(1e7)
    text = refused(pack.HappyHorseImageToVideo, **inputs)
    assert text.startswith("latent: found a picture of 2048 x 2048 to be encoded")


@pytest.mark.parametrize("sampler", ["distilled", "base"])
def test_steps_that_do_not_fit_are_refused(machine, sampler):
    latent = tiny.run(pack.HappyHorseEmptyLatent, width=1024, height=1024, seconds=10.0, batch_size=2)[0]
    machine(3e8)
    inputs = {"positive": tiny.positive(), "latent": latent, "seed": 1, "steps": 2}
    if sampler == "distilled":
        text = refused(pack.HappyHorseSampler, model=tiny.model(), **inputs)
    else:
        text = refused(
            pack.HappyHorseBaseSampler, model=tiny.model(tiny.BASE), negative=tiny.positive("rain"), **inputs
        )
    assert text.startswith("latent: found 2 x 249 frames of 1024 x 1024 to be sampled")


def test_steps_of_a_larger_clip_that_do_not_fit_are_refused(machine):
    machine(5e8)
    latent = tiny.empty(frames=41)
    latent["samples"].unbind()[0].fill_(0.1)
    model = tiny.model("daVinci-MagiHuman/540p_sr")
    inputs = {"sr_model": model, "latent": latent, "positive": tiny.positive(), "seed": 1, "steps": 2}
    text = refused(pack.HappyHorseSuperResolution, width=4096, height=4096, **inputs)
    assert text.startswith("width, height: found 1 x 41 frames of 4096 x 4096 to be sampled")
    out = tiny.run(pack.HappyHorseSuperResolution, width=128, height=96, **inputs)[0]
    assert tiny.streams(out)[0].shape[3:] == (6, 8)


def test_a_card_is_left_to_its_own_allocator(machine):
    machine(0)
    estimate.require_room(1, torch.device("cuda"), "latent", "anything")


def checked_steps(caplog, **changes):
    """What is logged of a check of steps."""
    caplog.clear()
    settings = {"video": (1, 48, 188, 64, 64), "audio": (1, 64, 749), "texts": [300], "steps": 8} | changes
    estimate.check_sampling(tiny.model(), fields="latent", **settings)
    return caplog.text


def test_steps_that_take_long_are_said_once(caplog):
    assert checked_steps(caplog, steps=1, video=(1, 48, 3, 4, 6)) == ""
    text = checked_steps(caplog, steps=100_000, texts=[300, 30])
    assert "HappyHorse: the steps will take about" in text
    tokens = 188 * 32 * 32 + 749 + 300
    assert f"200000 calls of the model with up to {tokens:,} tokens on cpu" in text
    assert len(caplog.records) == 1


def test_numbers_are_judged_without_a_copy():
    large = torch.zeros(300_000_000)
    before = resident_peak()
    assert is_finite(large)
    assert resident_peak() - before < 100e6
    for bad in (float("nan"), float("inf"), -float("inf")):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2):
            values = torch.zeros(7)
            values[3] = bad
            assert not is_finite(values.to(dtype))
    assert is_finite(torch.zeros(0)) and is_finite(torch.tensor([1, 2])) and is_finite(torch.tensor(3.0))
