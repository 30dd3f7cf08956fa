"""Reading every kind of source, its errors, cleaning, and the split by document."""

import json
import os

import pytest

from lightning_app.data.corpus import Document, clean, read_documents, split_documents
from lightning_app.errors import InputError


def texts(path) -> list[str]:
    return [document.text for document in read_documents(str(path))]


def write_lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_text_file_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo \rthree\xc3\xa9\n")
    assert list(read_documents(str(path))) == [Document("one\ntwo \nthreeé\n", name=str(path))]


def test_a_folder_is_read_in_order_with_its_subfolders(tmp_path):
    for name in ("b.txt", "a/z.txt", "c.md", "a/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a/a.txt", "a/z.txt", "b.txt"]
    assert texts(tmp_path / "**" / "*.*") == ["a/a.txt", "a/z.txt", "b.txt", "c.md"]
    with pytest.raises(InputError, match=r"no file matches .*\.py"):
        texts(tmp_path / "*.py")
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"no \*\.txt file in folder"):
        texts(tmp_path / "none")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"bad\.txt is empty"),
        (b" \n\t", r"bad\.txt is empty"),
        (b"PK\x03\x00\x00", r"bad\.txt is a binary file \(NUL at byte 3\)"),
        (b"caf\xe9 au lait", r"bad\.txt is not UTF-8 \(byte 0xe9 at offset 3\); convert it"),
        (b"\xef\xbb\xbfcaf\xe9 au lait", r"byte 0xe9 at offset 6"),
    ],
)
def test_bad_files_are_named_with_the_place(tmp_path, data, said):
    (tmp_path / "bad.txt").write_bytes(data)
    (tmp_path / "good.txt").write_text("good")
    for path in (tmp_path / "bad.txt", tmp_path):
        with pytest.raises(InputError, match=said):
            texts(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a")
    path.chmod(0)
    with pytest.raises(InputError, match=r"cannot read .*a\.txt"):
        texts(path)


def test_jsonl_pairs_and_texts(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl", {"prompt": "1+1=", "target": "2\u2028\r\n"}, "", {"prompt": "q", "target": "a"}
    )
    assert list(read_documents(str(path))) == [
        Document("2\u2028\n", "1+1=", f"{path}:1"),
        Document("a", "q", f"{path}:3"),
    ]
    path = write_lines(tmp_path / "b.jsonl", {"text": "one", "id": 1}, {"text": "two", "id": 2})
    assert texts(path) == ["one", "two"]
    path = write_lines(tmp_path / "c.jsonl", {"body": "one"})
    assert [document.text for document in read_documents(str(path), text_field="body")] == ["one"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{not json", r"a\.jsonl:3: no JSON"),
        ("[1]", r"a\.jsonl:3: a list, not an object"),
        ({"text": 3}, r"a\.jsonl:3: 'text' is 3, not a text \(fields: text\)"),
        ({"body": "x"}, r"a\.jsonl:3: 'text' is None, not a text \(fields: body\)"),
        ({"text": " "}, r"a\.jsonl:3: 'text' is empty"),
        ({"target": "x"}, r"a\.jsonl:3: 'prompt' is None"),
        ({"prompt": "x", "target": None}, r"a\.jsonl:3: 'target' is None"),
        ('{"text": "\\ud800"}', r"a\.jsonl:3: 'text' is '\\ud800'"),
        ({"prompt": "q", "target": "a"}, r"a\.jsonl:3: pairs and plain texts in one file \(.*a\.jsonl:1\)"),
    ],
)
def test_bad_jsonl_lines_are_named(tmp_path, row, said):
    path = write_lines(tmp_path / "a.jsonl", {"text": "fine"}, "", row)
    with pytest.raises(InputError, match=said):
        texts(path)


def test_an_empty_jsonl_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="is empty"):
        texts(write_lines(tmp_path / "a.jsonl", "", ""))


def test_missing_files_are_not_taken_for_datasets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(datasets, "load_dataset", lambda *words, **options: pytest.fail("a hub was asked"))
    for path, name in {"data/missing.txt": "name", "a/b/c": "name", "../x": "name", "wikitext": "wikitext"}.items():
        with pytest.raises(InputError, match=rf"no such file: {path}.*hf:{name}$"):
            read_documents(path)
    with pytest.raises(InputError, match=r"hf:org/name$"):
        read_documents("org/name")
    with pytest.raises(InputError, match="path of a source is empty"):
        read_documents("")


