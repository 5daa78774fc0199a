"""The host's samplers, schedulers, guiders, caches and conditioning nodes on our model, against our own nodes.

The figures of ``FIGURES`` are those of docs/compatibility.md.
"""

import re
from pathlib import Path

import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom
import comfy_extras.nodes_easycache as caches
import comfy_extras.nodes_lt as ltxv
import comfy_extras.nodes_model_advanced as model_nodes
import pytest
import tiny
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_torch_compile import TorchCompileModel
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.sampling.schedule import flow_sigmas
from happyhorse_pack.happyhorse_core.video_vae.latent_statistics import normalise
from happyhorse_pack.happyhorse_core.weights.source import open_source
from happyhorse_pack.nodes.host import files
from happyhorse_pack.nodes.host.load import load_diffusion_model
from safetensors.torch import save_file

import nodes

SEED = 7
PAGE = Path(__file__).parent.parent.parent / "docs" / "compatibility.md"
FIGURES = {
    "simple": (0.00031, 0.0031),
    "sgm_uniform": (0.0099, 0.019),
    "linear_quadratic": (0.16, 0.16),
    "beta": (0.18, 0.18),
    "normal": (0.39, 0.11),
}
"""Scheduler -> how far its noise levels are from the released model's, at 8 and at 32 steps."""


def clean(latent):
    """Both streams in the model's own scale."""
    video, audio = tiny.streams(latent)
    return normalise(video), audio


def apart(one, other):
    """Relative difference of two latents, the larger one of the two streams."""
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(clean(one), clean(other), strict=True))


def ksampler(patcher, latent=None, steps=3, cfg=1.0, sampler="lcm", scheduler="simple", positive=None, negative=None):
    latent, positive = latent or tiny.empty(), positive or tiny.positive()
    chosen = (steps, cfg, sampler, scheduler)
    return nodes.KSampler().sample(patcher, SEED, *chosen, positive, negative or positive, latent)[0]


def advanced(guider, sampler, sigmas, latent=None):
    noise = custom.RandomNoise.execute(SEED).args[0]
    return custom.SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, latent or tiny.empty()).args


def ours(steps=3):
    inputs = {"positive": tiny.positive(), "latent": tiny.empty(), "seed": SEED, "steps": steps}
    return tiny.run(pack.HappyHorseSampler, model=tiny.model(), **inputs)[0]


def negative():
    return tiny.positive("blurred picture, noise")


