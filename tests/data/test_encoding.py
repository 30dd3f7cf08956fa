"""Encoding in several processes: the same result, errors, a killed process, Ctrl-C."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future

import numpy as np
import pytest

from lightning_app.data import encoding
from lightning_app.data.corpus import Document
from lightning_app.data.encoding import Part, count_words, encode_documents, encode_job
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.tokenizers import TiktokenTokenizer, Tokenizer, base, load_tokenizer
from lightning_app.errors import InputError


@pytest.fixture(scope="module")
def tokenizer(prose, tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("bpe") / "t.tiktoken"
    return load_tokenizer(str(path), vocab_size=400, training_texts=lambda: prose)


def texts(prose) -> list[Document]:
    """One much longer than a job, and many short ones."""
    return [Document(prose[0] * 2, name="a"), *(Document(prose[1][i : i + 90], name=str(i)) for i in range(300))]


def pairs(prose) -> list[Document]:
    return [Document(prose[0][i : i + 50], prose[1][i : i + 70], str(i)) for i in range(50)]


@pytest.mark.parametrize("make", [texts, pairs])
def test_several_processes_write_what_one_writes(make, tokenizer, prose, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "JOB", 5_000)  # some ten jobs
    monkeypatch.setattr("lightning_app.data.token_cache.WORTH_A_PROCESS", 1)
    monkeypatch.setattr(base.pieces, "__kwdefaults__", {"size": 2_000})
    used, pool = [], encoding.ProcessPoolExecutor
    monkeypatch.setattr(encoding, "ProcessPoolExecutor", lambda n, **options: used.append(n) or pool(n, **options))
    written = []
    for num_proc in (1, 2):
        tokens = prepare_tokens(make(prose), tokenizer, tmp_path / str(num_proc), num_proc=num_proc, shard_bytes=9_000)
        written.append({path.name: path.read_bytes() for path in tokens.folder.iterdir()} | {"": tokens.folder.name})
    assert used == [1]  # for the second run, beside this process
    assert written[0] == written[1]
    assert tokens.ids[:].tolist() == [
        i for d in make(prose) for i in (*tokenizer.encode(d.prompt or ""), *tokenizer.encode(d.text), tokenizer.eot)
    ]
    assert tokens.n_words == sum(len((d.prompt or "").split()) + len(d.text.split()) for d in make(prose))


class Late(Future):
    """Done when it is waited for."""

    def __init__(self, job: list[Part], tokenizer: Tokenizer) -> None:
        super().__init__()
        self._job = job, tokenizer

    def result(self, timeout=None):
        if not self.done():
            self.set_result(encode_job(*self._job))
        return super().result(timeout)


class LatePool:
    """Notes the jobs that it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.given: list[list[Part]] = []

    def submit(self, _, job: list[Part]) -> Late:
        self.given.append(job)
        return Late(job, self.tokenizer)


def test_this_process_encodes_while_the_others_have_enough_and_waits_for_those_far_behind(tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "AT_HAND", 2)
    monkeypatch.setattr(encoding, "AHEAD", 3)
    jobs, pool = [[Part(f"text {i}", False, True)] for i in range(10)], LatePool(tokenizer)
    read = []
    encoded = encoding._in_order(pool, (read.append(job) or job for job in jobs), tokenizer, num_proc=2)
    first = next(encoded)
    assert (pool.given, read) == (jobs[:2], jobs[:7])  # two at hand there, and not more than six wait
    found = [first, *encoded]
    assert pool.given == [jobs[i] for i in (0, 1, 7, 8)]
    assert [e.ids.tolist() for e in found] == [[*tokenizer.encode(job[0].text), tokenizer.eot] for job in jobs]


@pytest.mark.parametrize(
    "text", ["", " ", "a", " a", "a ", "two words", "\n\ta\xa0b\u3000c\x1fd \u2028 é🙂\n", "\u200b \u3001x"]
)
def test_words_are_those_of_split(text):
    assert count_words(text) == len(text.split())


