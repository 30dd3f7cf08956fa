"""An archive gives back every byte, in another process, with any model, and says why where it cannot."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_app.cli import main as command
from lightning_app.compression import archive as archives
from lightning_app.compression.archive import COUNTING, FROZEN, HEAD, OPTIONS, compress, decompress
from lightning_app.compression.coding import LEARNED, Writing, pass_through
from lightning_app.compression.setting import Setting
from lightning_app.data.batch import IGNORE, Batch
from lightning_app.errors import InputError
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import NGramReader
from lightning_app.models.adaptation_options import AdaptationOptions
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.training.adapting import Adaptation
from tests.made_models import READERS, decoder, ready

ROOT = Path(__file__).parents[2]
TEXT = b"the model learns what the teacher shows and forgets what nobody asks about again "


@pytest.mark.parametrize(
    ("reader", "segment_length"),
    [
        *(pytest.param(reader, None, marks=() if reader == "knn" else pytest.mark.slow) for reader in READERS),
        ("attention", 8),
    ],
)
def test_a_model_with_a_memory_writes_while_it_reads(reading, reader, segment_length):
    module, tokenizer = reading(reader, "what the teacher shows and forgets", segment_length=segment_length)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items() if isinstance(tensor, torch.Tensor)}
    data = TEXT[:26]  # beyond the 24 positions of its context
    done = compress(data, module, tokenizer)
    assert decompress(done.data, module, tokenizer) == data
    assert len(done.data) - HEAD.size - 3 <= 1.002 * done.bits / 8
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in before.items())


@pytest.mark.parametrize("reader", [None, pytest.param("cache", marks=pytest.mark.slow)])
def test_a_model_that_adapts_is_read_the_same_way(plain, reading, reader):
    module, tokenizer = plain if reader is None else reading(reader, "what the teacher shows", segment_length=8)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items() if isinstance(tensor, torch.Tensor)}
    data = TEXT + b"\xff\x00" + TEXT
    frozen, done = compress(data, module, tokenizer), compress(data, module, tokenizer, AdaptationOptions(lr=3e-2))
    assert decompress(done.data, module, tokenizer) == data
    assert done.bits < frozen.bits - 20
    assert len(done.data) - HEAD.size - OPTIONS.size - 3 <= 1.002 * done.bits / 8
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in before.items())


@pytest.mark.slow
def test_counts_follow_a_model_that_adapts():
    torch.manual_seed(1)
    module = VardaGPT(decoder(), [NGramReader(order=4)])
    module.backbone.readers[0].bank.hold(torch.tensor(list(b"what nobody knows")))
    module, tokenizer = ready(module)
    model, data = (module, tokenizer), TEXT[:48] * 2
    frozen, learned, counted = (compress(data, *model, given) for given in (None, AdaptationOptions(lr=0), None))
    assert [one.data[1] for one in (frozen, learned)] == [FROZEN, COUNTING]
    assert frozen.data == counted.data  # nothing is left of what was counted
    assert learned.bits < 0.7 * frozen.bits
    assert decompress(learned.data, *model) == data
    old = replace(archives._unpacked(learned.data), counts=False)  # as an archive from before: another text comes out
    with pytest.raises(InputError, match="does not give back"):
        decompress(archives._packed(old), *model)


class Recorded(Adaptation):
    """Learns nothing, and keeps what it was to learn from."""

    def __init__(self) -> None:
        self.learned: list[int] = []

    def learn(self, batch: Batch) -> None:
        self.learned += batch.targets[batch.targets != IGNORE].tolist()


def test_each_token_is_learned_from_once(plain):
    """Though the model sees fewer of them at once than lie between two steps of a larger one."""
    module, tokenizer = plain
    adaptation, ids = Recorded(), tokenizer.encode(TEXT.decode())
    assert module.backbone.max_length < LEARNED < len(ids)
    pass_through(module, Writing(), tokenizer.prompt(""), len(ids), ids, adaptation=adaptation)
    assert len(ids) - len(adaptation.learned) < module.backbone.max_length
    assert adaptation.learned == ids[: len(adaptation.learned)]


def test_the_bits_are_those_of_the_generations_probabilities(plain):
    module, tokenizer = plain
    done = compress(TEXT, module, tokenizer)
    decoder = module.batch_decoder()
    text = decoder.join(tokenizer.prompt(""), GenerationOptions())
    bits = 0.0
    for token in tokenizer.encode(TEXT.decode()):
        bits -= float(decoder.next_logits()[0].double().log_softmax(-1)[token]) / np.log(2)
        text.ids.append(token)
    assert done.passed.bits == pytest.approx(bits, rel=1e-9)
    assert done.passed.escape_bits < 0.1


def test_random_files_come_back(plain):
    module, tokenizer = plain
    draw = random.Random(0)
    for size in [0, 1, 2, 15, 16, 17, *(draw.randrange(60) for _ in range(4))]:
        data = draw.randbytes(size) if size % 2 else (TEXT * 9)[:size] + draw.randbytes(size % 7)
        assert decompress(compress(data, module, tokenizer).data, module, tokenizer) == data


@pytest.mark.slow  # 5 minutes
def test_a_thousand_random_files_come_back(plain):
    module, tokenizer = plain
    draw = random.Random(1)
    for _ in range(1000):
        size = draw.randrange(4096)
        text = (TEXT * 50)[: draw.choice([0, 0, size // 8])]
        data = text + draw.randbytes(size - len(text))
        assert decompress(compress(data, module, tokenizer).data, module, tokenizer) == data


def test_incompressible_bytes_cost_little_more_than_they_have(plain):
    data = random.Random(2).randbytes(4096)
    assert len(compress(data, *plain).data) < 1.04 * len(data)


@pytest.fixture(scope="module")
def archived(tmp_path_factory, tiny_checkpoint):
    """A text and its archive, written by the command."""
    source = tmp_path_factory.mktemp("archive") / "a.txt"
    source.write_bytes(TEXT)
    command(["compress", "--ckpt_path", str(tiny_checkpoint), str(source)])
    return source


def read_elsewhere(
    archived: Path, checkpoint: Path, output: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    words = ["decompress", "--ckpt_path", checkpoint, f"{archived}.lmz", "--output", output]
    line = [sys.executable, ROOT / "main.py", *words]
    return subprocess.run(line, capture_output=True, text=True, env=os.environ | variables, check=False)


def test_the_command_reads_it_with_another_number_of_threads(archived, tiny_checkpoint, tmp_path):
    torch.set_num_threads(2)
    try:
        command(["decompress", "--ckpt_path", str(tiny_checkpoint), f"{archived}.lmz", "--output", f"{tmp_path}/b.txt"])
    finally:
        torch.set_num_threads(1)
    assert (tmp_path / "b.txt").read_bytes() == archived.read_bytes()


@pytest.mark.slow  # ten seconds of imports
def test_another_process_reads_it(archived, tiny_checkpoint, tmp_path):
    assert read_elsewhere(archived, tiny_checkpoint, tmp_path / "b.txt", OMP_NUM_THREADS="2").returncode == 0
    assert (tmp_path / "b.txt").read_bytes() == archived.read_bytes()


@pytest.mark.slow
def test_a_cpu_with_other_instructions_is_refused(archived, tiny_checkpoint, tmp_path):
    refused = read_elsewhere(archived, tiny_checkpoint, tmp_path / "b.txt", ATEN_CPU_CAPABILITY="default")
    assert refused.returncode == 1
    assert "on a CPU with" in refused.stderr
    assert not (tmp_path / "b.txt").exists()


def test_what_differs_is_said(plain, archived, tiny_checkpoint, fails, monkeypatch):
    words = ["decompress", "--ckpt_path", tiny_checkpoint]
    assert "say where the file goes" in fails(*words, archived)
    assert "exists: choose another --output" in fails(*words, f"{archived}.lmz")
    assert "cannot be read" in fails(*words, "nowhere.lmz")
    assert "not an archive" in fails(*words, archived, "--output", "x")
    with pytest.raises(InputError, match="another model"):
        decompress(Path(f"{archived}.lmz").read_bytes(), *plain)
    data = compress(TEXT, *plain).data
    here = Setting.here
    changed = {"torch": (2, 6, 0), "libraries": b"12", "threads": 8, "dtype": torch.float16, "cpu": "SVE"}
    for name, value in changed.items():
        other = replace(Setting.here(*plain), **{name: value})
        monkeypatch.setattr(Setting, "here", lambda *_, other=other: other)
        with pytest.raises(InputError, match=r"the archive was written .*: it cannot be read here"):
            decompress(data, *plain)
        monkeypatch.setattr(Setting, "here", here)


@pytest.mark.parametrize("adapts", [None, AdaptationOptions()])
def test_damage_is_said_before_anything_is_computed(plain, monkeypatch, adapts):
    data = compress(TEXT, *plain, adapts).data
    monkeypatch.setattr(archives, "pass_through", None)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(InputError, match=r"damaged|not an archive|format"):
            decompress(bytes(damaged), *plain)
    for length in range(len(data)):
        with pytest.raises(InputError, match=r"damaged|not an archive|format"):
            decompress(data[:length], *plain)


def test_a_rate_without_adapt_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match="--lr says how a model adapts: give --adapt"):
        command(["compress", str(tmp_path / "a.txt"), "--ckpt_path", "none.ckpt", "--lr", "0.1", "--debug"])
