"""A prompt, and perhaps a picture or a sound, becomes an mp4: every stage in turn, one model in memory at a time."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from . import __version__, super_resolution
from .audio_vae.decode import decode_soundtrack
from .audio_vae.encode import encode_soundtrack
from .audio_vae.load import load_oobleck
from .audio_vae.model import Oobleck
from .audio_vae.resample import resample_fft
from .dit.load import TransformerFile, examine_transformer, load_transformer, loaded_bytes
from .dit.memory import activation_bytes, sampling_bytes
from .dit.parallel import check_ranks
from .dit.ranks import transformer_on
from .dit.roles import ASSUMED, BASE, DISTILLED, Role
from .errors import CheckpointError, InputError, one_line
from .estimate import Tokens, Work, time_warning, tokens_of, work_of_call
from .finite import check_finite
from .geometry import FRAME_RATE, MIN_FRAMES, OUTPUT_SAMPLE_RATE, ClipShape
from .media.image import fit_image
from .media.video_file import Mp4Writer
from .memory import FREE_PART, available_bytes, require
from .model_folder import ModelFiles
from .progress import Progress, silent
from .sampling.guidance import MAX_SCALE, RELEASED, Scales
from .sampling.loop import Velocity, denoise, guided
from .sampling.schedule import flow_sigmas
from .sampling.solver import DistilledSolver, Solver, UniPC, seeded_noise
from .text.load import load_text_encoder
from .video_vae.image_encoder import encoding_bytes
from .video_vae.latent_statistics import denormalise, normalise
from .video_vae.load import inspect_image_encoder, inspect_turbo_decoder, load_image_encoder, load_turbo_decoder
from .video_vae.tiling import decode_tiles, fitting_tile, least_bytes, window_bytes
from .weights.source import open_source

logger = logging.getLogger(__name__)

Report = Callable[[str, str], Progress]
"""``report(stage, unit)`` opens the progress of a stage, counted in ``unit``."""


def no_report(stage: str, unit: str) -> Progress:
    """A report that nobody reads."""
    return silent


@dataclass(frozen=True)
class Upscale:
    """The stage that enlarges the clip: which model, and to what size in pixels, where 0 is chosen."""

    role: Role
    width: int = 0
    height: int = 0
    steps: int = super_resolution.STEPS


@dataclass(frozen=True)
class Request:
    """What to make. ``image`` is [1, 3, H, W] in [-1, 1]; ``sound`` is [1, 2, N] at 51,200 Hz and sets the length.

    Raises InputError for what no model can carry out.
    """

    prompt: str
    shape: ClipShape
    seed: int
    steps: int
    role: Role = DISTILLED
    negative_prompt: str = ""
    guidance: Scales = RELEASED
    image: Tensor | None = None
    sound: Tensor | None = None
    upscale: Upscale | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InputError("prompt: found nothing, expected a description of the clip.")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"seed: found {self.seed}, expected 0 to 2^64 - 1.")
        if self.role not in (BASE, DISTILLED):
            raise InputError(f"model: found {self.role.name}, expected {BASE.name} or {DISTILLED.name}.")
        scales = self.guidance.early, self.guidance.late, self.guidance.audio
        if not all(0 <= scale <= MAX_SCALE for scale in scales):
            found = ",".join(f"{scale:g}" for scale in scales)
            raise InputError(f"guidance: found {found}, expected each to be 0 to {MAX_SCALE:g}.")
        flow_sigmas(self.steps)
        target_shape(self.shape, self.upscale)


@dataclass(frozen=True)
class Machine:
    """Where and in what precision to compute.

    The transformer's work is shared with the ``others``, by processes of their own; ``release`` then gives back what
    memory of finished stages this process keeps to itself.
    """

    device: torch.device
    dtype: torch.dtype
    others: tuple[torch.device, ...] = ()
    release: Callable[[], None] = lambda: None

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """All devices of the transformer."""
        return self.device, *self.others


def target_shape(shape: ClipShape, upscale: Upscale | None) -> ClipShape:
    """The finished clip's shape. Raises InputError for a size that super-resolution can't make of ``shape``."""
    if upscale is None:
        return shape
    source = (shape.width, shape.height)
    size = super_resolution.target_size(upscale.role, source, upscale.width, upscale.height)
    return ClipShape(*size, shape.frames)


def generate(
    request: Request, files: ModelFiles, output: Path, machine: Machine, report: Report = no_report
) -> ClipShape:
    """Runs all stages and writes ``output``, an mp4 that holds the settings as its comment; returns the clip's shape.

    Raises HappyHorseError for what the user can mend. ``output`` is written whole or not at all.
    """
    return Pipeline(files, machine, report).run(request, output)


@dataclass(frozen=True)
class _Steps:
    """A transformer's part of the work: the clip whose steps it computes, and how often it is called."""

    file: TransformerFile
    shape: ClipShape
    calls: int

    @property
    def tokens(self) -> Tokens:
        return tokens_of(self.shape.video_latent, self.shape.audio_latent)

    @property
    def work(self) -> Work:
        return work_of_call(self.file.config, self.tokens) * self.calls


