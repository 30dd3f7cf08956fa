"""Who may reach a server, and the key that others must have."""

from __future__ import annotations

import ipaddress
import os

from lightning_app.errors import InputError

API_KEY = "LIGHTNING_APP_API_KEY"  # the environment's variable


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_key(host: str) -> str | None:
    """The key that clients must send; None: none is set.

    Raises:
        InputError: others can reach the address, and there is no key.
    """
    key = os.environ.get(API_KEY) or None
    if not is_loopback(host) and key is None:
        raise InputError(
            f"host is {host}, which others can reach: set a key in the environment's variable {API_KEY}, or "
            "serve on 127.0.0.1"
        )
    return key
