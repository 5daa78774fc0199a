"""The world of moving shapes and speaking faces: what is drawn, heard and said follows from the scene."""

from itertools import product

import numpy as np
import pytest

from happyhorse_core.prompt import count_words
from training.world.draw import BACKGROUND_RGB, COLOUR_RGB, SKIN_RGB, draw
from training.world.prompts import prompt, split, vocabulary
from training.world.scene import (
    COLOURS,
    FLOOR,
    FOOT,
    MOTIONS,
    RADIUS,
    SHAPES,
    Scene,
    Speech,
    is_held_out,
    sample_scene,
    track,
    track_at,
)
from training.world.sound import PITCH, RATE, sound

SPEECH = Speech("man", ("a", "e", "o"), 0.2, 0.5)
FACE = Scene("face", "face", "tan", "large", "speaking", ("navy", "black"), x=0.48, speech=SPEECH)


def shape_scene(motion, shape="circle", size="medium", **numbers):
    numbers = {"x": 0.2 if motion == "sliding right" else 0.6, "phase": 0.3, "pace": 0.35} | numbers
    return Scene("shape", shape, "green", size, motion, ("grey", "grey"), **numbers)


def scenes(count, **asked):
    rng = np.random.default_rng(7)
    return [sample_scene(rng, **asked) for _ in range(count)]


def test_one_combination_in_eight_is_held_out_and_all_pairs_are_trained():
    trained = [words for words in product(COLOURS, SHAPES, MOTIONS) if not is_held_out(*words)]
    assert len(trained) == len(COLOURS) * len(SHAPES) * len(MOTIONS) * 7 / 8
    assert {words[:2] for words in trained} == set(product(COLOURS, SHAPES))
    assert {words[1:] for words in trained} == set(product(SHAPES, MOTIONS))
    assert {words[::2] for words in trained} == set(product(COLOURS, MOTIONS))


@pytest.mark.parametrize("held_out", [False, True, None])
def test_scenes_keep_to_the_side_asked_for(held_out):
    shapes = [scene for scene in scenes(300, held_out=held_out) if scene.kind == "shape"]
    sides = {is_held_out(scene.colour, scene.shape, scene.motion) for scene in shapes}
    assert sides == ({False, True} if held_out is None else {held_out})


def test_scenes_are_of_all_kinds_and_of_the_one_asked_for():
    kinds = [scene.kind for scene in scenes(300)]
    assert 20 < kinds.count("face") < 90
    assert {scene.motion for scene in scenes(20, motion="orbiting")} == {"orbiting"}
    assert {scene.kind for scene in scenes(20, kind="face")} == {"face"}
    assert {scene.kind for scene in scenes(20, kind="shape")} == {"shape"}


def test_the_same_seed_gives_the_same_clip():
    first, again = scenes(5), scenes(5)
    assert first == again
    assert np.array_equal(draw(first[4]), draw(again[4]))
    assert np.array_equal(sound(first[4]), sound(again[4]))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bouncing_shape_stands_on_the_floor_when_it_touches(shape):
    scene = shape_scene("bouncing", shape, pace=0.7)
    truth = track(scene)
    assert truth.touches == pytest.approx([0.49, 1.19, 1.89])
    at_touches = track_at(scene, np.array(truth.touches))
    assert at_touches.y == pytest.approx(FLOOR - FOOT[shape] * RADIUS["medium"])
    assert truth.y.max() <= at_touches.y[0] + 1e-9
    lowest = round(truth.touches[0] * 25)
    rows = np.nonzero((draw(scene)[lowest] == COLOUR_RGB["green"]).all(-1).any(1))[0]
    assert abs(rows.max() + 1 - 64 * FLOOR) < 3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [64, 97])
def test_a_shape_is_drawn_where_its_track_says(shape, size):
    scene = shape_scene("sliding right", shape, y=0.4)
    truth = track(scene)
    pictures = draw(scene, size=size).astype(float)
    base, top = (np.array(rgb, float) for rgb in (BACKGROUND_RGB["grey"], COLOUR_RGB["green"]))
    cover = (pictures - base) @ (top - base) / np.sum((top - base) ** 2)
    middle = 24
    places = (np.arange(size) + 0.5) / size
    mass = cover[middle].sum()
    assert (cover[middle] * places).sum() / mass == pytest.approx(truth.x[middle], abs=0.01)
    assert (cover[middle] * places[:, None]).sum() / mass == pytest.approx(0.4, abs=0.01)
    area = {"circle": np.pi, "square": 3.14, "triangle": 2.367, "star": 2.235}[shape]
    assert mass / size**2 == pytest.approx(area * RADIUS["medium"] ** 2, rel=0.03)


def test_shapes_are_dropped_at_the_start_unless_their_sound_tells_when_they_fall():
    dropped, driven = ([bounce(seed, driven=driven) for seed in range(40)] for driven in (False, True))
    assert all(np.argmin(track(scene).y) == 0 for scene in dropped)
    assert len({track(scene).touches[0] for scene in dropped}) == 3  # one for each size
    first = [track(scene).touches[0] for scene in driven if scene.size == "large"]
    assert np.ptp(first) > 0.15


def bounce(seed, **options):
    return sample_scene(np.random.default_rng(seed), motion="bouncing", **options)


def test_shapes_move_as_their_motions_are_named():
    left, right = (track(shape_scene(f"sliding {to}")) for to in ("left", "right"))
    assert (np.diff(left.x) < 0).all() and (np.diff(right.x) > 0).all()
    orbit = track(shape_scene("orbiting", x=0.5, pace=1.5))
    assert np.hypot(orbit.x - 0.5, orbit.y - 0.5) == pytest.approx(0.25)
    assert np.ptp(track(shape_scene("pulsing", pace=0.8)).radius) == pytest.approx(0.6 * RADIUS["medium"], rel=0.02)


