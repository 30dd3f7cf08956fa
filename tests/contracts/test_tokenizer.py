"""What every tokenizer keeps to: tiktoken's, plain bytes, and all kinds of Hugging Face's."""

from __future__ import annotations

import copy
import io
import pickle
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_app.data.bpe import GPT2_PATTERN, train_ranks
from lightning_app.data.corpus import Document
from lightning_app.data.encoding import encode_documents
from lightning_app.data.tokenizers import TiktokenTokenizer, Tokenizer, base, load_tokenizer
from lightning_app.errors import InputError
from tests import tokenizers as kinds

PLAIN = "The year 1999, it's said:\n\n    x = [1, 22]\nand on. Über 🙂\n"
SPECIAL = ["<|endoftext|>", "<|im_end|>", "</s>", "<s>", "[SEP]", "<unk>", "<0x0A>", "##a", "▁", "Ġ", "<pad>"]
ALL = ["bytes", "tiktoken", *kinds.KINDS]


@cache
def made(kind: str) -> Tokenizer:
    if kind == "bytes":
        return load_tokenizer("bytes")
    if kind == "tiktoken":
        ranks = train_ranks(kinds.lines(), size=500)
        return TiktokenTokenizer(kind, ranks=ranks, pattern=GPT2_PATTERN, specials={"<|endoftext|>": 500, "<|x|>": 501})
    return kinds.made(kind)


@pytest.fixture(params=ALL)
def tokenizer(request) -> Tokenizer:
    return made(request.param)


pieces_of_text = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [*SPECIAL, " ", "  ", "\n", "\n\n", "\t", "   \n", "def f(x):\n    return x", "1234", "e\u0301", "ﬁ"]
    ),
    st.sampled_from(PLAIN.split(" ")),
)
texts = st.lists(pieces_of_text, max_size=12).map("".join)


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=15, deadline=None)
@given(text=texts)
def test_a_text_comes_back_or_is_said_to_be_lost(kind: str, text: str):
    tokenizer = made(kind)
    measured, back = tokenizer.measured(text), tokenizer.decode(tokenizer.encode(text))
    assert measured.ids.tolist() == tokenizer.encode(text)
    assert (text if measured.given_back is None else measured.given_back) == back
    lengths = tokenizer.token_bytes()[measured.ids] if measured.n_bytes is None else measured.n_bytes
    assert int(lengths.sum()) == (len(text.encode()) if len(measured.ids) else 0)
    decode = tokenizer.stream_decoder()
    assert "".join([*map(decode, measured.ids.tolist()), decode.flush()]) == back


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=10, deadline=None)
@given(first=texts, second=texts)
def test_what_continues_a_text_joins_it(kind: str, first: str, second: str):
    tokenizer = made(kind)
    before, behind = tokenizer.measured(first), tokenizer.measured(second, continues=True)
    if len(before.ids) and before.given_back is None and behind.given_back is None:
        assert tokenizer.decode([*before.ids, *behind.ids]) == first + second


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=300, deadline=None)
@given(first=texts, second=texts)
def test_many_more_texts(kind: str, first: str, second: str):
    test_a_text_comes_back_or_is_said_to_be_lost.hypothesis.inner_test(kind, first)
    test_what_continues_a_text_joins_it.hypothesis.inner_test(kind, first, second)


def test_plain_text_comes_back(tokenizer: Tokenizer):
    if tokenizer.name not in kinds.LOSSY | {"smollm2"}:
        assert tokenizer.measured(PLAIN).given_back is None
        assert tokenizer.decode(tokenizer.encode(PLAIN)) == PLAIN


def test_ids_in_every_form(tokenizer: Tokenizer):
    ids = tokenizer.encode_array(PLAIN)
    assert (ids.dtype, ids.ndim) == (np.uint32, 1)
    assert len(ids) > 10
    assert tokenizer.encode_many([PLAIN, ""]) == [ids.tolist(), []]
    assert set(ids.tolist()) <= tokenizer.known_ids()
    assert max(tokenizer.known_ids()) == tokenizer.vocab_size - 1


def test_half_of_a_surrogate_pair_does_no_harm(tokenizer: Tokenizer):
    assert tokenizer.encode("a\ud800") == tokenizer.encode("a\ufffd")


