"""One HTML page that is whole in itself: no other files, no network, light and dark, tables that sort, fit for a phone.

Page("Sweep").section("Trials", text("..."), table(["trial", "loss"], rows)).write("sweep.html")
"""

import html
import io
import os
import re
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from hybrid_flax.files import write_whole
from hybrid_flax.units import printable

__all__ = [
    "INK",
    "PAPER",
    "Field",
    "Page",
    "cards",
    "chips",
    "figure",
    "folded",
    "grid",
    "letters",
    "new_figure",
    "preformatted",
    "save_figure",
    "subheading",
    "table",
    "text",
]

INK = "#2b2f36"  # of lines and letters in figures; on a page it is the colour of the text around them
PAPER = "#fdfdfc"  # of what hides lines behind letters in figures; on a page it is the colour behind the text

Html = str  # well-formed markup, safe to be put on a page; plain text becomes that by `html.escape`


class Field(NamedTuple):
    """A cell of a table. value: what it sorts by, the text where there is none. kind: "code", "best", "good", "bad"."""

    text: str
    value: float | None = None
    kind: str = ""


class Page(NamedTuple):
    """A page under construction: every `section` gives a new one. lead: what stands under the title."""

    title: str
    lead: str = ""
    sections: tuple[tuple[str, Html], ...] = ()

    def section(self, heading: str, *blocks: Html) -> "Page":
        """The page with one more section at its end."""
        return self._replace(sections=(*self.sections, (heading, "\n".join(blocks))))

    def html(self) -> Html:
        """The whole document."""
        headings = [(f"s{number}", heading, body) for number, (heading, body) in enumerate(self.sections)]
        links = " ".join(f'<a href="#{anchor}">{html.escape(heading)}</a>' for anchor, heading, _ in headings)
        bodies = "\n".join(
            f'<section id="{anchor}"><h2>{html.escape(heading)}</h2>\n{body}\n</section>'
            for anchor, heading, body in headings
        )
        title = html.escape(self.title)
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="color-scheme" content="light dark">\n<title>{title}</title>\n<style>{_CSS}</style></head>\n'
            f'<body><header><h1>{title}</h1><p class="lead">{html.escape(self.lead)}</p><nav>{links}</nav></header>\n'
            f"<main>{bodies}</main>\n<script>{_SCRIPT}</script></body></html>\n"
        )

    def write(self, path: str | os.PathLike) -> None:
        """Write the document, whole or not at all."""
        write_whole(path, self.html())


def text(words: str, kind: str = "") -> Html:
    """A paragraph; what stands between `backticks` is code. kind: "note" for small print."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(words))
    return f'<p class="{kind}">{marked}</p>' if kind else f"<p>{marked}</p>"


def subheading(words: str) -> Html:
    """A heading inside a section."""
    return f"<h3>{html.escape(words)}</h3>"


def table(header: Sequence[str], rows: Sequence[Sequence[str | Field]], caption: str = "") -> Html:
    """A table that sorts by the column whose head is pressed."""
    head = "".join(f'<th scope="col"><button type="button">{html.escape(name)}</button></th>' for name in header)
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    words = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    rows = f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>"
    return f'<div class="wide" tabindex="0"><table>{words}{rows}</table></div>'


def figure(drawn: Any, alt: str, caption: str = "") -> Html:
    """A matplotlib figure as a drawing inside the page. alt: what it shows, for those who cannot see it."""
    words = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure role="img" aria-label="{html.escape(alt)}">{_svg(drawn)}{words}</figure>'


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """(figure, axes) of matplotlib, sizes in inches, with the page's letters and lines; no global state is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot()
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(INK)
    axes.tick_params(colors=INK, labelsize=8.5)
    for label in (axes.title, axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=9.5)
    return drawn, axes


def letters(text: str) -> str:
    """A text of the user's for matplotlib, which would take what stands between dollar signs for a formula."""
    return printable(text).replace("$", r"\$")


def grid(*blocks: Html) -> Html:
    """Blocks side by side where there is room."""
    return f'<div class="grid">{"".join(blocks)}</div>'


def cards(*blocks: Html) -> Html:
    """Every block on a card of its own."""
    return "".join(f'<div class="card">{block}</div>' for block in blocks)


def chips(words: Sequence[tuple[str, str, bool | None]]) -> Html:
    """(name, words, whether they are right; None: it cannot be said) one after another."""
    marks = {True: ("good", "✓"), False: ("bad", "✗"), None: ("", "")}
    return '<ul class="chips">{}</ul>'.format(
        "".join(
            f'<li class="{marks[right][0]}"><code>{html.escape(name)}</code> {html.escape(said)} {marks[right][1]}</li>'
            for name, said, right in words
        )
    )


def preformatted(words: str) -> Html:
    """Text as it is, with its line breaks."""
    return f"<pre>{html.escape(words)}</pre>"


