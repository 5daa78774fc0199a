"""Judges the shipped Pony on clips that it was never trained on, and prints the table of its model card.

    python training/evaluate.py [--models DIR] [--seed S] [--count N] [--roles distilled base] [--guidance 2,2,2]

Every task gets ``count`` fresh scenes and prompts: new numbers, new word orders; "unseen" is of combinations of
colour, shape and motion that training never had. The judge is classical analysis (training/judge), nothing learned.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

if __name__ == "__main__" and __package__ is None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from happyhorse_core.cli import parse_guidance
from happyhorse_core.dit.roles import BASE
from happyhorse_core.errors import InputError
from happyhorse_core.sampling.guidance import Scales
from training.judge.clip import Findings, judge_clip, matches, meetings
from training.run import PONY
from training.sample import RATE, Clip, Order, load_stack, make_clips
from training.world.draw import draw
from training.world.prompts import prompt
from training.world.scene import Scene, sample_scene
from training.world.sound import sound

TIMED = {"bouncing": "bounce and click", "speaking": "mouth and voice", "pulsing": "radius and loudness"}
ENOUGH_PSNR = 28.0
"""dB that the first picture has to be near the given one."""


@dataclass(frozen=True)
class Case:
    """One clip to make and the scene that it has to show."""

    scene: Scene
    order: Order


Verdicts = dict[str, bool | list[bool]]
"""Of one clip: what was judged, and whether it was good, or whether each of several was."""
Task = tuple[Callable[[np.random.Generator, int], Case], Callable[[Case, Clip, Findings], Verdicts]]


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    """Peak signal to noise of two uint8 pictures in dB."""
    error = np.mean((found.astype(np.float64) - wanted) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def from_text(rng: np.random.Generator, seed: int) -> Case:
    scene = sample_scene(rng)
    return Case(scene, Order(prompt(scene, rng), seed))


def from_unseen_words(rng: np.random.Generator, seed: int) -> Case:
    scene = sample_scene(rng, held_out=True)
    return Case(scene, Order(prompt(scene, rng), seed))


def from_picture(rng: np.random.Generator, seed: int) -> Case:
    scene = sample_scene(rng)
    return Case(scene, Order(prompt(scene, rng), seed, picture=draw(scene, 1)[0]))


def from_sound(rng: np.random.Generator, seed: int) -> Case:
    """Clips whose picture has to follow the sound in time: bounces, pulses and mouths."""
    kind = rng.integers(3)
    if kind == 2:
        scene = sample_scene(rng, kind="face")
    else:
        scene = sample_scene(rng, motion=("bouncing", "pulsing")[kind], driven=True)
    return Case(scene, Order(prompt(scene, rng), seed, sound=sound(scene)))


def judge_text(case: Case, clip: Clip, findings: Findings) -> Verdicts:
    found, motion = matches(findings, case.scene), case.scene.motion
    return {
        "colour and shape": found["colour"] and found["shape"],
        "motion": found["motion"],
        f"sound in time: {TIMED.get(motion, 'place and side')}": meet(findings)
        if motion == "bouncing"
        else found["sync"],
    }


def meet(findings: Findings) -> list[bool]:
    """For each touch of the floor whether its click is in time; a click without a touch counts as one more failure."""
    touches, clicks = meetings(findings)
    return [*touches, *(good for good in clicks if not good)] or [False]


def judge_picture(case: Case, clip: Clip, findings: Findings) -> Verdicts:
    kept = psnr(clip.frames[0], case.order.picture) >= ENOUGH_PSNR
    moves = matches(findings, case.scene)["motion"]
    return {"first picture kept": kept, "motion": moves, "both": kept and moves}


def judge_sound(case: Case, clip: Clip, findings: Findings) -> Verdicts:
    found = matches(findings, case.scene)
    return {"picture follows the sound": found["sync"], "colour and shape": found["colour"] and found["shape"]}


TASKS: dict[str, Task] = {
    "text to video": (from_text, judge_text),
    "unseen combinations": (from_unseen_words, judge_text),
    "image to video": (from_picture, judge_picture),
    "audio driven": (from_sound, judge_sound),
}


def evaluate(
    models: Path, role: str, seed: int, count: int, tasks: Sequence[str], scales: Scales | None = None
) -> dict[str, dict[str, list[bool]]]:
    """Verdicts by task and by what is judged."""
    stack = load_stack(models, role)
    stack.scales = scales
    results: dict[str, dict[str, list[bool]]] = {}
    for task in tasks:
        make, judge = TASKS[task]
        numbers = range(count)
        cases = [make(np.random.default_rng((seed, n, *map(ord, task))), seed * count + n) for n in numbers]
        clips = make_clips(stack, [case.order for case in cases])
        verdicts: dict[str, list[bool]] = {}
        for number, clip in tqdm(clips, desc=f"{role}, {task}", total=count):
            case, findings = cases[number], judge_clip(clip.frames, clip.waveform, RATE)
            for name, good in judge(case, clip, findings).items():
                verdicts.setdefault(name, []).extend(good if isinstance(good, list) else [bool(good)])
        results[task] = verdicts
    return results


def table(results: dict[str, dict[str, dict[str, list[bool]]]]) -> str:
    """A Markdown table: a row for each thing judged, a column for each model."""
    roles = list(results)
    lines = [f"| task | judged | {' | '.join(roles)} |", f"| --- | --- |{' --- |' * len(roles)}"]
    first = results[roles[0]]
    for task, verdicts in first.items():
        for name in verdicts:
            cells = [_cell(results[role][task][name]) for role in roles]
            lines.append(f"| {task} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(verdicts: list[bool]) -> str:
    return f"{100 * np.mean(verdicts):.1f} % of {len(verdicts)}"


def guidance(text: str) -> Scales:
    """The option --guidance, which is that of the command line."""
    try:
        return parse_guidance(text, BASE)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=PONY, help="folder of the model; default pony/")
    parser.add_argument("--seed", type=int, default=1, help="another seed judges other clips")
    parser.add_argument("--count", type=int, default=200, help="clips of each task")
    parser.add_argument("--roles", nargs="+", default=["distilled", "base"], choices=["distilled", "base"])
    usual = "of the base model; default 1.5,1.5,1.5, and 1,1,1 from a picture"
    parser.add_argument("--guidance", type=guidance, help=usual)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--json", type=Path, help="also write the verdicts to this file")
    options = parser.parse_args(arguments)
    results = {
        role: evaluate(options.models, role, options.seed, options.count, options.tasks, options.guidance)
        for role in options.roles
    }
    print(table(results))
    if options.json is not None:
        options.json.write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
