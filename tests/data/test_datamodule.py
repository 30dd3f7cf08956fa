"""The data module from Python and from YAML: preparation, loaders, counts, checkpoints, mistakes."""

import itertools
import logging
import subprocess
import sys

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_app.data.counts import Counts
from lightning_app.data.datamodule import Dataloader, Source, Split, TextDataModule
from lightning_app.errors import InputError

YAML = """
data:
  train: {path: PATH/train, max_samples: 3}
  val: {path: PATH/val.txt, stride: 4}
  tokenizer: PATH/bpe.tiktoken
  vocab_size: 300
  pad_vocab_to: 64
  block_size: 8
  dataloader: {batch_size: 2, shuffle: false}
  order: streams
  cache_dir: PATH/cache
"""


@pytest.fixture
def folder(tmp_path, prose):
    (tmp_path / "train").mkdir()
    for i in range(5):
        (tmp_path / "train" / f"{i}.txt").write_text(prose[0][i * 200 : (i + 1) * 200], encoding="utf-8")
    (tmp_path / "val.txt").write_text("abcdefghijklmnop")
    return tmp_path


@pytest.fixture
def make(folder):
    def make(**options) -> TextDataModule:
        options = {"train": {"path": str(folder / "train")}, "cache_dir": str(folder / "cache"), **options}
        return TextDataModule(**({"block_size": 8, "seed": 0} | options))

    return make


def test_yaml_and_command_line_make_the_module(folder):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TextDataModule, "data")
    (folder / "c.yaml").write_text(YAML.replace("PATH", str(folder)))
    parser.add_argument("--config", action="config")
    config = parser.parse_args([f"--config={folder}/c.yaml", "--data.dataloader.batch_size=4", "--data.val.stride=5"])
    data = parser.instantiate_classes(config).data
    assert data.dataloader == Dataloader(batch_size=4, shuffle=False)
    assert data.splits.sources["val"] == Source(f"{folder}/val.txt", stride=5)
    assert data.splits.sources["train"].max_samples == 3
    assert data.vocab_size == 320  # 300 rounded up, and nothing trained for it
    assert not (folder / "bpe.tiktoken").exists()
    data.prepare_data()
    data.setup("fit")
    assert (data.tokenizer.vocab_size, data.tokenizer_name) == (300, f"{folder}/bpe.tiktoken")
    assert len(data.dataset("train")) == 3


def test_vocab_size_is_the_tokenizers_where_none_is_given(make):
    assert make().vocab_size == 257
    assert make(pad_vocab_to=64).vocab_size == 320
    with pytest.raises(InputError, match=r"no such tokenizer file"):
        _ = make(tokenizer="missing.tiktoken").vocab_size


def test_batches_of_every_stage(make, folder):
    data = make(val=Source(str(folder / "val.txt")), dataloader=Dataloader(batch_size=2))
    data.prepare_data()
    data.setup("fit")
    assert [batch.input_ids.shape for batch in data.val_dataloader()] == [(2, 8)]
    (batch,) = data.predict_dataloader()  # stands in: val
    assert batch.input_ids.tolist() == [list(b"abcdefgh"), list(b"ijklmnop")]
    assert batch.targets.tolist() == [list(b"bcdefghi"), [*b"jklmnop", 256]]
    loader = data.train_dataloader()
    first, second = ([batch.input_ids for batch in loader] for _ in range(2))
    assert len(first) == len(loader) == data.batches_per_epoch() > 10
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist())
    assert torch.cat(first).tolist() != torch.cat(second).tolist()


def test_streams_continue_from_batch_to_batch(make):
    data = make(order="streams", dataloader={"batch_size": 3})
    batches = list(data.train_dataloader())
    assert len(batches) > 5
    for before, after in itertools.pairwise(batches):
        alive = len(after.input_ids)  # rows vanish at the end only
        assert torch.equal(before.targets[:alive, -1], after.input_ids[:, 0])


def test_shift_is_for_training_and_follows_the_epoch(make, folder):
    data = make(shift=True, val=Source(str(folder / "val.txt")), dataloader={"shuffle": False, "batch_size": 1})
    loader = data.train_dataloader()
    firsts = [next(iter(loader)).input_ids.tolist() for _ in range(6)]
    assert len({str(row) for row in firsts}) > 1
    assert next(iter(data.val_dataloader())).input_ids.tolist() == [list(b"abcdefgh")]
    again = make(shift=True, dataloader={"shuffle": False, "batch_size": 1}).train_dataloader()
    assert next(iter(again)).input_ids.tolist() == firsts[0]


def test_drop_last_counts_for_training_only(make, folder):
    data = make(val={"path": str(folder / "val.txt")}, dataloader={"batch_size": 50, "drop_last": True})
    assert data.batches_per_epoch("train") == len(data.dataset("train")) // 50
    assert data.batches_per_epoch("val") == 1