def folded(summary: str, *blocks: Html) -> Html:
    """Blocks that open when `summary` is pressed."""
    return f"<details><summary>{html.escape(summary)}</summary>{''.join(blocks)}</details>"


def _cell(cell):
    cell = Field(cell) if isinstance(cell, str) else cell
    missing = cell.value is None or cell.value != cell.value
    kinds = " ".join(filter(None, (cell.kind, "" if cell.value is None else "number")))
    attributes = (f' class="{kinds}"' if kinds else "") + ("" if missing else f' data-v="{float(cell.value)!r}"')
    return f"<td{attributes}>{html.escape(cell.text)}</td>"


def save_figure(figure: Any, file: Any, **options: Any) -> None:
    """`figure.savefig`, without a warning for letters that no font has: a box stands for them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        figure.savefig(file, **options)


def _svg(drawn):
    """The drawing alone: letters as text, sizes and colours left to the page."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "page"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        save_figure(drawn, file, format="svg", transparent=True, metadata=nothing)
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" xmlns:xlink="XLINK">', drawing, count=1)
    drawing = drawing.replace(' xmlns:xlink="XLINK"', "").replace("xlink:href", "href")
    return drawing.replace(INK, "currentColor").replace(PAPER, "var(--paper)")


_CSS = """
:root{--ink:#1f242c;--paper:#fdfdfc;--soft:#5d6570;--line:#dfe2e6;--card:#f4f5f6;--accent:#0b62a8;--good:#13703f;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e4e7eb;--paper:#15181c;--soft:#9aa3ad;--line:#333a42;--card:#1f242a;
--accent:#6db6f2;--good:#5fce93;--bad:#ff8d85}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:70rem;padding:1.5rem 1.1rem 5rem;color:var(--ink);background:var(--paper);
font:1rem/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.9rem;line-height:1.2;margin:.4rem 0}
h2{font-size:1.3rem;margin:2.6rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--line)}
h3{font-size:1.02rem;margin:1.5rem 0 .4rem}
p{max-width:46rem;margin:.5rem 0}.lead{font-size:1.06rem;color:var(--soft)}
.note,figcaption,caption{color:var(--soft);font-size:.86rem}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin:1rem 0}
a{color:var(--accent)}
code{font:.88em ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace}
.wide{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.2rem 0}
th,td{padding:.32rem .7rem;text-align:left;white-space:nowrap;border-bottom:1px solid var(--line)}
th{vertical-align:bottom}
th button{all:unset;cursor:pointer;font-weight:600;color:var(--soft);white-space:normal}
th button:hover,th button:focus-visible{color:var(--accent);text-decoration:underline}
th[aria-sort=ascending] button::after{content:" ▲"}th[aria-sort=descending] button::after{content:" ▼"}
td:first-child,th:first-child{position:sticky;left:0;background:var(--paper)}
td.number{text-align:right}td.code{font:.86em ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;white-space:pre}
.best{font-weight:700}.good{color:var(--good)}.bad{color:var(--bad)}
tbody tr:hover td{background:var(--card)}
.grid{display:grid;gap:1.2rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,25rem),1fr))}
figure{margin:.6rem 0;min-width:0}figure svg{width:100%;height:auto;display:block}
figure svg text{font-family:inherit!important}
.card{background:var(--card);border-radius:.6rem;padding:.7rem 1rem;margin:.7rem 0}
.card p{margin:.15rem 0;overflow-wrap:anywhere}
.chips{list-style:none;display:flex;flex-wrap:wrap;gap:.35rem;padding:0;margin:.5rem 0 .2rem}
.chips li{border:1px solid var(--line);border-radius:1rem;padding:.05rem .65rem;background:var(--paper);
font-size:.86rem;overflow-wrap:anywhere}
.chips code{color:var(--ink)}
pre{background:var(--card);border-radius:.6rem;padding:.7rem 1rem;margin:.5rem 0;white-space:pre-wrap;
overflow-wrap:anywhere;font:.82rem/1.45 ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
details{margin:.5rem 0}summary{cursor:pointer;color:var(--accent)}
@media(max-width:40rem){body{padding:1rem .8rem 4rem}h1{font-size:1.5rem}th,td{padding:.3rem .45rem}}
"""

_SCRIPT = """
for (const button of document.querySelectorAll('th button')) button.onclick = () => {
  const head = button.parentNode, body = head.closest('table').tBodies[0];
  const up = head.getAttribute('aria-sort') !== 'ascending';
  const key = row => { const cell = row.cells[head.cellIndex];
    return cell.classList.contains('number') ? parseFloat(cell.dataset.v) : cell.textContent; };
  const missing = value => value !== value || value === '';
  const order = (a, b) => { const x = key(a), y = key(b);
    if (missing(x) || missing(y)) return missing(x) - missing(y);
    return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1); };
  for (const other of head.parentNode.cells) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  body.append(...[...body.rows].sort(order));
};
"""