# --- samplers and schedulers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", FIGURES)
def test_noise_levels_are_as_far_from_the_reference_as_the_page_says(scheduler):
    sampling = tiny.model().get_model_object("model_sampling")
    far = []
    for steps in (8, 32):
        levels = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
        far.append((levels - flow_sigmas(steps)).abs().max().item())
    assert far == pytest.approx(FIGURES[scheduler], rel=0.05)
    written = re.search(
        rf"^\| `{scheduler}` \| ([\d.]+) \| ([\d.]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert [float(figure) for figure in written.groups()] == list(FIGURES[scheduler])


def test_ksampler_with_lcm_and_simple_is_the_distilled_sampler_to_a_thousandth():
    assert 0 < apart(ksampler(tiny.model(), steps=8), ours(8)) < 1e-3
    assert apart(ksampler(tiny.model(), steps=8, scheduler="sgm_uniform"), ours(8)) > 1e-2


def test_lcm_on_the_exact_noise_levels_is_the_distilled_sampler():
    guider = custom.BasicGuider.execute(tiny.model(), tiny.positive()).args[0]
    lcm = custom.KSamplerSelect.execute("lcm").args[0]
    out, denoised = advanced(guider, lcm, tiny.run(pack.HappyHorseSigmas, steps=8)[0])
    assert apart(out, ours(8)) < 1e-6
    assert apart(denoised, ours(8)) < 1e-6


@pytest.mark.parametrize(
    ("sampler", "low", "high"), [("dpmpp_2m", 1e-3, 5e-3), ("uni_pc_bh2", 5e-3, 2e-2), ("euler", 5e-3, 3e-2)]
)
def test_ksampler_on_the_base_model_comes_as_near_as_the_page_says(sampler, low, high):
    base, prompts = tiny.model(tiny.BASE), {"positive": tiny.positive(), "negative": negative()}
    scales = {"video_scale_early": 5.0, "video_scale_late": 5.0, "audio_scale": 5.0}
    inputs = {"model": base, **prompts, "latent": tiny.empty(), "seed": SEED, "steps": 32}
    wanted = tiny.run(pack.HappyHorseBaseSampler, **inputs, **scales)[0]
    found = ksampler(base, steps=32, cfg=5.0, sampler=sampler, **prompts)
    assert low < apart(found, wanted) < high


def test_steps_split_over_two_ksamplers_are_those_of_one():
    text, latent, patcher = tiny.positive(), tiny.empty(), tiny.model()
    stage = nodes.KSamplerAdvanced().sample
    chosen = (4, 1.0, "euler", "simple", text, text)
    whole = stage(patcher, "enable", SEED, *chosen, latent, 0, 4, "disable")[0]
    half = stage(patcher, "enable", SEED, *chosen, latent, 0, 2, "enable")[0]
    assert apart(stage(patcher, "disable", SEED, *chosen, half, 2, 4, "disable")[0], whole) < 1e-5


def test_shift_of_the_host_moves_the_noise_levels():
    plain = ksampler(tiny.model())
    same, moved = (model_nodes.ModelSamplingSD3().patch(tiny.model(), shift)[0] for shift in (5.0, 2.0))
    assert apart(ksampler(same), plain) == 0
    assert apart(ksampler(moved), plain) > 0.1
    sampling = moved.get_model_object("model_sampling")
    levels = comfy.samplers.calculate_sigmas(sampling, "simple", 8)
    torch.testing.assert_close(levels, flow_sigmas(8, 2.0), atol=1e-3, rtol=0)


# --- guiders ----------------------------------------------------------------------------------------------------------


def test_dual_guider_of_the_host_equals_ours_at_constant_scales():
    base, prompts = tiny.model(tiny.BASE), (tiny.positive(), negative())
    solver, sigmas = tiny.run(pack.HappyHorseSamplerUniPC)[0], flow_sigmas(4)
    dual = ltxv.LTXVDualCFGGuider.execute(base, *prompts, 5.0, 3.0).args[0]
    scales = {"video_scale_early": 5.0, "video_scale_late": 5.0, "audio_scale": 3.0}
    own = tiny.run(pack.HappyHorseGuider, model=base, positive=prompts[0], negative=prompts[1], **scales)[0]
    found = advanced(dual, solver, sigmas)[0]
    assert apart(found, advanced(own, solver, sigmas)[0]) < 1e-5
    other = ltxv.LTXVDualCFGGuider.execute(base, *prompts, 5.0, 5.0).args[0]
    assert apart(advanced(other, solver, sigmas)[0], found) > 1e-3


# --- compilation and caches -------------------------------------------------------------------------------------------


def two_layers(path):
    """The distilled model cut to one layer of each kind, since compiling takes seconds a layer."""
    with open_source(files.resolve_entry("diffusion_models", tiny.DISTILLED, "name")) as source:
        tensors = {name: source.read(name).clone() for name in source.names}
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("block.")}
    for new, old in ((0, 0), (1, 2)):
        of_layer = {name: tensor for name, tensor in tensors.items() if name.startswith(f"block.layers.{old}.")}
        kept |= {name.replace(f".{old}.", f".{new}.", 1): tensor for name, tensor in of_layer.items()}
    save_file(kept, path)
    return load_diffusion_model(str(path))


