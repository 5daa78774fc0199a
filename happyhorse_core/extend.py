"""Longer clips: what of a finished clip conditions the next one, and how the two are joined.

Time. Frames and audio latents both come at 25 a second, and the transformer's positions put audio latent j beside
frame j. So what is held at the start of the next clip has to be of the same instants in both streams: sound from
before the held first frame has no place on the next clip's clock. And the image encoder takes single frames: only
the first frame of a clip can be held, not a stretch of frames, as extensions of Wan and LTX hold one.

Choice. So the next clip does not start at the last frame of the clip, but K frames before its end: frame P - K of
0 to P - 1 is its first frame, and the sound of the last K frames is held as its audio latents 0 to K - 1. The two are
of the same instants; the model hears K / 25 seconds of the voice, the room and the level that it has to go on with, and
draws frames to that sound as it does to any given one. The join takes the sound from the clip up to the clip's end
and the frames up to the restart; from there on both come from the next clip:

    frames    clip[0 : P - K + 1] + next[1 :]     P + Q - K of them, the shared one once
    sound     all of the clip's   + next's from K / 25 s on

Both parts of the next clip are laid down (P - K) / 25 s after the start, so they stay in step however many clips are
joined. K - 1 frames are drawn twice and seen once. K = 1 wastes none, but then only the last frame and the 40 ms of
sound beside it are held, too little to know a voice by. One second is the default: some five syllables, and a fifth of
a clip of 5 s. To hold the last frame with a second of earlier sound would waste none either, but for that second the
frames would be drawn to sound of another time, and to leave them out would leave a jump.

Fade. Where the two sounds are faded they are the same sound, since it was held, so the weights are linear: they keep
the level of equal sounds, as weights of equal power would not. The fade ends where the clip ends.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import InputError
from .geometry import FRAME_RATE, SAMPLES_PER_AUDIO_LATENT, samples_of_frames
from .media.sound import soundtrack_from_array

OVERLAP_SECONDS = 1.0
MAX_OVERLAP_SECONDS = 10.0
FADE_MS = 40.0
"""One frame: the shortest overlap, and two periods of the lowest tones."""
APART = 0.05
"""Mean difference, of 1, that the frames at a right join stay below: the Pony's were at most 0.031 apart."""
COMPARED_SIDE = 64
CONTEXT = 8
"""Audio latents to either side that the autoencoder's convolutions look at: 15.9 thousand samples, just under eight."""


def overlap_frames(seconds: float, frames: int, next_frames: int) -> int:
    """How many frames' time two clips share. Raises InputError where either clip has no more than that."""
    overlap = round(seconds * FRAME_RATE)
    if not 1 <= overlap <= MAX_OVERLAP_SECONDS * FRAME_RATE:
        raise InputError(f"overlap: found {seconds:g} s, expected {1 / FRAME_RATE:g} to {MAX_OVERLAP_SECONDS:g} s.")
    return check_overlap(overlap, frames, next_frames)


def check_overlap(overlap: int, frames: int, next_frames: int) -> int:
    """``overlap``, in frames, as it is. Raises InputError unless both clips have it and the next one adds to it."""
    if overlap < 1:
        raise InputError(f"overlap: found {overlap} frames, expected at least 1.")
    for name, count, least in (("the clip", frames, overlap), ("the next clip", next_frames, overlap + 1)):
        if count < least:
            raise InputError(
                f"overlap: found {overlap} frames ({overlap / FRAME_RATE:g} s), but {name} has {count}, expected at "
                f"least {least}. Shorten the overlap or lengthen {name}."
            )
    return overlap


@dataclass(frozen=True)
class Stretch:
    """Sound to encode, [1, 2, N] at 51,200 Hz, of whose latents ``length`` from ``first`` on are to be held."""

    sound: Tensor
    first: int
    length: int

    def held(self, latent: Tensor) -> Tensor:
        """Of the encoded sound [1, 64, A], the part to be held: [1, 64, length]."""
        return latent[..., self.first : self.first + self.length]


