"""The check of a host finds what a host lacks: sources of ours against a small stand-in with something taken away."""

import os
import subprocess
import sys

import pytest

from comfy_host import ROOT
from tools.host_uses import Call, collect

SOURCES = [ROOT / "nodes" / "host" / "guider.py", ROOT / "nodes" / "host" / "solver.py"]
SAMPLERS = """
class CFGGuider:
    def __init__(self, model_patcher):
        self.model_patcher, self.conds, self.inner_model = model_patcher, {}, None

    def predict_noise(self, x, timestep, model_options={}, seed=None):
        pass


class KSAMPLER:
    def __init__(self, sampler_function, extra_options={}, inpaint_options={}):
        pass


def sampling_function(model, x, timestep, uncond, cond, cond_scale, model_options={}, seed=None):
    pass
"""
OTHERS = {
    "main.py": "",
    "comfy/__init__.py": "",
    "comfy/options.py": "def enable_args_parsing(): ...",
    "comfy/cli_args.py": "",
    "comfy/model_patcher.py": "class ModelPatcher: ...",
}
"""The least that is taken for a ComfyUI, and what these sources import besides."""


@pytest.fixture
def check(tmp_path):
    """Runs the command against a stand-in of which one text is replaced by another."""

    def run(old="", new="", sources=SOURCES):
        assert old in SAMPLERS
        for name, text in {**OTHERS, "comfy/samplers.py": SAMPLERS.replace(old, new) if old else SAMPLERS}.items():
            (tmp_path / "host" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "host" / name).write_text(text)
        return command("--names-only", *sources, COMFYUI_PATH=tmp_path / "host", COMFYUI_PYTHON=sys.executable)

    return run


def command(*words, **environment):
    arguments = [sys.executable, "-m", "tools.check_host", *map(str, words)]
    variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    done = subprocess.run(arguments, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def faults(output):
    return [line for line in output.splitlines() if ".py:" in line]


def test_a_host_that_has_all_passes(check):
    status, output = check()
    assert status == 0 and not faults(output), output
    assert "all is there" in output


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("KSAMPLER", "Sampler", ["solver.py", "comfy.samplers.KSAMPLER", "missing"]),
        ("cond_scale, model_options={}", "cond_scale", ["guider.py", "sampling_function", "model_options"]),
        ("x, timestep, uncond, cond,", "x, timestep, cond,", ["guider.py", "sampling_function", "multiple values"]),
        ("def predict_noise", "def predict", ["guider.py", "TwoStreamGuider.predict_noise", "found neither"]),
        ("options={}, seed=None):", "options={}, seed=None, regions=None):", ["predict_noise", "regions", "ours is"]),
        ("model_patcher, self.conds", "model_patcher, self.conditions", ["guider.py", "CFGGuider().conds", "missing"]),
        (
            "def __init__(self, model_patcher)",
            "def __init__(self, model_patcher, cfg)",
            ["guider.py", "__init__", "'cfg'"],
        ),
        ("class CFG", "import a_library_that_is_not_there\nclass CFG", ["samplers", "a_library_that_is_not_there"]),
    ],
    ids=["name", "keyword", "position", "method", "parameter", "attribute", "constructor", "import"],
)
def test_what_a_host_lacks_is_reported(check, old, new, said):
    status, output = check(old, new)
    assert status == 1, output
    assert [line for line in faults(output) if all(word in line for word in said)], output


def test_what_the_code_looks_for_may_be_missing(check, tmp_path):
    source = tmp_path / "optional.py"
    source.write_text(
        "import inspect\n"
        "import comfy.samplers\n"
        "newer = getattr(comfy.samplers, 'Newer', None)\n"
        "if hasattr(comfy.samplers, 'other'):\n"
        "    comfy.samplers.other(1)\n"
        "if 'fast' in inspect.signature(comfy.samplers.KSAMPLER).parameters:\n"
        "    comfy.samplers.KSAMPLER(1, fast=True)\n"
        "try:\n"
        "    from comfy.later import thing\n"
        "except ImportError:\n"
        "    thing = None\n"
        "def use(guider: comfy.samplers.CFGGuider):\n"
        "    guider.cached = 1\n"
        "comfy.samplers.KSAMPLER(1, slow=True)\n"
    )
    status, output = check(sources=[source])
    for name in ("Newer", "other"):
        assert f"optional: comfy.samplers.{name}: absent" in output
    assert "optional: comfy.later.thing: absent" in output
    assert "optional: comfy.samplers.CFGGuider().cached, which is set at" in output
    (fault,) = faults("\n".join(line for line in output.splitlines() if not line.startswith("optional")))
    assert "optional.py:14" in fault and "slow" in fault and status == 1


def test_names_are_followed_through_aliases_instances_and_classes(tmp_path):
    source = tmp_path / "source.py"
    source.write_text(
        "import comfy.model_management as mm\n"
        "from comfy.sd import VAE as HostVAE\n"
        "from .sibling import other\n"
        "def load(vae: HostVAE | None, mm_of_ours: int):\n"
        "    mm.load_models_gpu([vae.patcher], memory_required=1)\n"
        "    made = HostVAE(sd={})\n"
        "    made.decode(*mm_of_ours)\n"
        "    other.decode(1)\n"
        "class Ours(HostVAE):\n"
        "    mine = 1\n"
        "    def decode(self, samples, extra=None):\n"
        "        return self.mine, self.theirs, super().decode(samples)\n"
    )
    found = collect([source], tmp_path)
    assert {use.name for use in found.uses if not use.call} == {
        "comfy.model_management", "comfy.sd", "comfy.sd.VAE", "comfy.model_management.load_models_gpu",
        "comfy.sd.VAE().patcher", "comfy.sd.VAE().decode", "comfy.sd.VAE().theirs",
    }  # fmt: skip
    assert {use.name: use.call for use in found.uses if use.call} == {
        "comfy.model_management.load_models_gpu": Call(1, ("memory_required",), False),
        "comfy.sd.VAE": Call(0, ("sd",), False),
        "comfy.sd.VAE().decode": Call(1, (), False),
    }
    assert Call(0, (), True) in [use.call for use in found.uses]
    assert {(override.name, str(override.signature)) for override in found.overrides} == {
        ("mine", "None"), ("decode", "(samples, extra=None)"),
    }  # fmt: skip


def test_no_host_is_said(tmp_path):
    status, output = command(COMFYUI_PATH=tmp_path)
    assert status == 2 and "no ComfyUI at" in output
    status, output = command("--if-found", COMFYUI_PATH=tmp_path)
    assert status == 0 and "skipped: no ComfyUI at" in output


def test_the_comfyui_that_is_here_passes(comfyui):
    status, output = command(COMFYUI_PATH=comfyui.path, COMFYUI_PYTHON=comfyui.python)
    assert status == 0 and "all is there" in output and "picture and sound" in output, output
