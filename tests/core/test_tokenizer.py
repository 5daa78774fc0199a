"""The prompt's way to token ids, against ids worked out by hand on a vocabulary that fits on a page."""

import json
import logging
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from happyhorse_core.errors import CheckpointError, InputError
from happyhorse_core.text.tokenizer import MAX_TOKENS, GemmaTokenizer
from tools.make_tiny_checkpoints import SENTENCES, tokenizer_json

PONY = Path(__file__).parents[2] / "pony" / "t5gemma-9b-9b-ul2" / "tokenizer.json"
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


def changed(key: str, value: object, *path: str | int) -> dict:
    """The tree with one field replaced, at ``path`` in it."""
    built = tree()
    place = built
    for step in path:
        place = place[step]
    place[key] = value
    return built


NESTED_REPEATS = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "b"}


@pytest.mark.parametrize(
    ("built", "message"),
    [
        (changed("merges", ["zz q"], "model"), "entry 0: found 'zz q', expected two known pieces"),
        (changed("merges", [["a", "t"], ["c", "a"]], "model"), "entry 1: found a list of 2, expected two known"),
        (changed("merges", ["a b c"], "model"), "entry 0: found 'a b c'"),
        (changed("merges", [3], "model"), "entry 0: found 3"),
        (changed("merges", None, "model"), "merges: found None"),
        (changed("at", 2**32, "model", "vocab"), "piece 'at': found id 4294967296"),
        (changed("at", -1, "model", "vocab"), "piece 'at': found id -1"),
        (changed("at", 1.5, "model", "vocab"), "piece 'at': found id 1.5"),
        (changed("at", 3, "model", "vocab"), "pieces '<unk>' and 'at' both have id 3"),
        (changed("\ud800", 9000, "model", "vocab"), r"id 9000: found the piece '\\ud800'"),
        (changed("", 9000, "model", "vocab"), "id 9000: found the piece ''"),
        (changed("dropout", 0.5, "model"), "a model with dropout = 0.5"),
        (changed("unk_token", "zz", "model"), "a model with unk_token = 'zz'"),
        (changed("byte_fallback", 1, "model"), "a model with byte_fallback = 1"),
        (changed("ignore_merges", True, "model"), "a model with ignore_merges = True"),
        (changed("end_of_word_suffix", "</w>", "model"), "a model with end_of_word_suffix = '</w>'"),
        (changed("type", "WordPiece", "model"), "a model with type = 'WordPiece'"),
        (changed("normalizer", NESTED_REPEATS), r"a normalizer of another kind \('Replace'\)"),
        (changed("normalizer", {"type": "NFKC"}), r"a normalizer of another kind \('NFKC'\)"),
        (changed("normalizer", {"type": "Sequence", "normalizers": 3}), "normalizer: found 3, expected a list"),
        (changed("pre_tokenizer", {"type": "ByteLevel"}), r"a pre_tokenizer of another kind \('ByteLevel'\)"),
        (changed("pre_tokenizer", "x"), r"a pre_tokenizer of another kind \('x'\)"),
        (changed("added_tokens", {}), None),
        (changed("added_tokens", 3), "added_tokens: found 3, expected a list"),
        (changed("added_tokens", [3]), "added_tokens: found 3, expected a piece"),
        (changed("content", "", "added_tokens", 1), "added_tokens: found '', expected a piece"),
        (changed("content", "\ud800", "added_tokens", 1), r"added_tokens: found '\\ud800', expected a piece"),
        (changed("special", "yes", "added_tokens", 1), "added_tokens: found '<eos>', expected a piece"),
        (changed("id", 5000, "added_tokens", 1), "'<eos>': found id 5000, expected 1 as in the vocabulary"),
        (changed("content", "<zz>", "added_tokens", 3), f"'<zz>': found id 3, expected {len(VOCAB)} as in"),
    ],
)
def test_fields_of_another_kind_are_refused_by_name(built, message):
    if message is None:
        assert tokenizer(built).encode("cat") == [VOCAB["cat"]]
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        tokenizer(built)
    assert str(caught.value).startswith("here.json: ")


def test_pairs_may_be_lists_and_pieces_may_stand_after_the_vocabulary():
    built = tree()
    built["model"]["merges"] = [merge.split(" ") for merge in MERGES]
    built["added_tokens"].append({**built["added_tokens"][0], "id": len(VOCAB), "content": "<more>"})
    made = tokenizer(built)
    assert made.encode("cat<more> cat") == [VOCAB["cat"], len(VOCAB), VOCAB["▁cat"]]
    assert made.highest_id == len(VOCAB)


@pytest.mark.parametrize("text", [tokenizer_json(), PONY.read_text(encoding="utf-8")], ids=["tiny", "pony"])
def test_ids_are_those_of_the_library_for_the_whole_file(text):
    theirs, ours = Tokenizer.from_str(text), GemmaTokenizer.from_bytes(text.encode())
    pieces = list(theirs.get_vocab())
    for number in range(60):
        prompt = "".join(pieces[number * step % len(pieces)] + " \n"[step % 3 :] for step in range(1, 30)) + "É早🎉\0"
        assert ours.encode(prompt) == theirs.encode(prompt, add_special_tokens=False).ids
