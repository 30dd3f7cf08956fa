"""Which files are read, and what is said of those that are not."""

import json
import os
import subprocess

import pytest

from lightning_app.data.corpus import read_documents
from lightning_app.data.reading import code_page
from lightning_app.errors import InputError

GERMAN = "Die Käfer über dem Fluß flogen schön und ruhig in den Süden. "
TEXTS = {
    "CP1252": "“Où est le café ?” Un garçon naïf répondit : là-bas, près du pâté. ",
    "CP1251": "Съешь же ещё этих мягких французских булок, да выпей чаю. ",
    "KOI8-R": "Съешь же ещё этих мягких французских булок, да выпей чаю. ",
    "SHIFT_JIS": "これは日本語の文章です。文字コードを確かめます。カタカナも入れます。",
    "EUC-JP": "これは日本語の文章です。文字コードを確かめます。カタカナも入れます。",
    "EUC-KR": "이것은 한국어 문장입니다. 문자 집합을 확인합니다. ",
    "GB18030": "这是一个中文句子、用来检查编码是否正确。我们希望它能工作。",
    "BIG5": "這是一個中文句子、用來檢查編碼是否正確。我們希望它能工作。",
    "UTF-16": GERMAN,
    "UTF-16LE": GERMAN,
    "UTF-16BE": GERMAN,
    "UTF-32": GERMAN,
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_named_remedy_restores_the_text(tmp_path, name):
    path, wanted = tmp_path / "a b.txt", TEXTS[name] * 20
    path.write_bytes(wanted.encode(name))
    with pytest.raises(InputError, match=r"not UTF-8.*convert it: iconv") as error:
        list(read_documents(str(path)))
    command = str(error.value).split("convert it: ")[1].split(", and read")[0]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert [d.text for d in read_documents(str(tmp_path / "new.txt"))] == [wanted]


@pytest.mark.parametrize("name", ["CP1252", "CP1251", "EUC-JP", "UTF-16", "UTF-16LE"])
def test_of_json_lines_too(tmp_path, name):
    path, wanted = tmp_path / "a.jsonl", [TEXTS[name] * 2] * 3
    path.write_bytes("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in wanted).encode(name))
    with pytest.raises(InputError, match=r"not UTF-8.*convert it: iconv") as error:
        list(read_documents(str(path)))
    command = str(error.value).split("convert it: ")[1].split(", and read")[0].replace("new.txt", "new.jsonl")
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert [d.text for d in read_documents(str(tmp_path / "new.jsonl"))] == wanted


def test_latin1_is_told_from_an_alphabet():
    assert code_page(GERMAN.encode("latin1")) == "CP1252"


def test_damaged_utf8_is_called_so(tmp_path):
    (tmp_path / "a.txt").write_bytes((GERMAN * 9).encode()[:-3].replace("ü".encode(), b"\xc3", 1))
    with pytest.raises(InputError, match=r"damaged: restore it, or drop the 1 bad places: convert it: iconv -c"):
        list(read_documents(str(tmp_path / "a.txt")))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.txt.gz", "unpack it first"),
        ("a.xlsx", "convert it to .txt, .csv or .jsonl"),
        ("a.PDF", "ends in .PDF, which is not read as it is; convert it to .txt"),
    ],
)
def test_endings_that_are_not_read_are_refused(tmp_path, name, said):
    (tmp_path / name).write_text('"a","b"\n1,2\n')
    for path in (tmp_path / name, tmp_path / "*"):
        with pytest.raises(InputError, match=said):
            list(read_documents(str(path)))


def test_of_a_folder_links_and_capitals_are_read_and_the_rest_is_named(tmp_path, caplog):
    folder, elsewhere = tmp_path / "f", tmp_path / "elsewhere"
    for place in (folder / ".git", folder / "b", elsewhere):
        place.mkdir(parents=True)
    for path in (
        folder / "A.TXT",
        folder / ".git" / "g.txt",
        folder / "b" / "c.md",
        elsewhere / "e.txt",
        folder / ".h.txt",
    ):
        path.write_text(path.name)
    (folder / "link").symlink_to(elsewhere)
    (folder / "b" / "loop").symlink_to(folder)
    os.mkfifo(folder / "p.txt")
    for _ in range(2):
        assert [d.text for d in read_documents(str(folder))] == ["A.TXT", "e.txt"]
    said = [record.message for record in caplog.records]
    assert said == [f"{folder}: 2 *.txt files are read; left out: 1 *.md, 1 hidden files, 1 hidden folders, 1 pipes"]


def test_a_pipe_or_device_is_refused(tmp_path):
    os.mkfifo(tmp_path / "p.txt")
    for path in (tmp_path / "p.txt", "/dev/zero"):
        with pytest.raises(InputError, match="is a pipe or a device"):
            list(read_documents(str(path)))
