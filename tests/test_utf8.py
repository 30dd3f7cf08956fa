"""Text is UTF-8 in a locale that knows ASCII alone, and bytes that are not UTF-8 are not lost."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_app.utf8 import as_text, decode
from tests.sources import nodes

ROOT = Path(__file__).parent.parent
ASCII = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
SHOWS = """
import json, sys
from lightning_app.utf8 import as_text, restart_in_utf8_mode, use_utf8_streams
restart_in_utf8_mode()
use_utf8_streams()
print(as_text(sys.argv[1]), as_text(input()), open(sys.argv[2]).read(), "\\ud83d")
print(as_text(sys.argv[1]), file=sys.stderr)
"""


def without_encoding(path: Path) -> list[str]:
    """Calls that open a text in the locale's encoding."""
    found, text = [], path.read_text(encoding="utf-8")
    if not any(name in text for name in ("open", "read_text", "write_text")):
        return []  # parsing each takes seconds
    for node in nodes(text):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func).rpartition(".")
        of_bytes = ("os", "place", "archive")  # `place.open("a+b")`; a zip archive has bytes alone
        opens = called[2] == "open" and called[0] not in of_bytes
        reads = called[2] in ("read_text", "write_text") and called[0]
        is_bytes = any(isinstance(a, ast.Constant) and "b" in str(a.value) and len(str(a.value)) < 4 for a in node.args)
        if (opens or reads) and not is_bytes and not any(k.arg == "encoding" for k in node.keywords):
            found.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    return found


def test_every_text_is_opened_with_an_encoding():
    files = [ROOT / "main.py"]
    for folder in ("lightning_app", "experiments", "benchmarks", "examples"):
        files += sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 100
    assert [call for path in files for call in without_encoding(path)] == []


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C.UTF-8", "PYTHONUTF8": ""}])
def test_terminal_arguments_and_files_are_utf8_in_any_locale(tmp_path: Path, locale: dict[str, str]):
    (tmp_path / "näme.yaml").write_text("ключ: 日本", encoding="utf-8")
    words = [sys.executable, "-c", SHOWS, b"\xc3\xbc \xe9", tmp_path / "näme.yaml"]
    done = subprocess.run(words, input=b"\xc3\xa4 \xff\n", env=ASCII | locale, capture_output=True, check=False)
    assert done.stderr.decode() == "ü é\n"
    assert done.stdout.decode() == "ü é ä ÿ ключ: 日本 \\ud83d\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-"])
def test_a_closed_stream_stops_nothing(tmp_path: Path, closed: str):
    (tmp_path / "a").write_text("")
    code = SHOWS.replace("input()", "''") + "open('done', 'w', encoding='utf-8').close()"
    words = ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", code, "x", "a"]
    subprocess.run(words, cwd=tmp_path, env=ASCII, check=True)
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("naïve 日本".encode(), "naïve 日本"),
        ("naïve".encode("utf-8-sig"), "naïve"),
        ("naïve 日本".encode("utf-16"), "naïve 日本"),
        ("naïve".encode("latin-1"), "naïve"),
        ("日本 ".encode() + "naïve".encode("latin-1"), "日本 naïve"),
    ],
)
def test_what_a_user_has_written_is_decoded_whole(content: bytes, text: str):
    assert decode(content) == text
    assert as_text(content.decode("utf-8", "surrogateescape")) == text or content[0] >= 0xEF


def test_a_conversation_and_prompts_with_half_a_character(tiny_checkpoint, main, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    lines = iter(["/load a.json", "/system caf\udce9", "na\udcefve \ud83d", "/save b.json", "/quit"])
    monkeypatch.setattr("builtins.input", lambda: next(lines))
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"messages": [{"role": "user", "content": "\\ud83d"}]}')
    words = ["--ckpt_path", tiny_checkpoint, "--max_new_tokens", 3]
    main("chat", *words)
    saved = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert saved["system"] == "café"
    assert [m["content"] for m in saved["messages"]][:2] == ["\ud83d", "naïve \ud83d"]
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "\\ud83d"}\r\n{"prompt": "caf\xe9"}\n')
    main("generate", *words, "--prompts", "p.jsonl", "--output", "o.jsonl")
    answers = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [a["prompt"] for a in answers] == ["\ud83d", "café"]
    assert [a["tokens"] for a in answers] == [3, 3]
    capsys.readouterr()
    main("generate", *words, "--prompt", "caf\udce9")
    assert capsys.readouterr().out == f"{answers[1]['prompt']}{answers[1]['text']}\n"
    main("generate", *words, "--prompts", "p.jsonl")
    assert capsys.readouterr().out == (tmp_path / "o.jsonl").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def cp1252(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a locale in the code page that Windows has in Western Europe."""
    if not (program := shutil.which("localedef")) or not Path("/usr/share/i18n/charmaps/CP1252.gz").exists():
        pytest.skip("localedef, or its table of CP1252, is not there")
    folder = tmp_path_factory.mktemp("locales")
    subprocess.run([program, "-i", "en_US", "-f", "CP1252", folder / "en_US.CP1252"], capture_output=True, check=False)
    return {"LOCPATH": str(folder), "LC_ALL": "en_US.CP1252"}


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["ascii", "cp1252"])
def test_a_config_and_a_text_in_another_locale(folder: Path, config, locale: str, request: pytest.FixtureRequest):
    (folder / "tëxt.txt").write_text("naïve models learn what the teacher shows " * 20, encoding="utf-8")
    config({"name": "läufe", "data": {"train": {"path": "tëxt.txt"}, "val": {"path": "tëxt.txt"}}})
    text = Path("tiny.yaml").read_text().encode().decode("unicode_escape").replace('"', "")
    Path("tiny.yaml").write_text(text, encoding="utf-8")
    assert "tëxt" in text
    words = [sys.executable, ROOT / "main.py", "fit", "--config", "tiny.yaml", "--trainer.max_steps", "3"]
    environment = ASCII | (request.getfixturevalue("cp1252") if locale == "cp1252" else {})
    done = subprocess.run(words, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert "tëxt.txt" in Path("runs/läufe/version_0/config.yaml").read_text(encoding="utf-8")


AS_ON_WINDOWS = """
import os, sys
from lightning_app.cli import main
if not sys.flags.utf8_mode:
    os.name = "nt"  # the process waits for another one in UTF-8, and ends as that does
main()
"""


@pytest.mark.slow
def test_a_fit_in_the_code_page_of_windows_keeps_every_letter(folder: Path, config, cp1252: dict[str, str]):
    """A config is read in the code page there, unless Python is in its UTF-8 mode."""
    Path("train.txt").write_text("Zürich, naïve models learn what the teacher shows. " * 20, encoding="utf-8")
    samples = {"class_path": "Samples", "init_args": {"prompts": ["Zürich"], "every_n_validations": 1}}
    config({"trainer": {"callbacks": [samples]}})
    Path("tiny.yaml").write_text(Path("tiny.yaml").read_text().encode().decode("unicode_escape"), encoding="utf-8")
    words = [sys.executable, "-c", AS_ON_WINDOWS, "fit", "--config", "tiny.yaml", "--trainer.max_steps", "3"]
    done = subprocess.run(words, env=ASCII | cp1252, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    run = Path("runs/tiny/version_0")
    assert "Zürich" in (run / "samples/best.txt").read_text(encoding="utf-8")
    done = subprocess.run([*words[:3], "fit", "--config", "nothere.yaml"], env=ASCII | cp1252, check=False)
    assert done.returncode == 1