@dataclass(frozen=True)
class Pipeline:
    """The stages over one set of files on one machine. Each loads its model, and lets go of it when it ends."""

    files: ModelFiles
    machine: Machine
    report: Report = no_report

    def run(self, request: Request, output: Path) -> ClipShape:
        """All stages in turn; see ``generate``."""
        transformer = inspect_as(self.files.transformer, request.role)
        enlarger = None
        if request.upscale is not None:
            path = _given(self.files.sr_transformer, "super-resolution transformer")
            enlarger = inspect_as(path, request.upscale.role)
        held = self.encode_sound(request.sound)
        first = _shape_of(request.shape, held)
        shape = target_shape(first, request.upscale)
        stages = [_Steps(transformer, first, request.steps * (2 if request.role.guided else 1))]
        if enlarger is not None and request.upscale is not None:
            stages.append(_Steps(enlarger, shape, request.upscale.steps))
        self.estimate(stages, with_image=request.image is not None)
        settings = json.dumps(_settings(request, first, shape, self.files), ensure_ascii=False)
        with Mp4Writer(
            output,
            shape.width,
            shape.height,
            fps=FRAME_RATE,
            sample_rate=OUTPUT_SAMPLE_RATE,
            metadata={"comment": settings},
        ) as writer:
            prompts = self.encode_prompts(request)
            stills = self.encode_image(request.image, (first, shape))
            video, audio = self.sample(request, first, transformer, prompts, stills[0], held)
            if enlarger is not None and request.upscale is not None:
                seed, steps = request.seed, request.upscale.steps
                video = self.enlarge(seed, steps, shape, enlarger, prompts[0], stills[1], video, audio)
            writer.add_sound(self.decode_sound(request.sound, audio).numpy())
            for frames in self.decode_video(video):
                writer.add_frames(frames.numpy())
        return shape

    def estimate(self, stages: Sequence[_Steps], *, with_image: bool) -> None:
        """Raises an error where the machine can't hold the work, and warns of work that takes long."""
        for stage in stages:
            self.check_memory(stage.file, stage.shape)
        machine, largest = self.machine, stages[-1].shape
        decoder = inspect_turbo_decoder(self.files.video_decoder).config
        needed = least_bytes(decoder, *largest.video_latent[1:], machine.dtype.itemsize)
        size = f"{largest.width} x {largest.height}"
        require(needed, available_bytes(machine.device), f"decoding {largest.video_frames} frames of {size}")
        if with_image:
            encoder = inspect_image_encoder(_given(self.files.image_encoder, "image encoder")).config
            needed = encoding_bytes(encoder, largest.height, largest.width, machine.dtype.itemsize)
            require(needed, available_bytes(machine.device), f"a picture of {size}")
        work = sum((stage.work for stage in stages[1:]), stages[0].work)
        calls, tokens = sum(stage.calls for stage in stages), stages[-1].tokens.total
        head_dim, devices = stages[0].file.config.head_dim, len(machine.devices)
        warning = time_warning(
            work, tokens, calls, head_dim=head_dim, device=machine.device, dtype=machine.dtype, devices=devices
        )
        if warning is not None:
            logger.warning("%s", warning)

    def check_memory(self, file: TransformerFile, shape: ClipShape) -> None:
        """Raises an error where the machine can't hold the transformer and the steps of a clip of ``shape``."""
        machine = self.machine
        check_ranks(file.config, len(machine.devices))
        tokens = tokens_of(shape.video_latent, shape.audio_latent, text=0).total // len(machine.devices)
        activations = activation_bytes(tokens, file.config.hidden_size, machine.dtype.itemsize)
        multistep = file.role.guided or file.role.is_super_resolution
        steps = sampling_bytes(activations, shape.latent_bytes, multistep=multistep)
        weights = loaded_bytes(file, machine.dtype)
        dtype = str(machine.dtype).removeprefix("torch.")
        what = f"{shape.video_frames} frames of {shape.width} x {shape.height} with {file.source.path} in {dtype}"
        for device, ranks in Counter(machine.devices).items():
            others = ranks - 1 if device == machine.device else ranks
            needed = ranks * weights + others * activations + (steps if others < ranks else 0)
            require(needed, available_bytes(device), what)

    def encode_sound(self, sound: Tensor | None) -> Tensor | None:
        """[1, 2, N] at 51,200 Hz -> its latent [1, 64, A]. Raises InputError where it is too short for a clip."""
        if sound is None:
            return None
        vae = self._audio_vae()
        latent = encode_soundtrack(vae, sound.to(self.machine.device), progress=self.report("Encode sound", "window"))
        check_finite("Encode sound", self.files.audio_vae, latent, model=vae)
        if latent.shape[2] < MIN_FRAMES:
            raise InputError(
                f"audio: found {latent.shape[2]} frames of sound ({latent.shape[2] / FRAME_RATE:.2f} s), "
                f"expected at least {MIN_FRAMES} ({MIN_FRAMES / FRAME_RATE:.2f} s)."
            )
        return latent

    def encode_prompts(self, request: Request) -> list[Tensor]:
        """Embeddings [1, L, hidden] of the prompt and, for the base model, of the negative prompt."""
        texts = [request.prompt, request.negative_prompt] if request.role.guided else [request.prompt]
        encoder = load_text_encoder(
            self.files.text_encoder,
            dtype=self.machine.dtype,
            device=self.machine.device,
            progress=self.report("Load text encoder", "B"),
        )
        prompts = [encoder.encode_prompt(text, progress=self.report("Encode prompt", "layer")) for text in texts]
        check_finite("Encode prompt", self.files.text_encoder, *prompts, model=encoder.model)
        return prompts

    def encode_image(self, image: Tensor | None, shapes: Sequence[ClipShape]) -> list[Tensor | None]:
        """The picture's normalised latent [1, 48, 1, h, w] at the size of each shape."""
        if image is None:
            return [None] * len(shapes)
        machine = self.machine
        path = _given(self.files.image_encoder, "image encoder")
        encoder = load_image_encoder(
            path,
            dtype=machine.dtype,
            device=machine.device,
            progress=self.report("Load image encoder", "B"),
        )
        pictures = (fit_image(image, shape.width, shape.height) for shape in shapes)
        latents = [normalise(encoder(pixels.to(machine.device, machine.dtype))) for pixels in pictures]
        check_finite("Encode image", path, *latents, model=encoder)
        return [*latents]

    def sample(
        self,
        request: Request,
        shape: ClipShape,
        file: TransformerFile,
        prompts: list[Tensor],
        image_latent: Tensor | None,
        sound_latent: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The clip's normalised latents: video [1, 48, T, h, w] and audio [1, 64, A], from noise of the seed."""
        # On the CPU, so that a seed means the same clip whatever device computes it.
        draw = seeded_noise(torch.Generator("cpu").manual_seed(request.seed))
        video = draw(0, torch.empty(1, *shape.video_latent, device=self.machine.device))
        audio = sound_latent
        if audio is None:
            audio = draw(0, torch.empty(1, *shape.audio_latent, device=self.machine.device))
        sigmas = flow_sigmas(request.steps)

        def solver() -> Solver:
            return UniPC(sigmas) if request.role.guided else DistilledSolver(sigmas, draw)

        with self._transformer(file, self.report("Load transformer", "B")) as velocity:
            move = velocity(prompts[0])
            if request.role.guided:
                move = guided(move, velocity(prompts[1]), request.guidance)
            return denoise(
                move,
                video,
                audio,
                sigmas,
                solver(),
                None if sound_latent is not None else solver(),
                image_latent=image_latent,
                progress=self.report("Denoise", "step"),
            )

    def enlarge(
        self,
        seed: int,
        steps: int,
        shape: ClipShape,
        file: TransformerFile,
        prompt: Tensor,
        image_latent: Tensor | None,
        video: Tensor,
        audio: Tensor,
    ) -> Tensor:
        """The clip's video latent at the size of ``shape``. A seed gives the noise that it gives in ComfyUI."""
        draw = seeded_noise(torch.Generator("cpu").manual_seed(seed))
        noise_video = draw(0, video.new_empty(1, *shape.video_latent))
        start = super_resolution.start(video, audio, (shape.width, shape.height), noise_video, draw(0, audio))
        with self._transformer(file, self.report("Load super-resolution", "B")) as velocity:
            return super_resolution.upscale(
                velocity(prompt),
                *start,
                steps=steps,
                image_latent=image_latent,
                progress=self.report("Enlarge", "step"),
            )

    def decode_sound(self, given: Tensor | None, audio: Tensor) -> Tensor:
        """[2, samples] at 44,100 Hz. A given sound is returned as it came, never through the autoencoder."""
        if given is not None:
            return resample_fft(given)[0]
        vae = self._audio_vae()
        waveform = decode_soundtrack(vae, audio.float(), progress=self.report("Decode sound", "chunk"))
        check_finite("Decode sound", self.files.audio_vae, waveform, model=vae)
        return resample_fft(waveform)[0].float().cpu()

    def decode_video(self, video: Tensor) -> Iterator[Tensor]:
        """A normalised latent -> uint8 [frames, H, W, 3] chunks in order."""
        machine = self.machine
        decoder = load_turbo_decoder(
            self.files.video_decoder,
            dtype=machine.dtype,
            device=machine.device,
            progress=self.report("Load video decoder", "B"),
        )
        height, width = video.shape[3:]
        free = available_bytes(machine.device)
        tile = (height, width)
        if free is not None:
            frames, itemsize = video.shape[2], machine.dtype.itemsize

            def needed(rows: int, columns: int) -> int:
                return window_bytes(decoder.config, rows, columns, frames, itemsize)

            tile = fitting_tile(height, width, int(free * FREE_PART), needed)
        raw = denormalise(video).to(machine.dtype)
        for chunk in decode_tiles(decoder, raw, tile, progress=self.report("Decode video", "tile")):
            check_finite("Decode video", self.files.video_decoder, chunk, model=decoder)
            yield to_bytes(chunk[0])

    def _audio_vae(self) -> Oobleck:
        progress = self.report("Load audio autoencoder", "B")
        return load_oobleck(self.files.audio_vae, device=self.machine.device, progress=progress)

    @contextmanager
    def _transformer(self, file: TransformerFile, progress: Progress) -> Iterator[Callable[[Tensor], Velocity]]:
        """Loads a transformer; what it gives makes the velocity for a prompt's embedding, while the block lasts."""
        machine = self.machine
        if machine.others:
            machine.release()
            with transformer_on(file, machine.devices, machine.dtype, progress) as ranks:
                yield lambda text: _checked(ranks.velocity(text), file)
            return
        model = load_transformer(file, dtype=machine.dtype, device=machine.device, progress=progress)

        def velocity(text: Tensor) -> Velocity:
            text = text.to(machine.device)

            def compute(video: Tensor, audio: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
                out: tuple[Tensor, Tensor] = model(video, audio, text, compute_dtype=machine.dtype)
                return out

            return _checked(compute, file, model)

        yield velocity


def _checked(velocity: Velocity, file: TransformerFile, model: nn.Module | None = None) -> Velocity:
    """The same, which looks at each step whether it gave numbers: what follows would take as long for nothing."""

    def checked(video: Tensor, audio: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        found = velocity(video, audio, sigma)
        check_finite(f"Denoise with the {file.role.name} model", file.source.path, *found, model=model)
        return found

    return checked


def _given(path: Path | None, part: str) -> Path:
    if path is None:
        raise CheckpointError(f"{part}: found no path, expected one, since the request can't be carried out without.")
    return path


def inspect_as(path: Path, wanted: Role) -> TransformerFile:
    """A transformer's file in a role. Raises CheckpointError where the file is known to be for another job."""
    source = open_source(path)
    file = examine_transformer(source, path)
    known = file.role_origin != ASSUMED
    if known and file.role.is_super_resolution != wanted.is_super_resolution:
        does = "enlarges a finished clip" if file.role.is_super_resolution else "makes clips and can't enlarge them"
        raise CheckpointError(
            f"{path}: this is the {file.role.name} model ({file.role_origin}), which {does}. "
            f"Expected the {wanted.name} model."
        )
    return file if file.role is wanted else examine_transformer(source, path, wanted.name)


def _shape_of(shape: ClipShape, sound_latent: Tensor | None) -> ClipShape:
    if sound_latent is None:
        return shape
    return ClipShape(shape.width, shape.height, sound_latent.shape[2])


def _settings(request: Request, first: ClipShape, shape: ClipShape, files: ModelFiles) -> dict[str, str | int | float]:
    settings: dict[str, str | int | float] = {
        "prompt": request.prompt,
        "seed": request.seed,
        "steps": request.steps,
        "width": shape.width,
        "height": shape.height,
        "frames": shape.video_frames,
        "model": request.role.name,
        "checkpoint": one_line(files.transformer.name),  # a name may hold bytes that are no text
        "from_image": request.image is not None,
        "from_audio": request.sound is not None,
        "program": f"happyhorse_core {__version__}",
    }
    if request.role.guided:
        settings["negative_prompt"] = request.negative_prompt
        scales = request.guidance
        settings |= {"guidance_early": scales.early, "guidance_late": scales.late, "guidance_audio": scales.audio}
    if request.upscale is not None:
        settings["super_resolution"] = request.upscale.role.name
        settings["super_resolution_steps"] = request.upscale.steps
        settings["enlarged_from"] = f"{first.width}x{first.height}"
    return settings


def to_bytes(pixels: Tensor) -> Tensor:
    """[3, F, H, W] in [-1, 1] -> uint8 [F, H, W, 3] on the CPU; values outside are clipped, fractions cut off."""
    return (
        pixels.to(torch.float32, copy=True)
        .mul_(0.5)
        .add_(0.5)
        .clamp_(0, 1)
        .mul_(255)
        .to(torch.uint8)
        .permute(1, 2, 3, 0)
        .cpu()
    )
