"""This project's source as a text to learn and one to hold out."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import own_texts
from experiments.texts import articles, halves
from lightning_app.data.corpus import Document, read_documents
from lightning_app.errors import InputError


def test_files_are_shared_out_and_stay_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = [Document(f"x = {i}\n" * 100, name=f"lightning_app/{i}.py") for i in range(20)]
    monkeypatch.setattr(own_texts, "source", lambda _: [*files, Document("short", name="short.py")])
    learned, heldout = own_texts.write_halves(tmp_path, "abc")
    assert (Path(learned).name, Path(heldout).name) == ("source-abc-train", "source-abc-heldout")
    texts = [list(read_documents(path)) for path in (learned, heldout)]
    assert [len(text) for text in texts] == [14, 6]
    assert {d.text for text in texts for d in text} == {d.text for d in files}
    assert not {d.text for d in texts[0]} & {d.text for d in texts[1]}
    assert [d.text for half in halves(articles(heldout)) for d in half] == [d.text for d in texts[1]]

    monkeypatch.setattr(own_texts, "source", lambda _: [])
    assert own_texts.write_halves(tmp_path, "abc") == (learned, heldout)
    assert len(list(read_documents(learned))) == 14


def test_a_clone_without_history_is_told():
    with pytest.raises(InputError, match="the files come from a clone's history"):
        own_texts.source("0" * 40)
