"""An archive: some 20 bytes that say what must be equal to read it, and the coded symbols."""

from __future__ import annotations

import struct
from binascii import crc_hqx
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from lightning_app.compression.coding import Passed, Reading, Writing, pass_through
from lightning_app.compression.setting import CPUS, DTYPES, Setting
from lightning_app.compression.symbols import bytes_of, symbols_of
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.models.adaptation_options import AdaptationOptions
from lightning_app.models.modes import one_thread
from lightning_app.training.adapting import Adaptation, adapting
from lightning_app.training.module import LanguageModule

MAGIC = 0xE6  # no text begins with it and the number of a format
FROZEN, ADAPTING, COUNTING = 1, 2, 4  # formats: but in the first the model's options stand behind the head; 3 is gone
OPTIONS = struct.Struct(">ff")  # lr, decay
HEAD = struct.Struct(">BBBB3B2s4sHH")  # magic, format, cpu and dtype, threads, torch, libraries, model, two checks
AT_CHECK = HEAD.size - 2  # of the archive's own check, which covers all other bytes


@dataclass(frozen=True)
class Parts:
    """What is in an archive.

    Attributes:
        setting: what whoever reads it must have.
        adapts: how the model learned from what had passed; None: it did not.
        counts: whether readers that count tokens counted it, too.
        data_check: of the bytes that are in it.
        count: the number of symbols.
        coded: those.
    """

    setting: Setting
    adapts: AdaptationOptions | None
    counts: bool
    data_check: int
    count: int
    coded: bytes


@dataclass(frozen=True)
class Archived:
    """An archive, and what its size comes from.

    Attributes:
        data: the archive.
        original: the number of bytes that are in it.
        passed: its symbols, and their information in bits.
    """

    data: bytes
    original: int
    passed: Passed

    @property
    def bits(self) -> float:
        """The cross-entropy of all symbols."""
        return self.passed.bits + self.passed.escape_bits


def compress(
    data: bytes, module: LanguageModule, tokenizer: Tokenizer, adapts: AdaptationOptions | None = None
) -> Archived:
    """Any bytes as an archive, which was read again.

    Args:
        adapts: how the model learns from what has passed, which readers that count tokens then count, too; None: it
            stays as it is.

    Raises:
        InputError: the model cannot compress; what was read again is not what was written.
    """
    symbols, writing = symbols_of(data, tokenizer), Writing()
    adapts = None if adapts is None else AdaptationOptions(*OPTIONS.unpack(OPTIONS.pack(adapts.lr, adapts.decay)))
    with one_thread():
        here = Setting.here(module, tokenizer)
        with _following(module, adapts, counts=adapts is not None) as (adaptation, counts):
            beginning = tokenizer.prompt("")
            passed = pass_through(module, writing, beginning, len(symbols), symbols, adaptation=adaptation)
        parts = Parts(here, adapts, counts, crc_hqx(data, 0), len(symbols), writing.encoder.finish())
        archive = _packed(parts)
        again = _read(_unpacked(archive), here, module, tokenizer)
    if again != data:
        raise InputError("the archive does not give back what was written: this machine does not compute alike twice")
    return Archived(archive, len(data), passed)


def decompress(archive: bytes, module: LanguageModule, tokenizer: Tokenizer) -> bytes:
    """What is in an archive.

    Raises:
        InputError: it is damaged, or was written with another model, CPU or library.
    """
    parts = _unpacked(archive)  # damage is said before the model is hashed
    with one_thread():
        return _read(parts, Setting.here(module, tokenizer), module, tokenizer)


@contextmanager
def _following(
    module: LanguageModule, adapts: AdaptationOptions | None, *, counts: bool
) -> Iterator[tuple[Adaptation | None, bool]]:
    """A model that follows what passes, and whether some extension counts it."""
    with ExitStack() as stack:
        adaptation = stack.enter_context(adapting(module, adapts))
        counting = [counts and stack.enter_context(extension.counting()) for extension in module.extensions]
        yield adaptation, any(counting)


def _read(parts: Parts, here: Setting, module: LanguageModule, tokenizer: Tokenizer) -> bytes:
    parts.setting.check(here)
    with _following(module, parts.adapts, counts=parts.counts) as (adaptation, _):
        reading = Reading(parts.coded)
        passed = pass_through(module, reading, tokenizer.prompt(""), parts.count, adaptation=adaptation)
    data = bytes_of(passed.symbols, tokenizer)
    if crc_hqx(data, 0) != parts.data_check:
        raise InputError("the archive does not give back what was written: it was written where numbers differ")
    return data


def _packed(parts: Parts) -> bytes:
    setting, adapts = parts.setting, parts.adapts
    kind = CPUS.index(setting.cpu) * len(DTYPES) + DTYPES.index(setting.dtype)
    of_setting = kind, setting.threads, *setting.torch, setting.libraries, setting.model, parts.data_check
    options = b"" if adapts is None else OPTIONS.pack(adapts.lr, adapts.decay)
    form = COUNTING if parts.counts else FROZEN if adapts is None else ADAPTING
    rest = options + _varint(parts.count) + parts.coded
    check = crc_hqx(HEAD.pack(MAGIC, form, *of_setting, 0)[:AT_CHECK] + rest, 0)
    return HEAD.pack(MAGIC, form, *of_setting, check) + rest


def _unpacked(archive: bytes) -> Parts:
    if len(archive) <= HEAD.size or archive[0] != MAGIC:
        raise InputError("it is not an archive that `compress` wrote")
    _, form, kind, threads, *torch, libraries, model, data_check, check = HEAD.unpack_from(archive)
    if form not in (FROZEN, ADAPTING, COUNTING):
        raise InputError(f"the archive has format {form}, and this code knows {FROZEN}, {ADAPTING} and {COUNTING}")
    if crc_hqx(archive[:AT_CHECK] + archive[HEAD.size :], 0) != check:
        raise InputError("the archive is damaged: its check sum is wrong")
    cpu, dtype = divmod(kind, len(DTYPES))
    major, minor, patch = torch
    setting = Setting(model, CPUS[cpu], DTYPES[dtype], threads, (major, minor, patch), libraries)
    start = HEAD.size + (0 if form == FROZEN else OPTIONS.size)
    adapts = None if form == FROZEN else AdaptationOptions(*OPTIONS.unpack_from(archive, HEAD.size))
    return Parts(setting, adapts, form == COUNTING, data_check, *_of_varint(archive[start:]))


def _varint(number: int) -> bytes:
    """7 bits in each byte, the lowest first; the last byte is below 128."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _of_varint(data: bytes) -> tuple[int, bytes]:
    """The number, and what follows it."""
    length = next(i for i, byte in enumerate(data, 1) if byte < 128)
    return sum((byte & 127) << 7 * i for i, byte in enumerate(data[:length])), data[length:]
