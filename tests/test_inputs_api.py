"""Prompts over the API that hold what no editor would send: each ends at its node in one line, the server goes on."""

import pytest

from comfy_host import PromptFailedError, PromptRefusedError

ERROR = "InputError"


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def sampled(**changes: object) -> dict:
    """A sampler whose every wire is a constant, and something to show what it makes."""
    inputs = {"model": 1, "positive": "a", "latent": {}, "seed": 1, "steps": 1} | changes
    return {"1": node("HappyHorseSampler", **inputs), "2": node("PreviewAny", source=["1", 0])}


def sigmas(shift: object) -> dict:
    return {"1": node("HappyHorseSigmas", steps=8, shift=shift), "2": node("PreviewAny", source=["1", 0])}


LOADER = {"model_name": "daVinci-MagiHuman/distill", "weight_dtype": "default", "role": "auto"}
MODEL = {"3": node("HappyHorseModelLoader", **LOADER)}


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (sampled(), "model: found 1, expected a model: connect Load HappyHorse Model"),
        (sampled(model=None), "model: found nothing, expected a model"),
        (sampled(model={"__value__": ["a", "b", 3]}), "model: found a list of 3, expected a model"),
        (
            sampled(model=["3", 0]) | MODEL,
            "positive: found the text 'a', expected an encoded prompt: connect CLIP Text Encode",
        ),
        (sampled(model=["3", 0], positive={"__value__": []}) | MODEL, "latent: found a dictionary of nothing"),
        (sigmas(float("nan")), "shift: found nan, expected a number from 0.01 to 100"),
        (sigmas("NaN"), "shift: found nan, expected a number from 0.01 to 100"),
    ],
)
def test_what_does_not_belong_there_ends_at_the_node_in_one_line(comfy_server, prompt, words):
    with pytest.raises(PromptFailedError) as caught:
        comfy_server.queue(prompt)
    (event,) = (data for kind, data in caught.value.entry["status"]["messages"] if kind == "execution_error")
    assert event["node_id"] == "1"
    assert event["exception_type"].endswith(ERROR)
    assert event["exception_message"].strip().startswith(words)
    assert len(event["exception_message"].strip().splitlines()) == 1


@pytest.mark.parametrize("shift", [float("inf"), 101, 0, "a", None])
def test_what_the_host_refuses_does_not_get_that_far(comfy_server, shift):
    with pytest.raises(PromptRefusedError, match="shift"):
        comfy_server.queue(sigmas(shift))


def test_the_server_goes_on(comfy_server):
    entry = comfy_server.queue(sigmas(5.0))
    assert entry["status"]["status_str"] == "success"
