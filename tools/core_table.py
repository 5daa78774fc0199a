"""The tables of docs/compatibility.md: which of core's nodes does what with ours, as ``tools.core_nodes`` found it.

A row is an outcome and the nodes that have it, so that it is short, and can be read again to be compared.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

PAGE = Path(__file__).resolve().parent.parent / "docs" / "compatibility.md"
BEGIN, END = "<!-- core nodes: python -m tools.core_nodes --write -->", "<!-- end of core nodes -->"

CHANGES, SAME, UNREAD, REFUSED, CORE, RAW, NEEDS = "changes", "same", "unread", "refused", "core", "raw", "needs"
ALONE, JOIN = "alone", "join"
OUTCOMES = {
    CHANGES: "Works",
    SAME: "Runs, and the result is the same",
    UNREAD: "Runs without effect, and a warning says so",
    REFUSED: "Refused in a sentence of ours",
    CORE: "Refused in a sentence of core's",
    JOIN: "Gives a picture's latent alone: join a sound with LTXVConcatAVLatent",
    ALONE: "Fails inside core on every pair of picture and sound; takes the picture's latent alone",
    RAW: "Fails inside core",
    NEEDS: "Not tried: needs something else",
}
OTHERS = "Nodes made for other models"
MERGES = "Merges made for other models"
SECTIONS = ("MODEL", "CONDITIONING", "LATENT", "VAE", MERGES, OTHERS)
NOTES = {
    "MODEL": "UNetCrossAttentionMultiply, UNetSelfAttentionMultiply and UNetTemporalAttentionMultiply look for weights "
    "by the names of a U-Net, find none, and say nothing. FreeU is refused at the node itself, the others when a clip "
    "is sampled.",
    MERGES: "Their widgets are named after layers of those models. Ours has none of these, and is merged by the first.",
    OTHERS: "Where they run, what they add to a prompt or a model is not read by ours, or is not meant for it; but "
    "LTXVAudioVAEDecode and LTXVAudioVAEEncode do what VAEDecodeAudio and VAEEncodeAudio do.",
}
"""What stands above the table of a section."""
RUNS = "Runs, and what comes out is another result"
NOISE = "Runs, but sets the noise of models that were trained with another kind, which spoils the clip"
OTHER_NOISE = {f"ModelSampling{kind}" for kind in ("ContinuousEDM", "ContinuousV", "Discrete", "StableCascade")}
LABELS = {OUTCOMES[CHANGES]: CHANGES, RUNS: CHANGES, NOISE: CHANGES} | {words: key for key, words in OUTCOMES.items()}
"""First cell of a row -> what the program finds of its nodes, in the order of the rows."""
OTHER_MODULES = re.compile(
    r"nodes_(ace|ar_video|bernini|boogu|chroma_radiance|cosmos|flux|hidream_o1|hunyuan|hunyuan3d|ip2p|joyimage|"
    r"kandinsky5|lt|lt_audio|lt_upsampler|mage|minimax_h3|model_patch|nop|pid|qwen|rtdetr|sam3|scail|sdpose|"
    r"sdupscale|seedvr|stable3d|stable_cascade|trellis2|triposplat|void|wan|wandancer|wanmove|zimage)"
)
"""Modules of core whose nodes were made for one other model or a kind of them."""
OTHER_NODES = {"CLIPTextEncodeControlnet", "ConditioningStableAudio", "GLIGENTextBoxApply", "SVD_img2vid_Conditioning"}
OTHER_NODES |= {"ImageOnlyCheckpointSave", "unCLIPConditioning", "StyleModelApply", "FluxKVCache", "ControlNetApplySD3"}
FOR_ALL = {"LTXVConcatAVLatent", "LTXVSeparateAVLatent", "LTXVDualCFGGuider", "LTXVScheduler", "ModelSamplingLTXV"}
FOR_ALL |= {"TrimVideoLatent", "ReplaceVideoLatentFrames", "Wan22ImageToVideoLatent"}
"""Those of the modules above that do for others too."""


@dataclass(frozen=True)
class Found:
    """What came of a node: an outcome and the words of its error or warning, or what it needs."""

    outcome: str
    words: str = ""
    alone: str = ""
    """What came of it on the picture's latent without the sound's, where the pair did not go through."""

    @property
    def row(self) -> str:
        """The outcome as the table has it."""
        if self.alone not in (CHANGES, SAME):
            return self.outcome
        return {RAW: ALONE, REFUSED: JOIN}.get(self.outcome, self.outcome)


def section_of(title: str, module: str, kinds: Iterable[str]) -> str:
    """The table that a node belongs to, by its module and the kinds of its inputs."""
    part = module.rpartition(".")[2]
    if part == "nodes_model_merging_model_specific":
        return MERGES
    if title in OTHER_NODES or (OTHER_MODULES.fullmatch(part) and title not in FOR_ALL):
        return OTHERS
    return next(kind for kind in ("MODEL", "LATENT", "CONDITIONING", "VAE") if kind in kinds)


def tables(found: dict[str, Found], sections: dict[str, str], version: str) -> str:
    """Markdown of all nodes found, a table for each section that has some, and what is said of its nodes."""
    lines = [f"ComfyUI {version}, {len(found)} nodes, each with its defaults or with values that show an effect."]
    for section in SECTIONS:
        here = {title: found[title] for title in sorted(found, key=str.lower) if sections[title] == section}
        if not here:
            continue
        heading = section if section in (MERGES, OTHERS) else f"Nodes that take a {section}"
        note = [fill(NOTES[section], 120), ""] if section in NOTES else []
        lines += ["", f"### {heading}", "", *note, "| Outcome | Nodes |", "| --- | --- |"]
        rows = defaultdict(list)
        for title, one in here.items():
            rows[label(title, one.row, section)].append(title)
        lines += [f"| {words} | {', '.join(rows[words])} |" for words in LABELS if words in rows]
        said = sorted((one.row != UNREAD, title) for title, one in here.items() if one.row in (UNREAD, REFUSED))
        lines += words_of({title: here[title] for _, title in said})
    return "\n".join(lines)


def label(title: str, row: str, section: str) -> str:
    """The first cell of a node's row. Nodes made for other models run, but nobody should call that working."""
    if row == CHANGES and title in OTHER_NOISE:
        return NOISE
    return RUNS if row == CHANGES and section == OTHERS else OUTCOMES[row]


def words_of(found: dict[str, Found]) -> list[str]:
    """A list of the first sentences of what was said, each with its nodes."""
    said = defaultdict(list)
    for title, one in found.items():
        said[one.words.split(". ")[0].rstrip(".")].append(title)
    lines = [f"- {', '.join(titles)}: *{words}*" for words, titles in said.items()]
    return ["", "What is said:", "", *lines] if lines else []


def between(text: str) -> str:
    """What stands between the marks in the page."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def written(text: str, tables: str) -> str:
    """The page's text with these tables between its marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{tables}\n{END}{rest.partition(END)[2]}"


def rows_of(text: str) -> dict[str, str]:
    """Node -> key of ``OUTCOMES``, as the page says."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", between(text), re.MULTILINE)
    return {title: LABELS[words] for words, titles in rows if words in LABELS for title in titles.split(", ")}


def version_of(text: str) -> str:
    """The release of ComfyUI that the page's tables are of."""
    return re.match(r"ComfyUI (\S+),", between(text)).group(1)