def test_words_are_those_of_split_whatever_parts_them():
    text = "".join(f"a{chr(code)}" for code in range(0x10000) if not 0xD800 <= code < 0xE000)
    assert count_words(text) == len(text.split()) > 20


def test_a_process_that_encodes_imports_neither_torch_nor_locks():
    script = (
        "import sys, lightning_app.data.encoding; print(*{'torch', 'lightning', 'filelock', 'numpy'} & {*sys.modules})"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["numpy"]


def test_a_short_text_starts_no_process(tokenizer, prose, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "ProcessPoolExecutor", None)  # would be called
    assert prepare_tokens(texts(prose)[:3], tokenizer, tmp_path, num_proc=8).n_documents == 3


def test_an_error_while_reading_arrives_as_it_is(tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "JOB", 10)

    def documents():
        yield from (Document("some words of text") for _ in range(5))
        raise InputError("line 6 is bad")

    with pytest.raises(InputError, match="line 6 is bad"):
        list(encode_documents(documents(), tokenizer, num_proc=2))


class Mistaken(TiktokenTokenizer, kind="mistaken"):
    """Fails in a process that was started; kills it where the text says so."""

    def __reduce__(self):
        return _mistaken, (self.state(),)

    def encode_array(self, text: str, **options) -> np.ndarray:
        if multiprocessing.parent_process() is None:
            return super().encode_array(text, **options)
        if text == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise InputError(f"cannot encode {text!r}")


def _mistaken(state) -> Mistaken:
    return Mistaken(state["name"], ranks=encoding_ranks(state), pattern=state["pattern"], specials=state["specials"])


def encoding_ranks(state) -> dict[bytes, int]:
    return Tokenizer.from_state(state)._ranks


@pytest.mark.parametrize(
    ("text", "said"), [("odd", "cannot encode 'odd'"), ("die", r"processes .* lower data\.num_proc")]
)
def test_an_error_or_death_of_a_process_is_an_input_error(tokenizer, monkeypatch, text, said):
    monkeypatch.setattr(encoding, "JOB", 1)
    with pytest.raises(InputError, match=said):
        list(encode_documents([Document(text)] * 20, _mistaken(tokenizer.state()), num_proc=2))


def test_closing_the_generator_ends_the_processes(tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "JOB", 10)
    pools = []
    pool = encoding.ProcessPoolExecutor
    monkeypatch.setattr(encoding, "ProcessPoolExecutor", lambda n, **o: pools.append(pool(n, **o)) or pools[0])
    encoded = encode_documents((Document(f"text {i} of many") for i in range(10_000)), tokenizer, num_proc=2)
    assert isinstance(next(encoded).ids, np.ndarray)
    encoded.close()
    assert pools[0]._processes is None  # joined


LONG = """
import sys
from lightning_app.data.corpus import Document
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.tokenizers import load_tokenizer

class Endless:
    def __iter__(self):
        for i in range(400):
            yield Document("some words of text " * 50_000, name=str(i))
            if i == 20:
                print("started", flush=True)

if __name__ == "__main__":
    prepare_tokens(Endless(), load_tokenizer("bytes"), sys.argv[1], num_proc=2)
"""


def exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_at_once(tmp_path):
    (tmp_path / "long.py").write_text(LONG)
    pipe = subprocess.PIPE
    command = [sys.executable, str(tmp_path / "long.py"), str(tmp_path / "cache")]
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=env)
    assert [process.stdout.readline() for _ in range(2)] == ["started\n"] * 2  # the hash, and the tokens
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    before = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - before < 30
    assert process.returncode != 0
    assert errors.count("KeyboardInterrupt") == 1  # only the first process says so
    assert list((tmp_path / "cache").glob(".*tmp")) == []
    while exists(process.pid):  # the last one to end is an orphan, which the system buries when it gets to it
        assert time.monotonic() - before < 30
        time.sleep(0.1)
