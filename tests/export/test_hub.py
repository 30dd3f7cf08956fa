"""What is asked of the hub, and what its refusals become; the network is a fake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from lightning_app.errors import InputError
from lightning_app.export.hub import check_name, push


class Hub:
    """Keeps what it was asked for; raises `error` when something is uploaded."""

    def __init__(self, error: Exception | None = None):
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error = error

    def create_repo(self, name: str, **options: Any) -> Any:
        self.calls.append((name, options))
        return type("Url", (), {"repo_id": f"me/{name}", "__str__": lambda self: f"https://hub/me/{name}"})()

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options))
        if self.error is not None:
            raise self.error


def test_the_directory_is_uploaded_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    assert push(tmp_path / "out", "model", private=True) == "https://hub/me/model"
    assert hub.calls == [
        ("model", {"private": True, "exist_ok": True}),
        ("upload", {"repo_id": "me/model", "folder_path": tmp_path / "out", "commit_message": "Upload out"}),
    ]


@pytest.mark.parametrize("error", [OSError("cut"), ValueError("bad")])
def test_a_failed_upload_says_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: Hub(error))
    with pytest.raises(InputError, match=f"could not be uploaded.*{error}.*is whole.*hf upload model"):
        push(tmp_path, "model")


def test_a_hub_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own client, whichever it is, asks a port that nobody listens at."""
    api = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9", token="hf_x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    with pytest.raises(InputError, match=r"could not be uploaded \(ConnectError.*is whole"):
        push(tmp_path, "me/model")


def test_what_cannot_work_is_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="give a name such as user/model"):
        check_name("a/b/c")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        check_name("me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="needs a token"):
        check_name("me/model")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    check_name("me/model")
