"""What an error says, in one line."""

import pytest

from lightning_app.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one\ntwo"), "one"),
        (EOFError(), "EOFError"),
        (ValueError("x" * 300), "x" * 200 + "..."),
    ],
)
def test_the_first_line(error: Exception, said: str):
    assert first_line(error) == said
