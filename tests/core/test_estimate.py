"""What is said of a clip before the work starts, beside what is counted and measured while it is done."""

import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peak_memory import PeakMemory
from test_generate import command
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stages import Size, released_decoder
from happyhorse_core import memory
from happyhorse_core.dit.memory import activation_bytes, sampling_bytes
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.estimate import LONG, Work, duration, seconds_of, time_warning, tokens_of, work_of_call
from happyhorse_core.geometry import ClipShape, latent_frames
from happyhorse_core.ops import TorchOps
from happyhorse_core.pipeline import to_bytes
from happyhorse_core.sampling.loop import denoise
from happyhorse_core.sampling.schedule import flow_sigmas
from happyhorse_core.sampling.solver import DistilledSolver, Solver, UniPC
from happyhorse_core.video_vae.image_encoder import DownStage, ImageEncoderConfig, WanImageEncoder, encoding_bytes
from happyhorse_core.video_vae.tiling import OVERLAP, decode_tiles, least_bytes
from happyhorse_core.video_vae.turbo_decoder import TurboDecoder

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


class ProductOps(TorchOps):
    """Attention as its two products, which the counter of operations knows on every device."""

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor, options: object = None) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        return (q @ k.transpose(2, 3) @ v).transpose(1, 2).flatten(2)


class FlashOps(TorchOps):
    """Attention takes no memory but for its result."""

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor, options: object = None) -> Tensor:
        return q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("size", "local", "radius"),
    [
        (Size(256, 2, 64, 96, 4, 7), (), 11),
        (Size(640, 5, 448, 256, 5, 31), (), 11),
        (Size(640, 5, 96, 64, 9, 31), (0, 2, 3), 2),
        (Size(5120, 2, 448, 256, 32, 300), (), 11),
    ],
)
def test_operations_are_those_that_are_counted(size: Size, local: tuple[int, ...], radius: int, batch: int) -> None:
    config = replace(size.config, local_attn_layers=local, frame_receptive_field=radius)
    model = HappyHorseTransformer(config, operations=ProductOps, dtype=torch.bfloat16, device="meta")
    inputs = [torch.empty(batch, *x.shape[1:], device="meta") for x in size.inputs(torch.device("meta"))]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    video, audio, text = inputs
    tokens = tokens_of(video.shape, audio.shape, text.shape[1])
    assert tokens.total == size.tokens
    work = work_of_call(config, tokens) * batch
    assert work.total == pytest.approx(counter.get_total_flops(), rel=0.001)
    assert work_of_call(replace(config, local_attn_layers=()), tokens, local) * batch == work


def test_time_is_in_seconds_of_this_machine() -> None:
    side = 768
    matrix = torch.rand(side, side)
    matrix @ matrix
    times = []
    for _ in range(3):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    # A busy machine is several times slower at one moment than at another; milliseconds would be a thousand.
    assert 1 / 30 < seconds_of(Work(2 * side**3, 0), 128, CPU, torch.float32) / min(times) < 30
    one = seconds_of(Work(10**12, 0), 128, CPU, torch.float32)
    assert 1 / 30 < seconds_of(Work(0, 10**12), 128, CPU, torch.float32) / one < 30


def test_only_work_that_takes_long_is_warned_of() -> None:
    rate = 10**9 / seconds_of(Work(10**9, 0), 128, CPU, torch.float32)
    settings = {"head_dim": 128, "device": CPU, "dtype": torch.float32}
    for part, said in ((1 / 30, False), (30, True)):
        warning = time_warning(Work(int(LONG * rate * part), 0), 5000, 8, **settings)
        assert (warning is not None) == said
    assert warning is not None and "5,000 tokens" in warning and "8 calls" in warning and "hours" in warning
    assert time_warning(Work(int(LONG * rate * 30), 0), 5000, 8, **settings, devices=1000) is None


def test_durations_are_in_a_unit_that_reads_well() -> None:
    said = [duration(60.0 * minutes) for minutes in (25, 119, 150, 60 * 49, 60 * 24 * 400, 60 * 24 * 365 * 3000)]
    assert said == ["about 25 minutes", "about 119 minutes", "about 2 hours", "about 2 days", "about 400 days"] + [
        "about 2,998 years"
    ]


def test_latents_are_as_large_as_said() -> None:
    shape = ClipShape(96, 64, 10)
    made = [torch.zeros(1, *size) for size in (shape.video_latent, shape.audio_latent)]
    assert shape.latent_bytes == sum(x.nbytes for x in made)