def stretch_to_hold(waveform: Tensor, sample_rate: int, frames: int, overlap: int) -> Stretch:
    """The sound of the last ``overlap`` of a clip's frames, with what the autoencoder has to see around it.

    ``waveform`` [C, N] starts with the clip; what it lacks at the end is silence. Before the stretch comes what was
    heard there. After it, where the clip ends, it is mirrored: nothing, in its place, would be heard as the sound
    breaking off, and the model would go on from that. Raises InputError as ``soundtrack_from_array`` does.
    """
    start = max(0, frames - overlap - CONTEXT)
    whole = fit_length(waveform, samples_of_frames(frames, sample_rate))
    tail = whole[..., samples_of_frames(start, sample_rate) :]
    sound = soundtrack_from_array(tail, sample_rate, name="the clip's sound")
    sound = fit_length(sound, (frames - start) * SAMPLES_PER_AUDIO_LATENT)
    mirrored = sound.flip(-1)[..., : CONTEXT * SAMPLES_PER_AUDIO_LATENT]
    return Stretch(torch.cat([sound, mirrored], dim=-1), frames - overlap - start, overlap)


def join_differences(clip: Tensor, first: Tensor) -> Tensor:
    """[K]: the mean difference, of 1, of ``first`` [H, W, C] to the frame of ``clip`` [P, H, W, C] at each overlap.

    Overlaps are 1, 2, ... up to the longest. Only every few rows and columns are compared.
    """
    step = max(1, min(first.shape[:2]) // COMPARED_SIDE)
    frames = clip[-round(MAX_OVERLAP_SECONDS * FRAME_RATE) :, ::step, ::step].flip(0).float()
    return (frames - first[::step, ::step].to(frames)).abs().mean(dim=(1, 2, 3))


def wrong_join(clip: Tensor, following: Tensor, overlap: int) -> str | None:
    """Why the frames of two clips, [P, H, W, C] and [Q, H, W, C], seem to be joined wrongly, or None.

    The frame that they should share is never the same in both: the autoencoder changes it, and untrained weights change
    it beyond recognition. So it has to fit another overlap or the other order much better.
    """
    differences = join_differences(clip, following[0])
    here = differences[overlap - 1].item()
    if here <= APART:
        return None
    found = f"the frames of the clips at the join differ by {100 * here:.0f} %"
    best = int(differences.argmin())
    if differences[best] < here / 2:
        return f"{found}, those at an overlap of {best + 1} frames by {100 * differences[best].item():.0f} %"
    if join_differences(following, clip[0])[overlap - 1] < here / 2:
        return f"{found}, but in the other order they meet"
    return None


def join_frames(clip: Tensor, following: Tensor, overlap: int) -> Tensor:
    """[P, ...] and [Q, ...] -> [P + Q - overlap, ...]; the frame that both have is taken from the clip."""
    return torch.cat([clip[: clip.shape[0] - overlap + 1], following[1:]])


def join_sound(
    clip: Tensor, following: Tensor, sample_rate: int, frames: tuple[int, int], overlap: int, fade_ms: float = FADE_MS
) -> Tensor:
    """[C, N] and [C, M] with the numbers of frames they belong to -> [C, as long as the joined frames].

    The clip's sound up to its end, then the next one's; over the last ``fade_ms`` of the overlap they are mixed. A fade
    longer than the overlap is shortened to it.
    """
    before = fit_length(clip, samples_of_frames(frames[0], sample_rate))
    after = fit_length(following, samples_of_frames(frames[1], sample_rate))
    # From where the restart falls on the clip's clock: rates that 25 does not divide round every length, but this way
    # no rounding adds up over many clips.
    skip = before.shape[-1] - samples_of_frames(frames[0] - overlap, sample_rate)
    fade = min(round(fade_ms * sample_rate / 1000), skip)
    weight = (torch.arange(fade, device=after.device, dtype=after.dtype) + 0.5) / max(fade, 1)
    kept = before.shape[-1] - fade
    mixed = torch.lerp(before[..., kept:], after[..., skip - fade : skip], weight)
    joined = torch.cat([before[..., :kept], mixed, after[..., skip:]], dim=-1)
    return fit_length(joined, samples_of_frames(sum(frames) - overlap, sample_rate))


def fit_length(sound: Tensor, samples: int) -> Tensor:
    """[..., N] cut, or filled up with silence at its end, to [..., samples]."""
    return F.pad(sound, (0, samples - sound.shape[-1]))
