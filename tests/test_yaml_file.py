"""YAML is read in one place, and what is wrong with it is one line."""

import re
from pathlib import Path

import pytest

from lightning_app.errors import InputError
from lightning_app.yaml_file import leaves, read_yaml

PACKAGE = Path(__file__).parent.parent / "lightning_app"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: 1\n b: 2\n", "line 2, column 3: mapping values are not allowed here"),
        (b"a: [", "line 1, column 5: expected the node content, but found '<stream end>'"),
        (b"a:\n\t b: 1\n", "line 2, column 1: found character '\\t' that cannot start any token"),
        (b"a: \x00", "special characters are not allowed"),
        (b"a: \xff", "byte 3 is not UTF-8; save it as UTF-8"),
        ("a: 1".encode("utf-16"), "it is UTF-16; save it as UTF-8"),
        (b"[" * 1000, "recursion"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(tmp_path: Path, content: bytes, words: str):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_yaml(path)
    assert str(refused.value).startswith(f"{path} is not readable YAML: ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_was_read_may_change_and_so_may_what_it_held(tmp_path: Path):
    path = tmp_path / "a.yaml"
    path.write_text("a: [1]")
    read_yaml(path)["a"].append(2)
    assert read_yaml(path) == {"a": [1]}
    path.write_text("a: [3]")
    assert read_yaml(path) == {"a": [3]}


def test_all_read_it_here():
    reads = re.compile(r"yaml\.\w*load\([^)]*(read|open)")
    assert reads.search('yaml.safe_load(path.read_text(encoding="utf-8"))')
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 150
    assert [path.name for path in files if reads.search(path.read_text())] == []


TREE = {
    "data": {"seed": 1, "val": {}, "paths": ["a", "b"]},
    "callbacks": [{"class_path": "x.Samples", "init_args": {"prompts": ["p"]}}, {"y": 2}, "z"],
}


def test_a_list_is_a_value():
    assert dict(leaves(TREE)) == {
        "data.seed": 1,
        "data.val": {},
        "data.paths": ["a", "b"],
        "callbacks": TREE["callbacks"],
    }


def test_items_of_a_list_are_numbered():
    found = dict(leaves(TREE, "o.", lists="numbers"))
    assert found["o.data.paths.1"] == "b"
    assert found["o.callbacks.0.init_args.prompts.0"] == "p"
    assert found["o.callbacks.2"] == "z"


def test_parts_stand_under_their_classes():
    assert dict(leaves(TREE, lists="classes")) == {
        "data.seed": 1,
        "data.val": {},
        "data.paths": ["a", "b"],
        "callbacks[Samples].class_path": "x.Samples",
        "callbacks[Samples].init_args.prompts": ["p"],
        "callbacks[1].y": 2,
        "callbacks[2]": "z",
    }
