"""Which documents a split reads, and options from dicts."""

import pytest

from lightning_app.data.sources import Corpus, Dataloader, Source, Split, Splits, as_options, check_dataloader
from lightning_app.data.stream import Reader
from lightning_app.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text(f"text {i} \n\n\n\n\nend")
    return Source(str(tmp_path))


def texts(documents) -> list[str]:
    return [document.text for document in documents]


def test_options_come_from_dicts_or_themselves():
    assert as_options(Source, {"path": "a", "stride": 3}) == Source("a", stride=3)
    assert as_options(Source, Source("a")) == Source("a")
    with pytest.raises(InputError, match=r"cannot make a Source of .*pth.*path, max_samples, stride"):
        as_options(Source, {"pth": "a"})
    with pytest.raises(InputError, match="cannot make a Source of 'a'"):
        as_options(Source, "a")


def test_a_corpus_is_read_each_time_and_cleaned_on_request(folder):
    corpus = Corpus(folder.path)
    assert len(list(corpus)) == len(list(corpus)) == 10
    assert texts(corpus)[0] == "text 0 \n\n\n\n\nend"
    assert texts(Corpus(folder.path, clean=True))[0] == "text 0\n\n\nend"


def test_pairs_are_not_cleaned(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "q: ", "target": "a "}\n')
    (document,) = Corpus(str(path), clean=True)
    assert (document.prompt, document.text) == ("q: ", "a ")


def test_shares_of_the_training_source(folder):
    splits = Splits({"train": folder}, Split(0.7, 0.2, 0.1), clean=False)
    parts = [texts(splits.documents(name, seed=0)) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [7, 2, 1]
    assert len({text for part in parts for text in part}) == 10
    assert splits.origin("predict") == "test"
    assert splits.source("val") == Source(folder.path)


def test_own_sources_and_stand_ins(folder):
    val, test = Source("v", stride=2), Source("t")
    splits = Splits({"train": folder, "val": val, "test": test}, None, clean=False)
    assert splits.source("predict") == test
    assert Splits({"val": val}, None, clean=False).source("predict") == val
    mixed = Splits({"train": folder, "test": folder}, Split(0.9, 0.1), clean=False)
    assert len(texts(mixed.documents("train", seed=0))) == 9
    assert len(texts(mixed.documents("test", seed=0))) == 10
    assert mixed.origin("predict") == "test"


def test_a_source_of_its_own_comes_before_a_share(folder):
    whole = Splits({"train": folder, "val": folder}, Split(0.9, 0.1), clean=False)
    assert len(texts(whole.documents("train", seed=0))) == len(texts(whole.documents("val", seed=0))) == 10
    rest = Splits({"train": folder, "val": folder}, Split(0.5, 0.3, 0.2), clean=False)
    assert len(texts(rest.documents("train", seed=0))) == 7
    assert len(texts(rest.documents("test", seed=0))) == 3


def test_contradictions_and_gaps_are_named(folder):
    with pytest.raises(InputError, match=r"data\.train, which is null"):
        Splits({}, Split(), clean=False)
    for name, said in [
        ("train", r"data\.train is null; set data\.train\.path"),
        ("val", r"set data\.val\.path, or data\.split\.val .*limit_val_batches: 0"),
        ("test", r"set data\.test\.path, or data\.split\.test"),
        ("predict", r"set data\.predict\.path"),
    ]:
        with pytest.raises(InputError, match=said):
            Splits({}, None, clean=False).documents(name, seed=0)
    for source in (Source("a", max_samples=0), Source("a", stride=0)):
        with pytest.raises(InputError, match=r"data\.train\.(max_samples|stride) is 0; it must be at least 1"):
            Splits({"train": source}, None, clean=False)


def test_loader_options_are_checked():
    for options, said in [
        (Dataloader(batch_size=0), r"batch_size is 0"),
        (Dataloader(num_workers=-1), r"num_workers is -1"),
        (Dataloader(prefetch_factor=2), r"prefetch_factor is 2, but num_workers is 0"),
    ]:
        with pytest.raises(InputError, match=said):
            check_dataloader(options)


def test_end_of_text_in_a_file_is_named_or_ends_a_document(tmp_path, caplog):
    path = tmp_path / "a.txt"
    path.write_text("one<|endoftext|>\ntwo<|endoftext|>\n")
    assert [d.text for d in Corpus(str(path))] == [path.read_text()]
    assert f"{path} holds <|endoftext|>, read as ordinary text; split_at_end_of_text: true" in caplog.text
    options = {"path": str(path), "split_at_end_of_text": True}
    splits = Splits({"train": Source(**options)}, None, clean=False)
    assert [d.text for d in splits.documents("train", seed=0)] == ["one", "\ntwo"]


@pytest.mark.parametrize("streaming", [False, True])
def test_end_of_text_in_many_documents_is_one_line(streaming, tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one<|endoftext|>"}\n' * 30)
    stream = Reader(Source(f"hf:json:{path}", streaming=True), 0, 1, repeat=False)
    assert len(list(stream if streaming else Corpus(str(path)))) == 30
    (line,) = (record.getMessage() for record in caplog.records if "<|endoftext|>" in record.getMessage())
    assert str(path) in line