def test_moving_shapes_stay_in_sight():
    for scene in scenes(200, held_out=None):
        truth = track(scene)
        assert (truth.x > 0.1).all() and (truth.x < 0.9).all() and (truth.y > 0.1).all() and (truth.y < 0.9).all()


def test_a_second_shape_stays_clear_of_the_first():
    with_second = [scene for scene in scenes(1200) if scene.second]
    assert len({scene.motion for scene in with_second}) == len(MOTIONS)
    for scene in with_second:
        still, truth = scene.second, track(scene)
        apart = np.hypot(truth.x - still.x, truth.y - still.y)
        assert still.colour != scene.colour
        # Circles and squares at least stay apart in every direction; points reach further only in some.
        assert (apart > truth.radius + 0.09).all()


def test_colours_of_things_differ_from_each_other_and_from_backgrounds():
    things = [np.array(rgb, float) for rgb in (*COLOUR_RGB.values(), *SKIN_RGB.values())]
    for number, first in enumerate(things):
        assert all(np.linalg.norm(first - other) > 50 for other in things[number + 1 :])
        assert all(np.linalg.norm(first - np.array(dark)) > 85 for dark in BACKGROUND_RGB.values())


def test_the_mouth_opens_for_each_vowel_and_no_one_speaks_before_the_start():
    truth = track(FACE, 51)
    assert truth.opening[:5].max() == 0
    peaks = [truth.opening[round((0.2 + (k + 0.425) * 0.5) * 25)] for k in range(3)]
    assert peaks == pytest.approx([1.0, 0.6, 0.8], abs=0.05)
    pictures = draw(FACE).astype(int)
    dark = (pictures.sum(-1) < 200)[:, 38:56, 26:37].sum((1, 2))
    assert np.corrcoef(dark, truth.opening[:49])[0, 1] > 0.9


@pytest.mark.parametrize("frames", [49, 51, 7])
def test_sizes_of_pictures_and_sound(frames):
    assert draw(FACE, frames, 96).shape == (frames, 96, 96, 3)
    assert sound(FACE, frames).shape == (2, frames * 2048)


def test_no_sound_is_too_loud_or_silent():
    for scene in scenes(40, held_out=None):
        wave = sound(scene)
        assert wave.dtype == np.float32
        assert 0.15 < np.abs(wave).max() <= 0.8


def test_clicks_begin_at_touches_and_nothing_is_heard_between():
    scene = shape_scene("bouncing", pace=0.7)
    wave = sound(scene)[0]
    heard = np.flatnonzero(np.abs(wave) > 1e-9)
    begins = heard[np.flatnonzero(np.diff(heard, prepend=-9999) > 2000)] / RATE
    assert begins == pytest.approx(track(scene, 51).touches, abs=2e-4)
    assert np.abs(wave[: int(0.48 * RATE)]).max() == 0


@pytest.mark.parametrize("size", ["small", "medium", "large"])
def test_the_pitch_follows_the_size(size):
    spectrum = np.abs(np.fft.rfft(sound(shape_scene("orbiting", size=size))[0]))
    assert np.argmax(spectrum) * RATE / 104_448 == pytest.approx(PITCH[size], abs=2)


def test_the_tone_pans_with_the_shape():
    left, right = sound(shape_scene("sliding right", x=0.1, pace=0.4))
    assert np.std(left[:5000]) > 4 * np.std(right[:5000])
    assert np.std(right[-5000:]) > 4 * np.std(left[-5000:])


def test_a_woman_speaks_higher_than_a_man():
    def pitch(voice):
        speech = Speech(voice, ("a", "a", "a"), 0.1, 0.6)
        wave = sound(Scene("face", "face", "tan", "large", "speaking", ("black", "black"), speech=speech))[0]
        piece = wave[15_000:25_000]
        alike = [np.corrcoef(piece[:-lag], piece[lag:])[0, 1] for lag in range(150, 600)]
        return RATE / (150 + int(np.argmax(np.array(alike) > 0.97 * max(alike))))

    assert pitch("woman") == pytest.approx(200, rel=0.03)
    assert pitch("man") == pytest.approx(100, rel=0.03)


def test_prompts_keep_their_length_and_their_words():
    rng = np.random.default_rng(1)
    known, seen = set(vocabulary()), set()
    for scene in scenes(1500, held_out=None):
        text = prompt(scene, rng)
        assert 20 <= count_words(text) <= 45, text
        seen |= set(split(text))
    assert seen <= known
    assert len(known - seen) < 5


def test_plain_prompts_name_what_is_judged():
    rng = np.random.default_rng(2)
    scene = Scene("shape", "star", "orange", "small", "sliding left", ("navy", "black"), x=0.8, pace=0.3)
    assert prompt(scene, rng, synonyms=False) == (
        "A small orange star slides to the left on a background that fades from navy to black.\n\n"
        "Background Sound:\n<A steady high tone that wanders from right to left>"
    )
    assert prompt(FACE, rng, synonyms=False) == (
        "The round face of a man with tan skin speaks on a background that fades from navy to black.\n\n"
        'Dialogue:\n<Man with a low voice, English>: "a e o"\n\n'
        "Background Sound:\n<No prominent background sound>"
    )


def test_synonyms_give_many_prompts_of_one_scene_and_right_articles():
    rng = np.random.default_rng(3)
    scene = Scene("shape", "circle", "orange", "medium", "pulsing", ("black", "black"))
    texts = [prompt(scene, rng) for _ in range(200)]
    assert len(set(texts)) > 150
    assert any("An orange" in text or "an orange" in text for text in texts)
    assert not any(f"{article} orange" in text for text in texts for article in ("A", " a"))
