"""A damaged log: whatever is flipped or cut, no number is another one, and what is lost is counted."""

import random
from pathlib import Path

import pytest

from lightning_app.reports.compare.tables import format_comparison
from lightning_app.reports.dashboard import write_dashboard
from lightning_app.reports.log import damage, line_of, read_log
from lightning_app.reports.runs import Run
from tests.reports.conftest import typed


def test_a_line_has_a_checksum_that_is_no_part_of_its_record(tmp_path: Path):
    (tmp_path / "log.jsonl").write_text(line_of({"event": 'x, "crc": "0"}'}) + '{"step": 2}\n')
    assert read_log(tmp_path) == [{"event": 'x, "crc": "0"}'}, {"step": 2}]
    assert damage(tmp_path) == ""


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 1',
        b"7",
        b"\xff\xfe\x00",
        b'{"step": "one"}',
        b'{"rtep": 1}',
        b'{"step": 1, "val/ce": "x"}',
        b'{"event": 1, "step": 1}',
        b'{"event": "resumed", "rtep": 1}',
        b"[" * 100_000,
        line_of({"step": 1, "val/ce": 3.25}).encode().strip().replace(b"3.25", b"3.35"),
    ],
)
def test_a_damaged_line_is_left_out_and_its_number_is_said(tmp_path: Path, line: bytes):
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1}\n' + line + b'\n\n{"step": 3}\n' + line)
    assert read_log(tmp_path) == [{"step": 1}, {"step": 3}]
    assert damage(tmp_path) == "2 damaged lines left out (2, 5)"


def test_no_flip_or_cut_changes_a_record_or_stops_a_page(tmp_path: Path, simulate):
    log = simulate(regrowth=True, rollback=True)[:60]
    whole = "".join(map(line_of, log)).encode()
    draw, kinds = random.Random(0), {"same": 0, "noticed": 0}
    for i in range(150):
        content = bytearray(whole)
        if i % 3:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            del content[draw.randrange(len(content)) :]
        (tmp_path / "log.jsonl").write_bytes(content)
        found = read_log(tmp_path)
        known = [record for record in found if record in log]
        others = [record for record in found if record not in log]  # a flip in the name of the checksum: one more field
        assert all("event" in one and any(one.items() >= record.items() for record in log) for one in others)
        kinds["noticed" if damage(tmp_path) else "same"] += 1
        assert len(known) + len(others) >= 58 or not i % 3
        if i < 6 and found:
            write_dashboard(typed(found), tmp_path / "page.html", title="x")
            format_comparison([Run("x", "x", records=typed(found))])
    assert kinds["noticed"] > 100