def test_names_of_special_tokens_are_text_unless_asked_for(tokenizer: Tokenizer):
    name = tokenizer.decode_bytes([tokenizer.eot], continues=True).decode()
    assert tokenizer.eot not in tokenizer.encode(f"a{name}b {name} {name}")
    if tokenizer.name not in kinds.LOSSY:
        assert tokenizer.decode(tokenizer.encode(f"a{name}b")) == f"a{name}b"
    assert tokenizer.encode(f"a{name}b", special=True).count(tokenizer.eot) == 1
    asked = Tokenizer.from_state({**tokenizer.state(), "special_text": True})
    assert asked.encode(f"a{name}b") == tokenizer.encode(f"a{name}b", special=True)
    assert asked.fingerprint != tokenizer.fingerprint
    measured = asked.measured(f"a{name}b")
    assert measured.n_bytes is not None
    assert int(measured.n_bytes.sum()) == len(f"a{name}b")


def test_a_prompt_begins_as_a_document_does(tokenizer: Tokenizer):
    assert (tokenizer.bos is not None) == (tokenizer.name in kinds.BEGINS)
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    assert tokenizer.prompt("The") == [*begin, *tokenizer.encode("The")]
    assert tokenizer.prompt("") == (begin or [tokenizer.eot])
    assert tokenizer.goes_on(tokenizer.prompt("The"))
    assert not tokenizer.goes_on(tokenizer.prompt(""))
    if tokenizer.bos is not None:
        assert tokenizer.decode(tokenizer.prompt("The")) == "The"
        name = tokenizer.decode_bytes(begin, continues=True).decode()
        assert tokenizer.prompt(name, special=True) == begin
        assert tokenizer.prompt(name).count(tokenizer.bos) == 1


def test_bytes_of_tokens(tokenizer: Tokenizer):
    lengths = tokenizer.token_bytes()
    assert (lengths.dtype, lengths.shape) == (np.int32, (tokenizer.vocab_size,))
    assert lengths[tokenizer.eot] == 0
    ordinary = [i for i in sorted(tokenizer.known_ids()) if lengths[i]]
    assert len(ordinary) > 200
    assert [len(tokenizer.decode_bytes([i], continues=True)) for i in ordinary] == lengths[ordinary].tolist()


def test_it_is_rebuilt_from_plain_types(tokenizer: Tokenizer):
    file = io.BytesIO()
    torch.save(tokenizer.state(), file)
    file.seek(0)
    loaded = Tokenizer.from_state(torch.load(file, weights_only=True))
    for other in (loaded, pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        assert type(other) is type(tokenizer)
        for text in (PLAIN, "<|endoftext|> </s> [SEP]"):  # `tokenizers` forgets that special text is ordinary
            assert other.encode(text) == tokenizer.encode(text)
        assert other.fingerprint == tokenizer.fingerprint
        for name in ("name", "eot", "bos", "pad", "vocab_size"):
            assert getattr(other, name) == getattr(tokenizer, name)


def test_the_name_is_not_part_of_the_fingerprint(tokenizer: Tokenizer):
    assert Tokenizer.from_state({**tokenizer.state(), "name": "another"}).fingerprint == tokenizer.fingerprint
    assert len({made(kind).fingerprint for kind in ALL}) == len(ALL)


def test_an_id_that_is_no_token_is_refused(tokenizer: Tokenizer):
    for bad in (tokenizer.vocab_size, -1, 2**40):
        with pytest.raises(InputError, match=rf"id {bad} is not a token of .* below {tokenizer.vocab_size}"):
            tokenizer.decode([tokenizer.encode("a")[0], bad])


def test_half_a_character_is_read_as_the_replacement(tokenizer: Tokenizer):
    assert (
        tokenizer.encode("a\ud83d b") == tokenizer.encode_array("a\ud83d b").tolist() == tokenizer.encode("a\ufffd b")
    )


def test_a_long_text_is_cut_without_changing_its_ids(tokenizer: Tokenizer, monkeypatch):
    monkeypatch.setattr(base.pieces, "__kwdefaults__", {"size": 300})
    text = "".join(kinds.lines()[:160]) + "<s>\nx\n  y\ne\u0301\nﬁ\n"
    first, *others = tokenizer.pieces(text)
    assert len(others) >= 5
    cut = [*tokenizer.encode(first), *(i for part in others for i in tokenizer.encode(part, continues=True))]
    assert cut == tokenizer.encode(text)


@pytest.mark.parametrize("kind", ["llama", "smollm2"])
def test_several_processes_give_the_ids_of_one(kind: str, monkeypatch):
    monkeypatch.setattr("lightning_app.data.encoding.JOB", 300)
    documents = [Document(text, prompt="<s> é") for text in kinds.lines()[:100] if text.strip()]
    one, two = (list(encode_documents(documents, made(kind), num_proc=n)) for n in (1, 2))
    assert len(one) > 5
    for a, b in zip(one, two, strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        assert a.other_bytes.tolist() == b.other_bytes.tolist()
        assert (a.parts, a.lost) == (b.parts, b.lost)
