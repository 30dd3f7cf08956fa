"""Tokenizers of tiktoken: round trips, streaming, state, and every way to name one."""

import copy
import hashlib
import io
import pickle
import random

import numpy as np
import pytest
import tiktoken
import torch

from lightning_app.data.bpe import GPT2_PATTERN, dump_ranks
from lightning_app.data.tokenizers import Tokenizer, load_tokenizer, pieces
from lightning_app.errors import InputError

O200K_LIKE = r"""[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"""


@pytest.fixture(scope="module")
def bpe(tmp_path_factory, prose) -> Tokenizer:
    path = tmp_path_factory.mktemp("bpe") / "bpe.tiktoken"
    return load_tokenizer(str(path), vocab_size=320, training_texts=lambda: prose)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, bpe) -> Tokenizer:
    return bpe if request.param == "bpe" else load_tokenizer("bytes")


def test_bytes_are_their_own_ids():
    tokenizer = load_tokenizer("bytes")
    assert (tokenizer.vocab_size, tokenizer.eot) == (257, 256)
    assert tokenizer.encode("Aé\n") == [65, 0xC3, 0xA9, 10]
    assert tokenizer.encode_many(["A", ""]) == [[65], []]


def test_a_trained_one_has_exactly_the_ids_asked_for(bpe):
    assert (bpe.vocab_size, bpe.eot) == (320, 319)
    assert len(bpe.encode("the cat")) < 7


def test_every_byte_and_any_text_come_back(tokenizer, wild):
    assert tokenizer.decode_bytes([tokenizer.encode(chr(b))[0] for b in range(128)]) == bytes(range(128))
    assert sorted(tokenizer.decode_bytes(range(256))) == list(range(256))
    assert len(wild) == 300
    for text in wild:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_names_of_special_tokens_are_ordinary_text(tokenizer):
    ids = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.eot not in ids
    assert tokenizer.decode(ids) == "a<|endoftext|>b"


def test_broken_utf8_is_replaced_and_unknown_ids_are_refused(tokenizer):
    broken = tokenizer.encode("é")[:1] if tokenizer.name == "bytes" else [tokenizer.encode("\x7fé")[-2]]
    assert tokenizer.decode(broken) == "\ufffd"
    for bad in (tokenizer.vocab_size, -1, 2**40):
        with pytest.raises(InputError, match=rf"id {bad} is not a token .* below {tokenizer.vocab_size}"):
            tokenizer.decode([65, bad])


def test_a_stream_yields_characters_when_they_are_complete():
    stream = load_tokenizer("bytes").stream_decoder()
    assert [stream(i) for i in "aé🙂".encode()] == ["a", "", "é", "", "", "", "🙂"]
    assert stream.flush() == ""
    assert stream(0xF0) == ""
    assert stream.flush() == "\ufffd"


def test_token_bytes_count_the_text(tokenizer, prose):
    lengths = tokenizer.token_bytes()
    ids = tokenizer.encode(prose[0])
    assert lengths.dtype == np.int32
    assert lengths.shape == (tokenizer.vocab_size,)
    assert lengths[tokenizer.eot] == 0
    assert lengths[ids].sum() == len(prose[0].encode())


def test_state_survives_a_checkpoint_pickle_and_deepcopy(tokenizer, prose):
    file = io.BytesIO()
    torch.save(tokenizer.state(), file)
    file.seek(0)
    loaded = Tokenizer.from_state(torch.load(file, weights_only=True))
    for other in (loaded, pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert other.encode(prose[0]) == tokenizer.encode(prose[0])
        assert other.fingerprint == tokenizer.fingerprint
        assert (other.name, other.eot, other.vocab_size) == (tokenizer.name, tokenizer.eot, tokenizer.vocab_size)


def test_the_fingerprint_tells_tokenizers_apart_but_not_their_names(bpe):
    state = bpe.state()
    assert Tokenizer.from_state(state | {"name": "other"}).fingerprint == bpe.fingerprint
    assert Tokenizer.from_state(state | {"pattern": r"\S+|\s+"}).fingerprint != bpe.fingerprint
    assert Tokenizer.from_state(state | {"specials": {"<|endoftext|>": 400}}).fingerprint != bpe.fingerprint
    assert load_tokenizer("bytes").fingerprint != bpe.fingerprint


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, O200K_LIKE])
def test_pieces_change_no_ids(bpe, pattern):
    tokenizer = Tokenizer.from_state(bpe.state() | {"pattern": pattern})
    rng = random.Random(2)
    text = "".join(rng.choices(["the ", "cat", "\n", "\n", " ", ".", "/", "\t", "1", "é"], k=3_000))
    for size in (1, 10, 100):
        parts = pieces(text, size=size)
        assert len(parts) > 2_000 / (size + 50)
        assert "".join(parts) == text
        assert [i for part in parts for i in tokenizer.encode(part)] == tokenizer.encode(text)


