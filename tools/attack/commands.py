"""Bad words on the command line."""

from pathlib import Path
from random import Random

from .case import OUTPUT, PONY, Case, generate

LONG = "n" * 5000
WORDS = (
    "", " ", "\0", "a\0b", "\ud800", "a\udcff.mp4", "ÿ", LONG, "n" * 255 + ".mp4", "-1", "nan", "inf", "-inf", "1e999",
    "1" + "0" * 30, "9" * 5000, "../x", "/dev/null", "/dev/zero", "/dev/stdin", "/", ".", "..", "~", "x\ny", "x\ry.mp4",
    "\x1b[31mred\x1b[0m", "\x9b31m", "%s%n", "{}", "{0.__class__}", "C:\\x", "\\\\host\\x", "nul", "0x10", "1x1",
    "64x64x64", "٣٢x٣٢", "1_000x64", "64X96", "1_0", "0.2.3", "True", "None", "--", "-", "@x", "http://127.0.0.1:9/x",
    "file:///etc/passwd", "0", "0x0", "1e-9", "32x32", "-64x64", "99999999999x64", "64x1000000", "1,2", "nan,nan,nan",
    "1e400,1,1", ",,", "5,2,5,", "cpu:1", "meta", "hpu", "privateuseone", "cuda:99", "cuda:-1", "mps", "xla", "fpga",
    "vulkan", "cpu,cpu", "cpu:0", "CPU", " cpu", "cpu\n", "cuda:", "cpu:99999999999", "o.mp4/", "o.mp4/o.mp4", "o.MP4",
    ".mp4", "o.mkv", "o.mp4 ", "x/../o.mp4", "\u202egpm.4", "\ufeff", "😀", "e\u0301" * 400, "star " * 9999,
    "18446744073709551615", "18446744073709551616", "-9223372036854775808", "0.16", "0.159", "30", "30.01", "1",
)  # fmt: skip
GENERATE = (
    "--models", "--prompt", "--output", "--image", "--audio", "--seconds", "--size", "--model", "--upscale",
    "--sr-model", "--steps", "--seed", "--negative-prompt", "--guidance", "--device", "--devices", "--dtype",
    "--transformer", "--text-encoder", "--video-decoder", "--audio-vae", "--image-encoder", "--sr-transformer",
)  # fmt: skip
TOO_MUCH = {("--seconds", "30"), ("--size", "64x1000000"), ("--size", "99999999999x64")}
"""Right, or refused, but a matter of minutes where it is right."""
DECODER = PONY / "turbo_vae" / "checkpoint-340000.ckpt"


def changed(arguments: tuple[str, ...], option: str, word: str) -> tuple[str, ...]:
    """The arguments with one more option, or with another value where it is there."""
    if option in arguments:
        place = arguments.index(option) + 1
        return (*arguments[:place], word, *arguments[place + 1 :])
    return (*arguments, option, word)


def shown(text: str) -> str:
    return ascii(text) if len(text) < 60 else f"{ascii(text[:20])} and so on, {len(text)} characters"


def of_generate(rng: Random) -> Case:
    arguments, told = generate(), []
    for _ in range(rng.choice((1, 1, 1, 2))):
        option, word = rng.choice(GENERATE), rng.choice(WORDS)
        if (option, word) not in TOO_MUCH:
            arguments = changed(arguments, option, word)
            told.append(f"{option} {shown(word)}")
    return Case("generate " + " ".join(told), arguments)


def of_convert(rng: Random) -> Case:
    source, target, word = str(DECODER), "x.safetensors", rng.choice(WORDS)
    place = rng.choice(("source", "target", "--dtype", "--role", "--kind", "more"))
    more: tuple[str, ...] = ()
    if place == "source":
        source = word
    elif place == "target":
        target = word
    else:
        more = (word,) if place == "more" else (place, word)
    return Case(f"convert, {place} {shown(word)}", ("convert", source, target, *more))


def of_inspect(rng: Random) -> Case:
    word = rng.choice(WORDS)
    return Case(f"inspect {shown(word)}", ("inspect", word))


def of_shape(rng: Random) -> Case:
    """Options in another order, left out, twice, or cut off."""
    arguments = list(generate())
    how = rng.choice(("drop", "double", "shuffle", "cut", "insert"))
    place = rng.randrange(len(arguments))
    if how == "drop":
        del arguments[place]
    elif how == "double":
        arguments.insert(place, arguments[rng.randrange(len(arguments))])
    elif how == "shuffle":
        rng.shuffle(arguments)
    elif how == "cut":
        arguments = arguments[:place]
    else:
        arguments.insert(place, rng.choice(WORDS))
    return Case(f"arguments: {how} at {place}", tuple(arguments))


def build(rng: Random, folder: Path) -> Case:
    """One or two bad words at any place of any command; half of the time over an output that is there."""
    if rng.random() < 0.3:
        (folder / OUTPUT).write_bytes(b"an older clip")
    make = rng.choice((of_generate,) * 6 + (of_convert, of_convert, of_inspect, of_shape))
    return make(rng)