@pytest.mark.parametrize("multistep", [True, False])
@pytest.mark.parametrize("hidden", [256, 1280], ids=["latents decide", "activations decide"])
def test_memory_of_the_steps_is_what_they_hold(hidden: int, multistep: bool) -> None:
    size = Size(hidden, 2, 896, 512, 32, 300)
    model = HappyHorseTransformer(size.config, operations=FlashOps, dtype=torch.bfloat16, device="meta")
    sigmas, shape = flow_sigmas(6), ClipShape(size.width, size.height, size.audio)

    def solver() -> Solver:
        if multistep:
            return UniPC(sigmas)
        return DistilledSolver(sigmas, lambda index, like: torch.empty_like(like))

    with torch.inference_mode(), PeakMemory() as counted:
        video, audio, text = size.inputs(torch.device("meta"))
        denoise(lambda v, a, sigma: model(v, a, text), video, audio, sigmas, solver(), solver())
    said = sampling_bytes(activation_bytes(size.tokens, hidden), shape.latent_bytes, multistep=multistep)
    assert said == pytest.approx(counted.peak, rel=0.3)
    assert said > shape.latent_bytes * 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("latent", "thinner"), [((9, 16, 28), 1), ((2, 48, 64), 16), ((14, 48, 64), 16)])
def test_no_less_memory_decodes_a_clip(latent: tuple[int, int, int], thinner: int, dtype: torch.dtype) -> None:
    """In a decoder of fewer channels the pixels decide, as they do in the released one at larger sizes."""
    config = released_decoder()
    stages = tuple(replace(stage, channels=stage.channels // thinner) for stage in config.stages)
    config = replace(config, stages=stages, mid_channels=stages[0].channels)
    decoder = TurboDecoder(config, operations=TorchOps, dtype=dtype, device="meta")
    tile = min(latent[1], 2 * OVERLAP), min(latent[2], 2 * OVERLAP)
    with torch.inference_mode(), PeakMemory() as counted:
        values = torch.empty(1, 48, *latent, device="meta", dtype=dtype)
        for chunk in decode_tiles(decoder, values, tile):
            # What the end of ``to_bytes`` would do, which is to bring them to the CPU, can't be done here.
            chunk[0].to(torch.float32, copy=True).to(torch.uint8)
    said = least_bytes(config, *latent, dtype.itemsize)
    assert 0.3 * counted.peak < said <= 1.05 * counted.peak


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_no_less_memory_encodes_a_picture(dtype: torch.dtype) -> None:
    stages = (DownStage(160, 2, True, False), DownStage(320, 2, True, True))
    config = ImageEncoderConfig(160, (*stages, DownStage(640, 2, True, True), DownStage(640, 2, False, False)), 48)
    encoder = WanImageEncoder(config, operations=TorchOps, dtype=dtype, device="meta")
    with torch.inference_mode(), PeakMemory() as counted:
        encoder(torch.empty(1, 3, 1, 512, 896, device="meta", dtype=dtype))
    said = encoding_bytes(config, 512, 896, dtype.itemsize)
    assert 0.9 * counted.peak < said <= counted.peak


def test_pixels_become_bytes_as_before() -> None:
    pixels = torch.linspace(-1.2, 1.2, 3 * 2 * 4 * 6).reshape(3, 2, 4, 6)
    given = pixels.clone()
    expected = ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 3, 0)
    assert torch.equal(to_bytes(pixels), expected)
    assert torch.equal(pixels, given), "what it is given is left alone"


def first_line(models: Path, output: Path, *more: str) -> tuple[str, float]:
    """The first line on standard error that is no progress, and after how many seconds it came; then it is ended."""
    start = time.monotonic()
    process = subprocess.Popen(command(models, output, *more), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    line = next(line for line in process.stderr if line.startswith(("warning", "error")))
    seconds = time.monotonic() - start
    process.kill()
    process.communicate()
    return line, seconds


def test_a_clip_that_goes_on_for_long_says_so_before_it_starts(models: Path, tmp_path: Path) -> None:
    line, seconds = first_line(models, tmp_path / "clip.mp4", "--size", "2048x2048", "--steps", "400")
    assert line.startswith("warning: the steps will take about ")
    tokens = tokens_of((latent_frames(126), 128, 128), (126,)).total
    assert f"400 calls of the model with up to {tokens:,} tokens on cpu. A smaller size" in line
    assert seconds < 60, "a clip takes far longer, this took but the start of the program"


def test_a_clip_that_does_not_fit_is_refused_with_its_pixels(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from happyhorse_core.cli import main

    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "MEMINFO", meminfo)

    def answer(available: float, *more: str) -> str:
        meminfo.write_text(f"MemTotal: 99999999 kB\nMemAvailable: {int(available / 1024)} kB\n")
        assert main([*command(models, tmp_path / "clip.mp4", *more)[3:]]) == 1
        return capsys.readouterr().err

    large = ClipShape(2048, 2048, 26)
    pixels = 3 * large.video_frames * 2048 * 2048
    found = answer(5.5 * pixels, "--size", "1024x1024", "--seconds", "1", "--upscale", "2048x2048")
    assert found.count("\n") == 1
    assert "error: not enough memory for decoding 25 frames of 2048 x 2048: it needs at least" in found
    found = answer(5.5 * pixels, "--size", "4096x4096", "--seconds", "30")
    assert found.count("\n") == 1 and "749 frames of 4096 x 4096 with" in found
    assert not (tmp_path / "clip.mp4").exists()