def test_ranks_share_the_windows(make, folder):
    seen = []
    for rank in range(2):
        data = make(val={"path": str(folder / "val.txt")}, dataloader={"batch_size": 1})
        data.trainer = type("Attached", (), {"global_rank": rank, "world_size": 2, "strategy": None})()
        seen.append([bytes(batch.input_ids[0].tolist()) for batch in data.val_dataloader()])
    assert seen == [[b"abcdefgh"], [b"ijklmnop"]]


def test_pairs_are_found_by_their_prompts(make, folder, caplog):
    caplog.set_level(logging.WARNING)
    path = folder / "pairs.jsonl"
    path.write_text('{"prompt": "q", "target": "a"}\n{"prompt": "long prompt", "target": "b"}\n')
    data = make(train={"path": str(path)}, shift=True)
    assert [row.truncated for row in data.counts()] == [1]
    assert "data.train has pairs: its stride, shift" in caplog.text


def test_a_split_gives_val_and_test(make):
    data = make(split=Split(train=0.6, val=0.2, test=0.2))
    data.prepare_data()
    assert [(row.split, row.documents) for row in data.counts()] == [("train", 3), ("val", 1), ("test", 1)]
    other = make(split={"train": 0.6, "val": 0.2, "test": 0.2})
    assert data.dataset("val").tokens.names == other.dataset("val").tokens.names
    assert data.counts() == other.counts()


