"""Ranks files and training: against `tokenizers` itself, and what a trained file remembers."""

import base64
import json
import random
import time
from functools import partial

import pytest
import tiktoken
from tiktoken.load import load_tiktoken_bpe

from lightning_app import io
from lightning_app.data import bpe
from lightning_app.data.bpe import (
    GPT2_PATTERN,
    byte_symbols,
    dump_ranks,
    ensure_trained,
    new_trainee,
    parse_ranks,
    read_ranks,
    train_ranks,
)
from lightning_app.errors import InputError

BYTES = {bytes([b]): b for b in range(256)}


def test_trained_ranks_give_the_ids_of_tokenizers(prose, wild):
    import tokenizers

    theirs = new_trainee()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    theirs.train_from_iterator(prose, trainer=trainer)
    ranks = train_ranks(prose, size=400)
    ours = tiktoken.Encoding("ours", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
    texts = wild + prose
    assert len(ranks) == 400
    assert sum(len(text) for text in texts) > 10_000
    for text in texts:
        ids = ours.encode_ordinary(text)
        assert ids == theirs.encode(text).ids
        assert ours.decode(ids) == text


def test_training_is_deterministic_and_ranks_are_ids(prose):
    first, second = train_ranks(prose, size=350), train_ranks(prose, size=350)
    assert dump_ranks(first) == dump_ranks(second)
    assert sorted(first.values()) == list(range(350))


@pytest.mark.parametrize("signs", ["abcdefgh", " \t"])
def test_one_long_run_trains_in_linear_time(signs):
    """160,000 letters without a cut take 9 s of CPU time."""
    drawn = random.Random(0)
    start = time.process_time()
    ranks = train_ranks(["".join(drawn.choices(signs, k=160_000))], size=400)
    assert len(ranks) == 400
    assert time.process_time() - start < 3


def test_a_small_text_gives_fewer_tokens_and_says_so(caplog):
    assert len(train_ranks(["ab ab"], size=1000)) < 300
    assert "of 1000 tokens" in caplog.text


def test_byte_symbols_name_every_byte_once():
    symbols = byte_symbols()
    assert sorted(symbols.values()) == list(range(256))
    assert symbols["A"] == 65
    assert symbols["Ġ"] == 32  # GPT-2's well-known sign for the space


def test_ranks_survive_the_file(tmp_path):
    ranks = BYTES | {b"ab": 256, b"\x00\xff": 257}
    path = tmp_path / "r.tiktoken"
    path.write_text(dump_ranks(ranks))
    assert read_ranks(path) == ranks
    assert read_ranks(path) == load_tiktoken_bpe(str(path))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("###", r"line 301: '###' is not a base64 token"),
        ("YWI= x", r"line 301"),
        ("YWI= 256 1", r"line 301"),
        ("YWI= -1", r"line 301: .*out of range"),
        ("QQ== 300", r"line 301: .* repeats .* line 66"),
        ("YWI= 65", r"line 301: .* repeats .* line 66"),
        ("ä", r"line 301: not a .tiktoken file"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, said):
    path = tmp_path / "r.tiktoken"
    path.write_text(dump_ranks(BYTES) + "\n" * 44 + line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_ranks(path)


def test_a_missing_byte_is_an_error():
    lines = "".join(f"{base64.b64encode(bytes([b])).decode()} {b}\n" for b in range(256) if b != 0x41)
    with pytest.raises(InputError, match=r"1 of the 256 single bytes .* 0x41"):
        parse_ranks(lines, source="file")


def test_a_trained_file_is_kept(tmp_path, caplog, prose):
    path = tmp_path / "new" / "bpe.tiktoken"
    assert ensure_trained(path, vocab_size=300, texts=lambda: prose) == path
    first, written = path.read_bytes(), path.stat().st_mtime_ns
    assert ensure_trained(path, vocab_size=300, texts=lambda: prose) == path
    assert json.loads((tmp_path / "new" / "bpe.tiktoken.json").read_text())["vocab_size"] == 300
    assert caplog.records == []

    found = [ensure_trained(path, vocab_size=310, texts=lambda: prose) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0].name.startswith("bpe-")
    assert found[0].name.endswith("-310.tiktoken")
    assert len(read_ranks(found[0])) == 309
    other = ensure_trained(path, vocab_size=300, texts=lambda: prose[:1] * 2)
    assert len({path, *found, other}) == 3
    assert caplog.messages == [
        f"{path} was trained on another text or vocab_size and stays; taken instead: {taken}"
        for taken in (*found, other)
    ]
    assert ensure_trained(path, vocab_size=300, texts=lambda: prose) == path
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (first, written)
    suffixes = sorted(p.suffix for p in path.parent.iterdir())
    assert suffixes == [*[".json"] * 3, ".lock", *[".tiktoken"] * 3]  # nothing temporary


def test_the_users_own_file_is_never_overwritten(tmp_path, prose):
    path = tmp_path / "mine.tiktoken"
    path.write_text(dump_ranks(BYTES))
    ensure_trained(path, vocab_size=300, texts=lambda: prose)
    assert read_ranks(path) == BYTES

    trained = tmp_path / "edited.tiktoken"
    ensure_trained(trained, vocab_size=300, texts=lambda: prose)
    trained.write_text(dump_ranks(BYTES))
    for read in (read_ranks, partial(ensure_trained, vocab_size=300, texts=lambda: prose)):
        with pytest.raises(InputError, match=r"not as it was trained.* delete edited.tiktoken.json alone if"):
            read(trained)
    (tmp_path / "edited.tiktoken.json").unlink()
    ensure_trained(trained, vocab_size=310, texts=lambda: prose)
    assert read_ranks(trained) == BYTES


def test_a_damaged_origin_is_refused(tmp_path, prose):
    path = tmp_path / "bpe.tiktoken"
    ensure_trained(path, vocab_size=300, texts=lambda: prose)
    beside = tmp_path / "bpe.tiktoken.json"
    for content in (b"", b"{", b"[]", b'{"vocab_size": 300}', b"\xff", b"[" * 10**5):
        beside.write_bytes(content)
        with pytest.raises(InputError, match=r"bpe.tiktoken.json, which says on what .* is damaged"):
            read_ranks(path)


def test_a_crash_while_training_leaves_nothing_that_passes_for_the_users(tmp_path, prose, monkeypatch):
    path = tmp_path / "bpe.tiktoken"

    def crash_at_the_ranks(target, data):
        if target == path:
            raise KeyboardInterrupt
        io.write_atomic(target, data)

    with monkeypatch.context() as patch:
        patch.setattr(bpe, "write_atomic", crash_at_the_ranks)
        with pytest.raises(KeyboardInterrupt):
            ensure_trained(path, vocab_size=300, texts=lambda: prose)
    ensure_trained(path, vocab_size=310, texts=lambda: prose)
    assert len(read_ranks(path)) == 309


def test_impossible_training_is_refused(tmp_path, prose):
    with pytest.raises(InputError, match=r"data\.vocab_size is 256.*at least 257"):
        ensure_trained(tmp_path / "a.tiktoken", vocab_size=256, texts=lambda: prose)
    with pytest.raises(InputError, match="no text to train"):
        ensure_trained(tmp_path / "a.tiktoken", vocab_size=300, texts=list)
    assert not (tmp_path / "a.tiktoken").exists()
