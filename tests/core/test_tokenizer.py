"""The prompt's way to token ids, against ids worked out by hand on a vocabulary that fits on a page."""

import json
import logging

import pytest

from happyhorse_core.errors import CheckpointError, InputError
from happyhorse_core.text.tokenizer import MAX_TOKENS, GemmaTokenizer
from tools.make_tiny_checkpoints import SENTENCES, tokenizer_json

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
BYTES = [f"<0x{n:02X}>" for n in range(256)]
FIRST_BYTE = len(SPECIAL)
PIECES = ["▁", "a", "c", "t", "at", "cat", "▁cat", "▁a"]
MERGES = ["a t", "c at", "▁ cat", "▁ a"]
VOCAB = {piece: index for index, piece in enumerate([*SPECIAL, *BYTES, *PIECES])}


def tree() -> dict:
    """The tiny stack's tokenizer with a vocabulary of eight pieces, its first four merges in the order of learning."""
    built = json.loads(tokenizer_json())
    built["model"] |= {"vocab": dict(VOCAB), "merges": list(MERGES)}
    built["added_tokens"] = built["added_tokens"][: len(SPECIAL)]
    return built


def tokenizer(built: dict | None = None) -> GemmaTokenizer:
    return GemmaTokenizer.from_bytes(json.dumps(built or tree()).encode(), "here.json")


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("cat", ["cat"]),
        ("a cat", ["a", "▁cat"]),
        ("cat a cat", ["cat", "▁a", "▁cat"]),
        ("tac", ["t", "a", "c"]),
        ("a  cat ", ["a", "▁", "▁cat", "▁"]),
        ("at\ncat", ["at", "<0x0A>", "cat"]),
    ],
)
def test_merges_and_spaces(prompt, pieces):
    assert tokenizer().encode(prompt) == [VOCAB[piece] for piece in pieces]


@pytest.mark.parametrize("text", ["é", "早", "🎉", "만나", "ß\t"])
def test_what_the_vocabulary_lacks_falls_back_to_its_bytes(text):
    assert tokenizer().encode("a" + text) == [VOCAB["a"], *(FIRST_BYTE + byte for byte in text.encode())]


def test_truncation_padding_and_added_ends_of_the_file_are_not_applied():
    built = tree()
    built["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    built["padding"] = {
        "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>",
    }  # fmt: skip
    built["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
    }
    assert tokenizer(built).encode("cat a cat") == [VOCAB[p] for p in ("cat", "▁a", "▁cat")]


def test_tiny_tokenizer_knows_its_sentences_and_survives_all_languages():
    tiny = GemmaTokenizer.from_bytes(tokenizer_json().encode())
    vocab = json.loads(tokenizer_json())["model"]["vocab"]
    byte_ids = {index for piece, index in vocab.items() if piece.startswith("<0x")}
    assert tiny.vocab_size == len(vocab)
    for sentence in SENTENCES:
        ids = tiny.encode(sentence)
        assert 0 < len(ids) < len(sentence)
        assert not byte_ids & set(ids) - {vocab["<0x0A>"]}
    assert len(tiny.encode("Frühstück — 食べました 🎉")) > 10


def test_empty_prompt_is_refused():
    for prompt in ("", "  \n\t"):
        with pytest.raises(InputError, match="prompt: found no text"):
            tokenizer().encode_prompt(prompt)


def test_long_prompt_is_cut_and_the_number_said(caplog):
    prompt = "cat" + " cat" * (MAX_TOKENS + 12)
    with caplog.at_level(logging.WARNING):
        ids = tokenizer().encode_prompt(prompt)
    assert ids == tokenizer().encode(prompt)[:MAX_TOKENS]
    assert f"found {MAX_TOKENS + 13} tokens" in caplog.text
    assert "the last 13 are cut" in caplog.text


def test_prompt_of_just_the_longest_length_is_left_alone(caplog):
    ids = tokenizer().encode_prompt("cat" + " cat" * (MAX_TOKENS - 1))
    assert len(ids) == MAX_TOKENS
    assert not caplog.records


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: there is no such file"):
        GemmaTokenizer.from_file(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="can't be read"):
        GemmaTokenizer.from_file(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (tokenizer_json().encode()[:1000], "no valid JSON"),
        (b"\x80\x02\xff\xfe", "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b"[1, 2]", "found a list of 2; expected a JSON object"),
        (b'{"model": {"type": "Unigram", "vocab": [["a", 0.5]]}}', "no vocabulary"),
    ],
)
def test_other_files_are_refused(data, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        GemmaTokenizer.from_bytes(data, "models/tokenizer.json")
    assert "models/tokenizer.json" in str(caught.value)


def test_tokenizers_of_other_models_are_refused():
    byte_level = tree()
    byte_level["model"]["byte_fallback"] = False
    shifted = tree()
    shifted["model"]["vocab"] |= {"<pad>": 3, "<unk>": 0}
    spaceless = tree()
    spaceless["model"]["vocab"] = {k: v for k, v in VOCAB.items() if k != "▁"}
    for built, message in (
        (byte_level, "byte_fallback = False"),
        (shifted, "<pad> with id 3"),
        (spaceless, "for a space"),
    ):
        with pytest.raises(CheckpointError, match=message):
            tokenizer(built)