def test_names_of_datasets_are_parsed(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return [{"text": ""}, {"text": "one"}, {"text": None}, {"text": "two"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for path in ("hf:wikitext", "hf:org/name-1.5", "hf:wikitext:raw:test", "hf:wikitext:raw", "hf:w::train[:9]"):
        assert texts(path) == ["one", "two"]
    assert asked == [
        (("wikitext", None), {"split": "train", "streaming": False}),
        (("org/name-1.5", None), {"split": "train", "streaming": False}),
        (("wikitext", "raw"), {"split": "test", "streaming": False}),
        (("wikitext", "raw"), {"split": "train", "streaming": False}),
        (("w", None), {"split": "train[:9]", "streaming": False}),
    ]
    assert next(read_documents("hf:w")).name == "hf:w[1]"


def test_an_unreachable_dataset_names_the_ways_out(monkeypatch):
    import datasets

    def load_dataset(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    said = r"cannot load the dataset 'org/name' \(ConnectionError: no route\).*HF_HUB_OFFLINE=1.*local"
    with pytest.raises(InputError, match=said) as caught:
        texts("hf:org/name")
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_local_files_through_datasets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    path = write_lines(tmp_path / "a.jsonl", {"prompt": "q", "target": "a"}, {"prompt": "r", "target": "b"})
    assert [(d.prompt, d.text) for d in read_documents(f"hf:json:{path}")] == [("q", "a"), ("r", "b")]
    with pytest.raises(InputError, match=r"cannot load the dataset 'json:.*missing"):
        texts(f"hf:json:{tmp_path}/missing.jsonl")


def test_a_dataset_without_data_or_name_is_refused(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    (tmp_path / "empty.jsonl").touch()
    for spec in (f"json:{tmp_path}/empty.jsonl", ""):
        with pytest.raises(InputError, match=f"cannot load the dataset '{spec}'"):
            texts(f"hf:{spec}")


def test_a_csv_file_keeps_na_and_null_and_names_numbers(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    (tmp_path / "a.csv").write_text("text,n\nNA,1\nnull,2\n\ufeffplain,3\n", encoding="utf-8")
    assert texts(f"hf:csv:{tmp_path}/a.csv") == ["NA", "null", "plain"]
    with pytest.raises(InputError, match=r"a\.csv\[0\]: 'n' is 1, not a text \(fields: text, n\)"):
        list(read_documents(f"hf:csv:{tmp_path}/a.csv", text_field="n"))


def test_a_folder_with_a_script_is_refused_in_one_line(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text("raise SystemExit(3)")
    with pytest.raises(InputError, match=r"cannot load the dataset .*mine") as error:
        texts(f"hf:{tmp_path}/mine")
    assert "\n" not in str(error.value)


def test_clean():
    assert clean("a  \r\nb\t\n\n \n\n\n\nc\u00a0\n\n\nd \n  e ") == "a\nb\n\n\nc\n\n\nd\n  e"
    assert clean("e\u0301 é") == "e\u0301 é"  # not normalised


def test_a_split_deals_out_whole_documents():
    documents = [Document(f"text {i}") for i in range(20)]
    parts = split_documents(documents, {"train": 0.8, "val": 0.15, "test": 0.05}, seed=1)
    assert [len(part) for part in parts.values()] == [16, 3, 1]
    assert sorted(d.text for part in parts.values() for d in part) == sorted(d.text for d in documents)
    assert parts["train"] == [d for d in documents if d in parts["train"]]  # their order stays
    assert split_documents(documents, {"train": 0.8, "val": 0.15, "test": 0.05}, seed=1) == parts
    assert split_documents(documents, {"train": 0.8, "val": 0.15, "test": 0.05}, seed=2) != parts
    again = split_documents(reversed(documents), {"train": 0.8, "val": 0.15, "test": 0.05}, seed=1)
    assert set(again["val"]) == set(parts["val"])  # the content decides, not the order


def test_no_split_is_empty_unless_asked_to_be():
    documents = [Document(f"text {i}") for i in range(3)]
    parts = split_documents(documents, {"train": 0.98, "val": 0.01, "test": 0.01}, seed=0)
    assert [len(part) for part in parts.values()] == [1, 1, 1]
    parts = split_documents(documents, {"train": 0.0, "val": 1.0}, seed=0)
    assert [len(part) for part in parts.values()] == [0, 3]
    with pytest.raises(InputError, match=r"1 document\(s\) cannot fill the 2 splits train, val"):
        split_documents(documents[:1], {"train": 0.5, "val": 0.5, "test": 0.0}, seed=0)
    for fractions in ({"train": 0.9, "val": 0.2}, {"train": 1.5, "val": -0.5}):
        with pytest.raises(InputError, match="sum to 1"):
            split_documents(documents, fractions, seed=0)


def test_equal_documents_are_never_on_both_sides_of_a_split():
    documents = [Document(f"text {i % 7}") for i in range(40)]
    for seed in range(20):
        parts = split_documents(documents, {"train": 0.6, "val": 0.3, "test": 0.1}, seed=seed)
        sides = [{d.text for d in part} for part in parts.values()]
        assert sum(map(len, sides)) == 7
        assert sum(map(len, parts.values())) == 40
    with pytest.raises(InputError, match=r"40 document\(s\), 1 of them different, cannot fill the 2 splits"):
        split_documents([documents[0]] * 40, {"train": 0.5, "val": 0.5}, seed=0)


@pytest.mark.parametrize(
    ("row", "field", "text", "prompt"),
    [
        ({"text": "a", "target": 1}, "text", "a", None),
        ({"prompt": "p", "text": "a"}, "text", "a", None),
        ({"prompt": "p", "target": "t"}, "text", "t", "p"),
        ({"prompt": "p", "target": "t"}, "prompt", "p", None),
        ({"prompt": "p", "target": "t", "other": "o"}, "other", "o", None),
        ({"prompt": "\ufeffp", "target": "\ufefft"}, "text", "t", "p"),
    ],
)
def test_text_field_says_what_is_read(tmp_path, row, field, text, prompt):
    path = write_lines(tmp_path / "A.JSONL", row)
    assert [(d.text, d.prompt) for d in read_documents(str(path), text_field=field)] == [(text, prompt)]
