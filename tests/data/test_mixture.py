"""Several sources: how often each is seen, in which order, and what is said of mistakes."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_app.data.batch import IGNORE
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.joined_tokens import JoinedTokens
from lightning_app.data.loader import ResumableLoader
from lightning_app.errors import InputError

T = 8
PAIRS = [{"prompt": f"p{i}", "target": "ab"[i % 2]} for i in range(10)]
CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}


@pytest.fixture
def make(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 400)
    (tmp_path / "b.txt").write_text("b" * 80)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    (tmp_path / "chat.json").write_text(json.dumps([CHAT] * 4))

    def make(train, **options) -> TextDataModule:
        given = {name: value for name, value in options.items() if name != "val"}
        splits = {"train": train, "val": options.get("val")}
        for name, sources in splits.items():
            if sources is not None:
                splits[name] = [{**source, "path": str(tmp_path / source["path"])} for source in sources]
        cache = str(tmp_path / "cache")
        return TextDataModule(**({**splits, "block_size": T, "cache_dir": cache, "seed": 0} | given))

    return make


A, B = {"path": "a.txt"}, {"path": "b.txt"}


def letters(batches) -> Counter:
    return Counter(chr(i) for batch in batches for i in batch.input_ids[batch.attention_mask].tolist() if i < 256)


def epochs(data: TextDataModule, count: int, **share) -> list[list]:
    loader = ResumableLoader(data.dataset("train"), batch_size=4, order="shuffled", seed=0, **share)
    return [list(loader) for _ in range(count)]


def test_without_weights_an_epoch_has_each_sample_once(make):
    data = make([A, B])
    dataset = data.dataset("train")
    assert dataset.counts == [50, 10]
    for epoch in epochs(data, 2):
        assert letters(epoch) == {"a": 400, "b": 80}
        firsts = [(int(b.document_ids[i, 0]), int(b.positions[i, 0])) for b in epoch for i in range(len(b.input_ids))]
        assert len(set(firsts)) == 60


@pytest.mark.parametrize(("weights", "share"), [((2, 1), 2 / 3), ((1, 1), 0.5), ((0.1, 0.3), 0.25)])
def test_weights_are_shares_of_the_tokens(make, weights, share):
    data = make([{**A, "weight": weights[0]}, {**B, "weight": weights[1]}])
    dataset = data.dataset("train")
    assert len(dataset) == pytest.approx(60, abs=1)  # as many tokens as all have together
    for epoch in epochs(data, 3):
        seen = letters(epoch)
        assert seen["a"] / seen.total() == pytest.approx(share, abs=0.02)


def test_a_source_with_more_goes_on_and_one_with_less_is_repeated(make):
    data = make([{**A, "weight": 1}, {**B, "weight": 1}])
    seen = Counter()
    for epoch in epochs(data, 5):  # 30 windows of each: a's 50 in three turns, b's 10 in fifteen
        for batch in epoch:
            seen.update((int(d), int(p)) for d, p in zip(batch.document_ids[:, 0], batch.positions[:, 0], strict=True))
    of_a = [seen[0, start] for start in range(0, 400, T)]
    of_b = [seen[1, start] for start in range(0, 80, T)]
    assert set(of_a) == {3}
    assert set(of_b) == {15}


def test_texts_pairs_and_conversations_are_mixed(make):
    data = make(
        [{**A, "weight": 1}, {"path": "pairs.jsonl", "weight": 1}, {"path": "chat.json", "weight": 1}], block_size=32
    )
    dataset = data.dataset("train")
    seen = torch.zeros(3)
    for batch in epochs(data, 1)[0]:
        parts = dataset.part_of(batch.document_ids[:, 0])
        seen += torch.bincount(dataset.part_of(batch.document_ids[batch.attention_mask]), minlength=3)
        for part, row in zip(parts.tolist(), batch.targets, strict=True):
            learned = "".join(chr(i) for i in row.tolist() if i not in (IGNORE, data.tokenizer.eot))
            assert learned in ({"a" * 32, "a" * 16, "a" * 15}, {"a", "b"}, {" ho\n"})[part]
    assert (seen / seen.sum()).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_two_ranks_see_what_one_would(make):
    data = make([{**A, "weight": 1}, {**B, "weight": 2}])
    alone = ResumableLoader(data.dataset("train"), batch_size=4, order="shuffled", even=True)
    together = [
        ResumableLoader(data.dataset("train"), batch_size=2, order="shuffled", rank=rank, world_size=2, even=True)
        for rank in range(2)
    ]
    for _ in range(2):
        whole = list(alone)[:14]
        for batch, parts in zip(whole, zip(*map(list, together), strict=True), strict=False):
            assert torch.equal(batch.input_ids, torch.cat([part.input_ids for part in parts]))
            assert torch.equal(batch.document_ids, torch.cat([part.document_ids for part in parts]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_in_the_middle_of_an_epoch(make, workers):
    data = make([{**A, "weight": 1}, {**B, "weight": 2}], shift=True)
    whole = [b for epoch in epochs(data, 3) for b in epoch]
    for at in (0, 7, 15, 16, 40):
        if workers and at != 7:
            continue  # starting processes takes its time
        half = ResumableLoader(data.dataset("train"), batch_size=4, order="shuffled")
        for batches in range(at):
            if batches % len(half) == 0:
                batch = iter(half)
            next(batch)
        resumed = ResumableLoader(data.dataset("train"), batch_size=4, order="shuffled", num_workers=workers)
        resumed.load_state_dict(half.state_dict())
        rest = [b for _ in range(3) for b in resumed][: len(whole) - at]
        assert all(torch.equal(ours.input_ids, b.input_ids) for ours, b in zip(rest, whole[at:], strict=True))


def test_without_shuffling_the_sources_alternate(make):
    data = make([{**A, "weight": 1}, {**B, "weight": 1}], dataloader={"shuffle": False})
    dataset = data.dataset("train")
    batch = dataset.__getitems__(list(range(8)))
    assert "".join(chr(int(i)) for i in batch.input_ids[:, 0]) == "abababab"
    assert batch.positions[:, 0].tolist() == [0, 0, 8, 8, 16, 16, 24, 24]


def test_an_evaluation_reads_each_source_once_in_its_order(make):
    data = make([A], val=[B, {**A, "max_samples": 3}], dataloader={"batch_size": 7})
    batches = list(data.val_dataloader())
    assert letters(batches) == {"b": 80, "a": 24}
    assert [int(i) for batch in batches for i in batch.document_ids[:, 0]] == [0] * 10 + [1] * 3


def test_joined_tokens_are_the_parts_one_behind_the_other(make):
    data = make([A, {"path": "pairs.jsonl"}, B])
    whole, parts = data.tokens("train"), [data.tokens(f"train[{i}]") for i in range(3)]
    assert isinstance(whole, JoinedTokens)
    assert whole.ids[:].tolist() == [i for part in parts for i in part.ids.tolist()]
    assert whole.ids[np.array([[0, 400], [401, -1 + len(whole.ids)]])].tolist() == [[97, 256], [ord("p"), 256]]
    assert whole.names == [name for part in parts for name in part.names]
    assert whole.n_tokens == sum(part.n_tokens for part in parts) == whole.offsets[-1]
    documents = np.arange(whole.n_documents)
    assert whole.keys_of(documents).tolist() == [
        key for part in parts for key in part.keys_of(np.arange(part.n_documents)).tolist()
    ]
    assert list(data.texts("train"))[:2] == ["a" * 400, "p0a"]
    assert whole.prompt_lengths.tolist() == [0, *[2] * 10, 0]


def test_the_summary_names_all(make):
    rows = make([A, B], val=[B]).summary().splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["split", "train", "val", "train[0]", "train[1]"]


def test_labels(make):
    labels = make([A, {**A, "name": "more"}, B, B]).splits.labels("train")
    assert labels == ["a", "more", "b_2", "b_3"]
    labels = make([{**A, "name": "b_1"}, B, B]).splits.labels("train")
    assert labels == ["b_1_0", "b_1_1", "b_2"]


def test_yaml_and_command_line(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TextDataModule, "data")
    parser.add_argument("--config", action="config")
    (tmp_path / "c.yaml").write_text("data: {train: [{path: a, weight: 2}, {path: b, weight: 1}], val: {path: c}}")
    config = parser.parse_args([f"--config={tmp_path}/c.yaml"])
    data = parser.instantiate(config).data
    assert [source.weight for source in (data.splits.sources[f"train[{i}]"] for i in range(2))] == [2, 1]
    data = parser.instantiate(parser.parse_args(["--data.train=[{path: a}]"])).data
    assert data.splits.sources["train"].path == "a"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"train": [{**A, "weight": 1}, B]},
            r"weights \[1, None\]: None is not a number above 0; give each source one",
        ),
        ({"train": [{**A, "weight": 1}, {**B, "weight": 0}]}, "0 is not a number above 0"),
        ({"train": []}, "data.train is an empty list"),
        ({"train": [A], "val": [{**A, "weight": 1}, {**B, "weight": 1}]}, "data.val has weights, but an evaluation"),
        ({"train": [{**A, "weight": 1}]}, "data.train.weight is 1, and there is one source"),
        ({"train": [A, B], "order": "streams"}, "data.order is streams.*several sources"),
        ({"train": [A, B], "split": {"train": 0.5, "val": 0.5}}, "data.split deals out the documents of one source"),
        ({"train": [A, {"path": "hf:x", "streaming": True}]}, "several sources, and one is streamed"),
        ({"train": [A, {"path": "b.txt", "stride": 0}]}, r"data.train\[1\].stride is 0"),
    ],
)
def test_mistakes_are_named(make, options, said):
    with pytest.raises(InputError, match=said):
        make(options.pop("train"), **options)


def test_a_source_that_is_too_short_is_named(make, tmp_path):
    (tmp_path / "c.txt").write_text("abc")
    with pytest.raises(InputError, match=r"data.train\[1\] .*c.txt.: the text has 4 tokens"):
        make([A, {"path": "c.txt"}]).dataset("train")
