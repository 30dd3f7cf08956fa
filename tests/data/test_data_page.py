"""The examples of docs/data.md are read as the page says."""

import re
from pathlib import Path

import pytest

from lightning_app.data.corpus import read_documents

PAGE = (Path(__file__).parents[2] / "docs/data.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"`(\w+\.\w+)`[^\n]*\n\n```(?:json|text)\n(.*?)```", PAGE, re.DOTALL))
KINDS = {"texts": "plain texts", "pairs": "pairs", "chats": "conversations", "sharegpt": "conversations"}


def test_there_is_an_example_of_each_kind():
    pairs, chats = ["pairs.jsonl", "pairs.csv", "pairs.tsv"], ["chats.jsonl", "sharegpt.jsonl"]
    assert list(EXAMPLES) == ["texts.jsonl", "texts.json", *pairs, *chats]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_read(tmp_path, name):
    (tmp_path / name).write_text(EXAMPLES[name], encoding="utf-8")
    documents = list(read_documents(str(tmp_path / name)))
    assert [document.kind for document in documents] == [KINDS[name.split(".")[0]]] * 2


def test_the_parquet_example(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code)
    assert [(d.prompt, d.text) for d in read_documents("pairs.parquet")] == [("1 + 1 =", " 2"), ("2 + 2 =", " 4")]
