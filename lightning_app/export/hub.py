"""An exported directory on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from lightning_app.errors import InputError


def check_name(name: str) -> None:
    """Refuse a name that the hub would, and a session without a token, before anything is written.

    Raises:
        InputError: either of them.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"push_to_hub is {name!r}: give a name such as user/model ({error})") from error
    if constants.HF_HUB_OFFLINE:
        raise InputError("push_to_hub needs the network, but HF_HUB_OFFLINE is set: unset it, or leave push_to_hub out")
    if get_token() is None:
        raise InputError(
            "push_to_hub needs a token of the Hugging Face hub: run `hf auth login`, or set HF_TOKEN; "
            "without --push_to_hub the directory is written here alone"
        )


def push(folder: Path, name: str, *, private: bool = False) -> str:
    """Upload a directory as the model `name`, made if need be, and return its address.

    Raises:
        InputError: no network, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # of its HTTP client, which depends on its version

    api = HfApi()
    try:
        repository = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message=f"Upload {folder.name}")
    except (HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name} could not be uploaded ({type(error).__name__}: {reason}); {folder} is whole: look at the "
            f"network and the token's rights, then run `hf upload {name} {folder}`"
        ) from error
    return str(repository)