def test_pieces_of_a_text_without_a_place_to_cut_are_the_text():
    assert pieces("a " * 50, size=10) == ["a " * 50]
    assert pieces("") == [""]


def test_long_runs_of_white_space_do_not_overflow(bpe):
    text = "a" + " " * 1_500_000 + "b"
    assert bpe.decode(bpe.encode(text)) == text
    assert bpe.encode_array(text).tolist() == bpe.encode(text)


def test_an_array_holds_the_ids_of_the_list(tokenizer, prose):
    for text in ("", "é", prose[0], "x<|endoftext|>y <|endoftext|>"):
        ids = tokenizer.encode_array(text)
        assert ids.dtype == np.uint32
        assert ids.tolist() == tokenizer.encode(text)


def test_a_file_is_read_anew_when_it_changes(tmp_path):
    path = tmp_path / "mine.tiktoken"
    ranks = {bytes([b]): b for b in range(256)}
    path.write_text(dump_ranks(ranks))
    assert load_tokenizer(str(path)).eot == 256
    path.write_text(dump_ranks(ranks | {b"ab": 300}))
    assert load_tokenizer(str(path)).eot == 301
    assert load_tokenizer(str(path)).encode("cab") == [99, 300]
    with pytest.raises(InputError, match=r"vocab_size is 301, but .* has 302 ids"):
        load_tokenizer(str(path), vocab_size=301)
    assert load_tokenizer(str(path), vocab_size=400).vocab_size == 302  # ids to spare


def test_a_missing_file_needs_a_size_and_a_text(tmp_path, prose):
    path = str(tmp_path / "no.tiktoken")
    with pytest.raises(InputError, match=r"no such tokenizer file.*vocab_size is None.*train"):
        load_tokenizer(path)
    with pytest.raises(InputError, match=r"vocab_size is 100"):
        load_tokenizer(path, vocab_size=100, training_texts=lambda: prose)


def test_a_tiktoken_encoding_by_name(monkeypatch):
    ranks = {bytes([b]): b for b in range(256)} | {b"ab": 256}
    specials = {"<|endoftext|>": 257, "<|fim|>": 260}

    def toy():
        return {"name": "toy", "pat_str": r"\S+|\s+", "mergeable_ranks": ranks, "special_tokens": specials}

    tiktoken.list_encoding_names()
    monkeypatch.setitem(tiktoken.registry.ENCODING_CONSTRUCTORS, "toy", toy)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    tokenizer = load_tokenizer("toy")
    assert (tokenizer.eot, tokenizer.vocab_size) == (257, 261)
    assert tokenizer.encode("abc") == [256, 99]
    assert tokenizer.token_bytes()[[97, 256, 257, 258, 260]].tolist() == [1, 2, 0, 0, 0]
    with pytest.raises(InputError, match="id 258 is not a token"):
        tokenizer.decode([258])


@pytest.mark.parametrize(("asked", "there"), [("gpt2", "r50k_base"), ("r50k_base", "gpt2")])
def test_of_two_names_of_a_vocabulary_the_one_at_hand_serves(monkeypatch, asked, there):
    ranks = {bytes([b]): b for b in range(256)}
    made = tiktoken.Encoding(there, pat_str=r"\S+", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 256})

    def get_encoding(name: str) -> tiktoken.Encoding:
        if name != there:
            raise OSError("offline")
        return made

    monkeypatch.setattr(tiktoken, "get_encoding", get_encoding)
    tokenizer = load_tokenizer(asked)
    assert (tokenizer.name, tokenizer.encode("a")) == (asked, [97])


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(InputError, match=r"unknown tokenizer 'gpt5'.*'bytes'.*\.tiktoken.*r50k_base"):
        load_tokenizer("gpt5")


@pytest.mark.parametrize("cached", [None, b"damaged"])
def test_a_failed_download_names_the_offline_choices(monkeypatch, tmp_path, cached):
    import requests

    url = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
    if cached:
        (tmp_path / hashlib.sha1(url.encode()).hexdigest()).write_bytes(cached)
    asked = []

    def fail(blobpath):
        asked.append(blobpath)
        raise requests.exceptions.ConnectionError("offline")

    monkeypatch.setattr(tiktoken.load, "read_file", fail)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(InputError, match=r"TIKTOKEN_CACHE_DIR.*bytes.*\.tiktoken.*data\.vocab_size") as caught:
        load_tokenizer("r50k_base")
    assert asked[0] == url  # then those of gpt2, the same vocabulary
    assert isinstance(caught.value.__cause__, requests.exceptions.ConnectionError)