def test_compiled_model_gives_the_same_and_is_one_graph(tmp_path):
    """With a backend that makes no code: that of the node's menu, inductor, takes minutes for its C++ here.

    Attention is the one that GPUs get: on a CPU the host's looks at free memory in the middle of it.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    patcher = two_layers(tmp_path / "two.safetensors")
    options = patcher.model_options["transformer_options"]
    options["optimized_attention_override"] = lambda original, *args, **kwargs: attention_pytorch(*args, **kwargs)
    plain = ksampler(patcher)
    compiled = TorchCompileModel.execute(patcher, "aot_eager").args[0]
    assert apart(ksampler(compiled), plain) < 1e-5
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert apart(ksampler(patcher), plain) == 0, "the model itself is not compiled"


def calls(patcher):
    """A clone of a model and the list that its calls are counted in."""
    seen = []

    def count(executor, *args, **kwargs):
        seen.append(1)
        return executor(*args, **kwargs)

    counted = patcher.clone()
    counted.add_wrapper(WrappersMP.DIFFUSION_MODEL, count)
    return counted, seen


@pytest.mark.parametrize("node", [caches.EasyCacheNode, caches.LazyCacheNode])
def test_step_caches_skip_steps_and_change_nothing_when_they_may_not(node):
    plain, steps = ksampler(tiny.model(), sampler="euler", steps=8), {}
    for threshold in (0.0, 0.2):
        counted, seen = calls(tiny.model())
        cached = node.execute(counted, threshold, 0.15, 0.95, False).args[0]
        steps[threshold] = (apart(ksampler(cached, sampler="euler", steps=8), plain), len(seen))
    assert steps[0.0] == (0, 8)
    assert 0 < steps[0.2][0] < 0.5


# --- conditioning -----------------------------------------------------------------------------------------------------


def in_range(text, start, end):
    return nodes.ConditioningSetTimestepRange().set_range(text, start, end)[0]


def test_prompts_combined_and_averaged_lie_between_them():
    one, other = tiny.positive(), negative()
    first, second = ksampler(tiny.model()), ksampler(tiny.model(), positive=other)
    combined = nodes.ConditioningCombine().combine(one, other)[0]
    mixed = ksampler(tiny.model(), positive=combined)
    assert max(apart(mixed, first), apart(mixed, second)) < apart(second, first)
    averaged = nodes.ConditioningAverage().addWeighted(one, one, 0.5)[0]
    assert apart(ksampler(tiny.model(), positive=averaged), first) < 1e-6


def test_a_prompt_for_some_of_the_steps():
    one, other = tiny.positive(), negative()
    always = nodes.ConditioningCombine().combine(in_range(one, 0.0, 0.5), in_range(one, 0.5, 1.0))[0]
    changing = nodes.ConditioningCombine().combine(in_range(one, 0.0, 0.5), in_range(other, 0.5, 1.0))[0]
    plain = ksampler(tiny.model(), steps=8)
    assert apart(ksampler(tiny.model(), steps=8, positive=always), plain) < 1e-6
    assert apart(ksampler(tiny.model(), steps=8, positive=changing), plain) > 1e-3


def test_a_zeroed_prompt_is_another_prompt_and_serves_as_the_negative_one():
    zero = nodes.ConditioningZeroOut().zero_out(tiny.positive())[0]
    base = tiny.model(tiny.BASE)
    with_zero = ksampler(base, cfg=3.0, sampler="euler", negative=zero)
    with_words = ksampler(base, cfg=3.0, sampler="euler", negative=negative())
    assert apart(with_zero, with_words) > 1e-3


def test_prompts_of_one_length_are_calculated_together_and_others_apart():
    base, long = tiny.model(tiny.BASE), tiny.positive()
    short = [[long[0][0][:, :-3], long[0][1]]]
    for other, number in ((long, 1), (short, 2)):
        counted, seen = calls(base)
        ksampler(counted, cfg=3.0, sampler="euler", steps=1, negative=other)
        assert len(seen) == number
