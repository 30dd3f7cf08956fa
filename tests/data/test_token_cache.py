"""Token caches: content, damage, a full disk, and two processes at once."""

import json
import logging
import os
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest

from lightning_app.data import encoding, token_cache
from lightning_app.data.corpus import Document
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.tokenizers import Tokenizer, base, load_tokenizer
from lightning_app.errors import InputError
from lightning_app.io import temporary_name

DOCUMENTS = [Document("ab c", name="one"), Document("é", name="two")]
IDS = [97, 98, 32, 99, 256, 0xC3, 0xA9, 256]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def folders(cache_dir) -> list:
    return [path for path in cache_dir.iterdir() if path.is_dir()]


def test_what_is_written(tmp_path, tokenizer):
    tokens = prepare_tokens(DOCUMENTS, tokenizer, tmp_path)
    assert tokens.ids.tolist() == IDS
    assert tokens.ids.dtype == np.uint16
    assert isinstance(tokens.ids, np.memmap)
    assert not tokens.ids.flags.writeable
    assert tokens.offsets.tolist() == [0, 5, 8]
    assert tokens.offsets.dtype == np.int64
    assert (tokens.n_documents, tokens.n_tokens, tokens.n_bytes, tokens.n_words, tokens.eot) == (2, 8, 6, 3, 256)
    assert tokens.names == ["one", "two"]
    assert tokens.prompt_lengths is None
    assert tokens.document_of(np.array([[0, 4], [5, 7]])).tolist() == [[0, 0], [1, 1]]
    manifest = json.loads((tokens.folder / "manifest.json").read_text())
    assert manifest["n_characters"] == 5
    assert manifest["tokenizer_fingerprint"] == tokenizer.fingerprint
    assert sorted(os.listdir(tmp_path)) == [tokens.folder.name, tokens.folder.name + ".lock"]  # nothing temporary


def test_pairs_keep_the_length_of_their_prompts(tmp_path, tokenizer):
    tokens = prepare_tokens([Document("b", "a?"), Document("cd", "é")], tokenizer, tmp_path)
    assert tokens.ids.tolist() == [97, 63, 98, 256, 0xC3, 0xA9, 99, 100, 256]
    assert tokens.prompt_lengths.tolist() == [2, 2]
    assert tokens.offsets.tolist() == [0, 4, 9]


def test_large_vocabularies_take_four_bytes(tmp_path, tokenizer):
    for eot, dtype in ((65_535, np.uint16), (65_536, np.uint32)):
        state = tokenizer.state() | {"specials": {"<|endoftext|>": eot}}
        tokens = prepare_tokens(DOCUMENTS, Tokenizer.from_state(state), tmp_path)
        assert tokens.ids.dtype == dtype
        assert tokens.ids[-1] == eot


def test_a_cache_is_reused_until_text_or_tokenizer_change(tmp_path, tokenizer, monkeypatch):
    first = prepare_tokens(DOCUMENTS, tokenizer, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "_write", None)  # would be called to write
        assert prepare_tokens(iter(DOCUMENTS), tokenizer, tmp_path).folder == first.folder
    other = Tokenizer.from_state(tokenizer.state() | {"specials": {"<|endoftext|>": 300}})
    assert prepare_tokens(DOCUMENTS, other, tmp_path).folder != first.folder
    changed = [Document("ab d", name="one"), DOCUMENTS[1]]
    assert prepare_tokens(changed, tokenizer, tmp_path).folder != first.folder
    moved = [Document("ab c", name="one"), Document("", name=""), DOCUMENTS[1]]
    assert prepare_tokens(moved, tokenizer, tmp_path).folder != first.folder
    assert prepare_tokens(DOCUMENTS, tokenizer, tmp_path, max_documents=1).ids.tolist() == IDS[:5]
    assert len(folders(tmp_path)) == 5


def test_pickles_name_the_folder(tmp_path, tokenizer):
    tokens = prepare_tokens(DOCUMENTS, tokenizer, tmp_path)
    data = pickle.dumps(tokens)
    assert len(data) < 300
    assert pickle.loads(data).ids.tolist() == IDS