def test_the_seed_is_the_runs_unless_given(make, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    data = make(seed=None)
    assert data.seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert data.seed == data.train_dataloader().seed == 7
    assert make(seed=3).seed == 3


def test_counts_and_summary(make, folder):
    data = make(val={"path": str(folder / "val.txt")}, pad_vocab_to=64)
    data.prepare_data()
    train, val = data.counts()
    assert val == Counts("val", documents=1, words=1, bytes=16, tokens=17, windows=2, truncated=0)
    assert (train.split, train.documents) == ("train", 5)
    assert train.tokens == train.bytes + 5
    lines = data.summary().splitlines()
    assert lines[0] == "tokenizer bytes: 320 ids; block_size 8"
    assert lines[1].split() == ["split", "documents", "words", "bytes", "tokens", "windows", "truncated"]
    assert lines[3].split() == ["val", "1", "1", "16", "17", "2", "0"]
    assert len(set(map(len, lines[1:]))) == 1


def test_another_text_gets_a_vocabulary_of_its_own_but_an_evaluation_does_not(make, folder):
    options = {"tokenizer": str(folder / "t.tiktoken"), "vocab_size": 280, "val": {"path": str(folder / "val.txt")}}
    make(**options).prepare_data()
    first = (folder / "t.tiktoken").read_bytes()
    (folder / "train" / "0.txt").write_text("quite another text, quite other tokens " * 9)
    data = make(**options)
    data.trainer = type(
        "Attached", (), {"state": type("State", (), {"fn": L.pytorch.trainer.states.TrainerFn.VALIDATING})}
    )
    data.prepare_data()
    assert (folder / "t.tiktoken").read_bytes() == first
    other = make(**options)
    other.prepare_data()
    assert (folder / "t.tiktoken").read_bytes() == first
    assert other.tokenizer.fingerprint != data.tokenizer.fingerprint
    assert other.tokenizer.name == data.tokenizer.name  # by which a resume knows it


def test_every_rank_has_the_first_ones_tokenizer(make, folder):
    """Which another rank would look for under the name that the text of another run was trained under."""
    options = {"tokenizer": str(folder / "t.tiktoken"), "vocab_size": 280}
    first, second = make(**options), make(**options)
    make(tokenizer=options["tokenizer"], vocab_size=270).prepare_data()
    first.prepare_data()
    sent = []
    for data, send in ((first, lambda state: sent.append(state) or state), (second, lambda state: state or sent[0])):
        strategy = type("Strategy", (), {"broadcast": staticmethod(send)})
        data.trainer = type("Attached", (), {"is_global_zero": data is first, "world_size": 2, "strategy": strategy})()
        data.setup("fit")
    assert second.tokenizer.vocab_size == 280
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint


def test_num_proc_reaches_the_tokeniser(make, monkeypatch):
    from lightning_app.data import datamodule

    asked = []
    prepare = datamodule.prepare_tokens
    monkeypatch.setattr(datamodule, "prepare_tokens", lambda *a, **o: asked.append(o) or prepare(*a, **o))
    make(num_proc=3).prepare_data()
    assert asked == [{"num_proc": 3}]


def test_prepare_data_reads_changed_files(make, folder):
    data = make()
    before = len(data.dataset("train"))
    (folder / "train" / "9.txt").write_text("more text " * 10)
    data.prepare_data()
    assert len(data.dataset("train")) > before


def test_the_checkpoint_holds_the_tokenizer_and_refuses_another(make, folder, tmp_path):
    data = make()
    torch.save(data.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    data.load_state_dict(state)
    other = make(tokenizer=str(folder / "t.tiktoken"), vocab_size=280)
    other.prepare_data()
    with pytest.raises(InputError, match=r"'bytes' \(257 ids\), but .*t\.tiktoken' \(280 ids\)"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataloader": {"prefetch_factor": 2}}, r"prefetch_factor is 2, but num_workers is 0"),
        ({"dataloader": {"batch_size": 0}}, r"data\.dataloader\.batch_size is 0"),
        ({"dataloader": {"batches": 1}}, r"cannot make a Dataloader"),
        ({"block_size": 1}, r"data\.block_size is 1; it must be at least 2"),
        ({"pad_vocab_to": 0}, r"data\.pad_vocab_to is 0"),
        ({"seed": -1}, r"data\.seed is -1"),
        ({"num_proc": 0}, r"data\.num_proc is 0; it must be at least 1"),
        ({"order": "random"}, r"data\.order is 'random'; choose one of windows, streams"),
        ({"train": {"path": "x", "max_samples": 0}}, r"data\.train\.max_samples is 0"),
        ({"train": None, "split": {}}, r"data\.train, which is null"),
    ],
)
def test_mistakes_are_named_at_once(make, options, said):
    with pytest.raises(InputError, match=said):
        make(**options)


def test_missing_splits_are_named_when_they_are_needed(make, folder):
    with pytest.raises(InputError, match=r"set data\.train\.path"):
        make(train=None).setup("fit")
    data = make()
    data.setup("fit")  # without val: trainer.limit_val_batches may be 0
    with pytest.raises(InputError, match=r"data\.val\.path, or data\.split\.val"):
        data.val_dataloader()
    for stage, name in (("validate", "val"), ("test", "test"), ("predict", "predict")):
        with pytest.raises(InputError, match=rf"there is no {name} data"):
            data.setup(stage)
    with pytest.raises(InputError, match=r"vocab_size is 100, but tokenizer 'bytes' has 257 ids"):
        make(vocab_size=100).prepare_data()
    with pytest.raises(InputError, match=r"the text has 17 tokens, but one window of block_size 64 needs 65"):
        make(train={"path": str(folder / "val.txt")}, block_size=64).setup("fit")


class Sum(L.LightningModule):
    """Adds up the targets, so that a real Trainer goes through every hook."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": 0, "val": 0}

    def training_step(self, batch):
        self.seen["train"] += len(batch.input_ids)
        return self.weight * batch.targets.float().mean()

    def validation_step(self, batch):
        self.seen["val"] += len(batch.input_ids)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder, **options) -> L.Trainer:
    return L.Trainer(
        default_root_dir=folder, accelerator="cpu", max_epochs=1, logger=False, use_distributed_sampler=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip


def test_a_trainer_fits_validates_and_saves(make, folder):
    data = make(val={"path": str(folder / "val.txt")})
    fit = trainer(folder, enable_checkpointing=False)
    model = Sum()
    fit.fit(model, datamodule=data)
    assert model.seen == {"train": len(data.dataset("train")), "val": 2}
    fit.save_checkpoint(folder / "a.ckpt")
    saved = torch.load(folder / "a.ckpt", weights_only=True)
    assert saved["TextDataModule"]["tokenizer"]["name"] == "bytes"
    other = make(val={"path": str(folder / "val.txt")}, tokenizer=str(folder / "t.tiktoken"), vocab_size=280)
    with pytest.raises(InputError, match="the checkpoint was trained with tokenizer 'bytes'"):
        trainer(folder, enable_checkpointing=False).fit(Sum(), datamodule=other, ckpt_path=folder / "a.ckpt")


PREPARE = """
import sys
from lightning_app.data.datamodule import TextDataModule
folder = sys.argv[1]
data = TextDataModule(train={"path": folder + "/train"}, tokenizer=folder + "/bpe.tiktoken", vocab_size=300,
                      cache_dir=folder + "/cache", block_size=8)
print("ready", flush=True)
sys.stdin.readline()
data.prepare_data()
data.setup("fit")
print(data.tokenizer.fingerprint, data.dataset("train").tokens.n_tokens)
"""


@pytest.mark.slow  # each imports Lightning; test_token_cache.py has the fast one
def test_two_processes_prepare_at_once(folder):
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PREPARE, str(folder)]
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert len([path for path in (folder / "cache").iterdir() if path.is_dir()]) == 1


def test_overfitting_sees_the_same_batches_in_each_epoch(make):
    data = make(shift=True, dataloader={"batch_size": 2})
    data.trainer = L.Trainer(accelerator="cpu", overfit_batches=3, logger=False, enable_checkpointing=False)
    data.setup("fit")
    loader = data.train_dataloader()
    epochs = [[batch.input_ids for batch in itertools.islice(loader, 3)] for _ in range(2)]
    assert all(torch.equal(one, two) for one, two in zip(*epochs, strict=True))
    assert torch.equal(epochs[0][0], data.dataset("train").__getitems__([0, 1]).input_ids)
