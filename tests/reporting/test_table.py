from lightning_app.reporting.table import format_table


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