DAMAGE = ["shorter", "changed", "no manifest", "bad manifest", "odd manifest", "another number", "no tokens"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_written_anew_with_a_warning(tmp_path, tokenizer, caplog, damage):
    folder = prepare_tokens(DOCUMENTS, tokenizer, tmp_path).folder
    tokens, manifest = folder / "tokens-00000.bin", folder / "manifest.json"
    match damage:
        case "shorter":
            tokens.write_bytes(tokens.read_bytes()[:-2])
        case "changed":
            tokens.write_bytes(b"x" + tokens.read_bytes()[1:])
        case "no manifest":
            manifest.unlink()
        case "bad manifest":
            manifest.write_text(manifest.read_text()[:50])
        case "odd manifest":
            manifest.write_text("[1]")
        case "another number":
            manifest.write_text(manifest.read_text().replace('"n_bytes": 6', '"n_bytes": 7'))
        case "no tokens":
            tokens.unlink()
    caplog.set_level(logging.WARNING)
    assert prepare_tokens(DOCUMENTS, tokenizer, tmp_path).ids.tolist() == IDS
    assert [record.message.split(" (")[0] for record in caplog.records] == [f"the token cache {folder} is damaged"]
    caplog.clear()
    prepare_tokens(DOCUMENTS, tokenizer, tmp_path)
    assert caplog.records == []


def test_a_full_disk_leaves_nothing_behind(tmp_path, tokenizer, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "sync", full)
        with pytest.raises(InputError, match=r"no space left in .*cache: up to 16 bytes are needed, [\d,]+ are free"):
            prepare_tokens(DOCUMENTS, tokenizer, tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    assert prepare_tokens(DOCUMENTS, tokenizer, tmp_path / "cache").ids.tolist() == IDS


def test_leftovers_of_a_killed_process_are_removed(tmp_path, tokenizer):
    folder = prepare_tokens(DOCUMENTS, tokenizer, tmp_path).folder
    folder.rename(tmp_path / temporary_name(folder).name.replace(str(os.getpid()), str(dead_process())))
    assert prepare_tokens(DOCUMENTS, tokenizer, tmp_path).ids.tolist() == IDS
    assert folders(tmp_path) == [folder]


def test_a_cache_dir_that_is_a_file_is_refused(tmp_path, tokenizer):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write into .*file"):
        prepare_tokens(DOCUMENTS, tokenizer, tmp_path / "file")


def test_nothing_and_mixtures_are_refused(tmp_path, tokenizer):
    with pytest.raises(InputError, match="no documents"):
        prepare_tokens([], tokenizer, tmp_path)
    with pytest.raises(InputError, match="the source holds pairs and plain texts"):
        prepare_tokens([*DOCUMENTS, Document("a", "b")], tokenizer, tmp_path)


def test_a_long_document_is_encoded_as_if_whole(tmp_path, tokenizer, monkeypatch):
    text = "line of text\n" * 100
    monkeypatch.setattr(base.pieces, "__kwdefaults__", {"size": 50})
    assert len(base.pieces(text)) > 20
    tokens = prepare_tokens([Document(text)], tokenizer, tmp_path)
    assert tokens.ids.tolist() == [*text.encode(), 256]


LENGTHS = [0, 3, 0, 11, 1, 7, 30, 2]


@pytest.fixture(scope="module")
def texts() -> list[Document]:
    rng = random.Random(0)
    return [Document("".join(rng.choices("abcdefgh ", k=n)), name=f"text {i}") for i, n in enumerate(LENGTHS)]


def whole(texts) -> np.ndarray:
    return np.array([i for text in texts for i in (*text.text.encode(), 256)], dtype=np.uint16)


@pytest.mark.parametrize("size", [1, 2, 7, 16, 61, 62, 63])  # 62 tokens: also one shard, and shards that just fit
def test_shards_read_as_one_array(tmp_path, tokenizer, texts, size):
    tokens = prepare_tokens(texts, tokenizer, tmp_path, shard_bytes=2 * size)
    expected = whole(texts)
    files = sorted(tokens.folder.glob("tokens-*.bin"))
    assert [file.stat().st_size for file in files] == [2 * min(size, 62 - start) for start in range(0, 62, size)]
    assert sum(len(np.fromfile(file, np.uint16)) for file in files) == tokens.n_tokens == len(tokens.ids) == 62
    assert tokens.ids.dtype == np.uint16
    for start in range(63):
        for end in range(start, 65):
            np.testing.assert_array_equal(tokens.ids[start:end], expected[start:end])
    rng = np.random.default_rng(0)
    for shape in ((0,), (1,), (50,), (4, 9), (2, 3, 5)):
        positions = rng.integers(62, size=shape)
        np.testing.assert_array_equal(tokens.ids[positions], expected[positions], strict=True)
    for n in (1, 2, 5, 30):  # windows, some of which cross borders; then one of them is none
        positions = rng.integers(62 - n + 1, size=(9, 1)) + np.arange(n)
        np.testing.assert_array_equal(tokens.ids[positions], expected[positions], strict=True)
        positions[4] = rng.integers(62, size=n)
        np.testing.assert_array_equal(tokens.ids[positions], expected[positions], strict=True)
        np.testing.assert_array_equal(tokens.ids[positions[::3, ::-1]], expected[positions[::3, ::-1]], strict=True)
    assert tokens.ids[np.int64(61)] == expected[61]
    assert tokens.names == [text.name for text in texts]
    np.testing.assert_array_equal(np.diff(tokens.offsets), [n + 1 for n in LENGTHS])
    assert len({*tokens.keys_of(np.arange(8)).tolist()}) == 7  # the two empty texts have the same one


def test_positions_outside_of_the_shards_are_refused(tmp_path, tokenizer, texts):
    ids = prepare_tokens(texts, tokenizer, tmp_path, shard_bytes=20).ids
    for outside in (-1, 62):
        with pytest.raises(IndexError, match=rf"positions 3 to {outside} of 62|positions {outside} to 3 of 62"):
            ids[np.array([3, outside])]
    with pytest.raises(IndexError, match="positions -1 to 2 of 62"):
        ids[np.arange(-1, 3)]
    with pytest.raises(IndexError, match="positions 59 to 62 of 62"):
        ids[np.arange(59, 63)]


@pytest.mark.parametrize("damaged", [[1], [0, 3], [6], range(7)])
@pytest.mark.parametrize("kind", ["changed", "shorter", "gone"])
def test_damaged_shards_alone_are_written_anew(tmp_path, tokenizer, texts, caplog, damaged, kind):
    caplog.set_level(logging.WARNING)
    folder = prepare_tokens(texts, tokenizer, tmp_path, shard_bytes=20).folder
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    names = [f"tokens-{number:05d}.bin" for number in damaged]
    for name in names:
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        if kind != "gone":
            (folder / name).write_bytes(b"x" * len(data) if kind == "changed" else data[:-2])
    tokens = prepare_tokens(texts, tokenizer, tmp_path, shard_bytes=20)
    np.testing.assert_array_equal(tokens.ids[:], whole(texts))
    assert {name for name, number in before.items() if (folder / name).stat().st_ino != number} <= set(names)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []
    (record,) = caplog.records
    assert f"({', '.join(names)} changed); writing {len(names)} of its shards anew" in record.message


def test_all_is_written_anew_where_more_than_shards_is_damaged(tmp_path, tokenizer, texts, caplog):
    caplog.set_level(logging.WARNING)
    folder = prepare_tokens(texts, tokenizer, tmp_path, shard_bytes=20).folder
    (folder / "tokens-00001.bin").unlink()
    (folder / "names.jsonl").write_text("")
    tokens = prepare_tokens(texts, tokenizer, tmp_path)  # with another size of shards
    np.testing.assert_array_equal(tokens.ids[:], whole(texts))
    assert len(list(folder.glob("tokens-*.bin"))) == 1
    assert "writing it anew" in caplog.text


def test_documents_are_read_one_by_one(tmp_path, tokenizer, monkeypatch):
    """Never the whole corpus: at most the documents of the jobs in flight are alive."""
    monkeypatch.setattr(encoding, "JOB", 1_000)
    alive, most = 0, 0

    class Text(str):
        def __init__(self, *_: object) -> None:
            nonlocal alive, most
            alive, most = alive + 1, max(most, alive + 1)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    class Corpus:
        def __iter__(self):
            return (Document(Text("x" * 100), name=str(i)) for i in range(500))

    assert prepare_tokens(Corpus(), tokenizer, tmp_path).n_tokens == 500 * 101
    assert 2 <= most <= 30


WRITER = """
import sys
from lightning_app.data.corpus import Document
from lightning_app.data import encoding, token_cache
from lightning_app.data.tokenizers import load_tokenizer
write = token_cache._write
def counted(*args):
    print("wrote")
    write(*args)
token_cache._write = counted
print("ready", flush=True)
sys.stdin.readline()
texts = [Document("some words of text " * 5000 + str(i)) for i in range(20)]
path = sys.argv[1] + "/bpe.tiktoken"
tokenizer = load_tokenizer(path, vocab_size=270, training_texts=lambda: [d.text for d in texts])
print(token_cache.prepare_tokens(texts, tokenizer, sys.argv[1] + "/cache").n_tokens)
"""


def test_two_processes_at_once_write_once(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2  # both have imported
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    lines = [line for output, _ in outputs for line in output.split()]
    assert sorted(lines)[-1] == "wrote"
    assert lines.count("wrote") == 1
    assert len(set(lines)) == 2  # both found the same number of tokens
    assert len(folders(tmp_path / "cache")) == 1


def test_a_cache_has_the_modes_of_the_users_umask(tmp_path, tokenizer):
    before = os.umask(0o022)
    try:
        prepare_tokens(DOCUMENTS, tokenizer, tmp_path)
    finally:
        os.umask(before)
    (folder,) = folders(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
