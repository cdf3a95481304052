"""A page is whole in itself, and what is put on it is on it as it was given."""

from markup import read

from hybrid_flax.report import page
from hybrid_flax.report.page import Field, Page


def drawing():
    drawn, axes = page.new_figure(3.0, 2.0)
    axes.plot([1, 2], [3, 4], label="a < b")
    axes.set(xlabel="R&D")
    axes.legend()
    return drawn


def test_a_page_of_everything():
    made = (
        Page("Losses & <gains>", "lead")
        .section("First", page.text("with `code <b>` in it"), page.text("small", "note"))
        .section("Second", page.figure(drawing(), 'a "drawing"', "caption"), page.preformatted("a\n  <b>"))
        .section("Third", page.grid(page.cards("one"), page.folded("more", page.chips([("x", "said", False)]))))
    )
    text, tags = read(made.html())
    for words in ("Losses & <gains>", "code <b>", "a < b", "R&D", "caption", "said ✗", "small", "<b>"):
        assert words in text
    labels = [held.get("aria-label") for _, held in tags]
    assert 'a "drawing"' in labels
    anchors = [held["href"][1:] for tag, held in tags if tag == "a"]
    assert anchors == [held["id"] for tag, held in tags if tag == "section"] == ["s0", "s1", "s2"]
    assert "currentColor" in made.html() and page.INK not in made.html()


def test_a_section_makes_another_page():
    first = Page("title")
    assert first.section("one").sections and not first.sections


def test_tables_keep_text_and_value():
    rows = [[Field("gate", kind="code"), Field("1.2 k", 1234.5)], ["plain", Field("-", float("nan"))]]
    text, tags = read(Page("t").section("s", page.table(["name", "size"], rows, "words")).html())
    cells = [held for tag, held in tags if tag == "td"]
    assert cells == [{"class": "code"}, {"class": "number", "data-v": "1234.5"}, {}, {"class": "number"}]
    assert "words name size gate 1.2 k plain -" in text


def test_writing_leaves_one_file(tmp_path):
    Page("t").write(tmp_path / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    assert (tmp_path / "a.html").read_text(encoding="utf-8").startswith("<!doctype html>")
