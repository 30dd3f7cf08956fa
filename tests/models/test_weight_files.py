"""Weights that are not all there are named before any is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_app.errors import InputError
from lightning_app.models.weight_files import INDEX, WEIGHTS, check_weights


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(30), "b": torch.ones(5, 2)}, tmp_path / WEIGHTS, {"format": "pt"})
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        check_weights(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_whole_weights_pass(directory: Path):
    check_weights(directory)
    save_file({}, directory / WEIGHTS)
    check_weights(directory)
    check_weights(directory / "a name on the hub")


def test_a_directory_without_weights(directory: Path):
    (directory / WEIGHTS).unlink()
    assert "lacks its weights: there is no model.safetensors" in refused(directory)
    (directory / "pytorch_model.bin").touch()  # is refused elsewhere: it is pickled
    check_weights(directory)


@pytest.mark.parametrize("cut", [lambda n: 0, lambda n: 3, lambda n: 60, lambda n: n // 2, lambda n: n - 1])
def test_a_truncated_file_says_how_long_it_is(directory: Path, cut: Callable[[int], int]):
    whole = (directory / WEIGHTS).read_bytes()
    left = cut(len(whole))
    (directory / WEIGHTS).write_bytes(whole[:left])
    (directory / "training_args.bin").touch()  # not of the model
    said = refused(directory)
    assert f"{WEIGHTS} is truncated or damaged: it has {left:,}" in said
    assert (f"of {len(whole):,} bytes" in said) == (left >= len(whole) // 2)


@pytest.mark.parametrize(
    "content", [b"\0" * 100, b"\xff" * 100, b"PK" * 50, (9).to_bytes(8, "little") + b'{"a": []}', b"<html></html>"]
)
def test_another_file_in_its_place(directory: Path, content: bytes):
    (directory / WEIGHTS).write_bytes(content)
    assert f"is truncated or damaged: it has {len(content)} bytes" in refused(directory)


def test_more_than_the_header_says(directory: Path):
    with (directory / WEIGHTS).open("ab") as file:
        file.write(b"\0")
    assert "is truncated or damaged" in refused(directory)


def test_a_pointer_of_git_lfs(directory: Path):
    (directory / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "is a pointer of Git LFS, not the weights: `git lfs pull`" in refused(directory)


def test_of_several_files_each_is_looked_at(directory: Path):
    first, second = (directory / f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    (directory / WEIGHTS).rename(first)
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": first.name, "b": second.name, "c": first.name}}))
    assert f"there is no {second.name}" in refused(directory)
    second.write_bytes(first.read_bytes())
    check_weights(directory)
    second.write_bytes(first.read_bytes()[:-1])
    assert f"{second.name} is truncated" in refused(directory)
    (directory / INDEX).write_text("{}")
    assert f"{INDEX} is damaged" in refused(directory)
