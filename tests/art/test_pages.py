import re
from html.parser import HTMLParser

from markupsafe import escape

from lightning_app.art.pages import COLUMNS, EMPTY, Category, Network, draw_page, format_categories
from lightning_app.reports.html import source

LARGE = Category(7, 1200, 0.75, 1600, 0, (3, 0.5), ["<b>bold</b> & \x1b[31mred\nline", "second"])
SMALL = Category(3, 400, 0.25, 9, 4, (7, 0.5), [])
NETWORK = Network("art", 0.8125, 1600, [LARGE, SMALL])
NOTHING = Network("second", 0.8, 0, [])


class Page(HTMLParser):
    """Counts the tags, and collects the text of the cells."""

    def __init__(self, text: str):
        super().__init__()
        self.opened: list[str] = []
        self.cells: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.opened.append(tag)
        self.cells += [""] * (tag == "td")
        self.ids |= {value or "" for name, value in attrs if name == "id"}
        self.links |= {(value or "").removeprefix("#") for name, value in attrs if name == "href" and value != "data:,"}

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def test_a_category_is_a_row_and_its_further_texts_lines_below_the_first():
    assert format_categories(NETWORK, limit=5).splitlines() == [
        "art: 2 categories after 1,600 inputs, 0 of them with one input; vigilance 0.812",
        "-" * 79,
        "id  inputs  share    age  unused  nearest  alike  typical texts",
        r" 7   1,200  75.0%  1,600       0        3  0.500  <b>bold</b> & \x1b[31mred\nline",
        "                                                  second",
        " 3     400  25.0%      9       4        7  0.500",
    ]


def test_a_limit_and_a_width_say_what_they_leave_out():
    lines = format_categories(NETWORK, limit=1, width=40).splitlines()
    assert lines[-1] == "... and 1 more: --limit 2 shows all"
    assert max(len(line) for line in lines) == 40
    assert lines[3].endswith("…")


def test_without_a_category_there_is_a_sentence_instead_of_a_table():
    assert EMPTY in format_categories(NOTHING, limit=5)
    assert "typical texts" not in format_categories(NOTHING, limit=5)
    assert "table" not in Page(draw_page([NOTHING], title="t")).opened


def test_the_page_has_a_section_for_each_network_and_a_cell_for_each_number():
    page = Page(draw_page([NETWORK, NOTHING], title="t"))
    assert page.opened.count("section") == 2
    assert page.cells[: len(COLUMNS) - 1] == ["7", "1,200", "75.0%", "1,600", "0", "3", "0.500"]
    assert page.opened.count("td") == 2 * len(COLUMNS)
    assert page.opened.count("li") == 2
    assert page.links == {"c0-3", "c0-7"} <= page.ids


def test_texts_are_shown_and_never_obeyed():
    text = draw_page([NETWORK], title="<i>")
    page = Page(text)
    assert not {"b", "i"} & set(page.opened)
    assert page.cells[len(COLUMNS) - 1].startswith(r"<b>bold</b> & \x1b[31mred ↵ line")
    assert "\x1b" not in text


def test_the_page_asks_nothing_of_a_network():
    assert not re.search(r"https?:|//|\bsrc=|@import|url\(", draw_page([NETWORK], title="t"))


def test_rows_are_sorted_by_numbers_not_by_what_is_shown():
    assert re.findall(r'data-label="inputs" data-by="(\d+)"', draw_page([NETWORK], title="t")) == ["1200", "400"]


def test_scripts_in_names_and_texts_are_shown_as_text_in_the_theme_of_all_pages():
    evil = "</script><script>alert(1)</script>"
    text = draw_page([Network(evil, 0.8, 1, [Category(1, 1, 1.0, 0, 0, None, [evil])])], title=evil)
    assert Page(text).opened.count("script") == 1
    assert text.count(str(escape(evil))) == 4  # title and heading, name, text
    assert source("theme.css") in text
