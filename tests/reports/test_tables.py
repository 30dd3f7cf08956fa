from lightning_app.reports.tables import format_columns, format_table, one_line


def test_two_columns_and_indented_further_lines():
    rows = [("name", "value"), ("longer", "first\nsecond"), ("empty", "")]
    assert format_table(rows, title="A run").splitlines() == [
        "A run",
        "-----",
        "name    value",
        "longer  first",
        "        second",
        "empty   ",
    ]


def test_columns_are_as_wide_as_their_longest_cell_and_end_without_spaces():
    rows = [["1", "one", ""], ["1,000", "a thousand", "x"]]
    assert format_columns(["n", "name", "z"], rows, left=(1,)) == [
        "    n  name        z",
        "    1  one",
        "1,000  a thousand  x",
    ]


def test_one_line_keeps_what_can_be_printed():
    assert one_line('it\'s "ä"\r\n\tb\x1b[0m\n') == 'it\'s "ä"\\n\\tb\\x1b[0m\\n'
    assert one_line("a\nb", line_end=" / ") == "a / b"
