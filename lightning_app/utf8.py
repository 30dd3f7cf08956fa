"""Text that comes in and goes out is UTF-8, whatever the locale says."""

from __future__ import annotations

import codecs
import io
import locale
import os
import re
import subprocess
import sys

_BYTE = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of a byte that is not UTF-8
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def restart_in_utf8_mode() -> None:
    """Start this process anew in Python's UTF-8 mode, unless the locale is UTF-8 anyway.

    Files that a library opens without an encoding (jsonargparse its configs), names of files and arguments are in the
    locale's encoding otherwise. Python 3.15 has this mode by default; it cannot be switched on in a running process.
    """
    names = (locale.getpreferredencoding(False), sys.getfilesystemencoding())
    if sys.flags.utf8_mode or all(codecs.lookup(name).name == "utf-8" for name in names):
        return
    os.environ["PYTHONUTF8"] = "1"  # for processes that this one starts
    words = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    if os.name != "posix":  # Windows' exec gives the terminal back at once
        sys.exit(subprocess.call(words))
    os.execv(sys.executable, words)


def use_utf8_streams() -> None:
    """Read and write the terminal in UTF-8. A byte that is not UTF-8 comes in as a lone surrogate (see `as_text`), and
    a lone surrogate goes out as the escape that JSON has for it."""
    each = ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace"))
    for stream, errors in each:
        if isinstance(stream, io.TextIOWrapper) and (stream.encoding, stream.errors) != ("utf-8", errors):
            stream.reconfigure(encoding="utf-8", errors=errors)


def as_text(words: str) -> str:
    """An argument or a line of the terminal: bytes that are not UTF-8 are taken for Latin-1, so that none is lost."""
    return _BYTE.sub(lambda found: chr(ord(found[0]) - 0xDC00), words)


def decode(content: bytes) -> str:
    """The text of a file that a user has written: UTF-8 or UTF-16, without its byte order mark; other bytes are taken
    for Latin-1."""
    if content.startswith(UTF_16):
        return content.decode("utf-16", "replace")
    return as_text(content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape"))
