"""HTML as tests read it."""

import re
from html.parser import HTMLParser

__all__ = ["read"]

_VOID = {"meta", "br", "use", "path", "rect"}


class Reader(HTMLParser):
    """Checks that tags are closed in order, and keeps the text and the attributes of every tag."""

    def __init__(self):
        super().__init__()
        self.open, self.words, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)


def read(document):
    """(text, tags) of a document that is well formed and refers to nothing outside itself."""
    reader = Reader()
    reader.feed(document)
    assert reader.open == []
    references = [
        value for _, held in reader.tags for name, value in held.items() if re.fullmatch(r".*(href|src)", name)
    ]
    assert all(value.startswith("#") for value in references)
    assert not re.search(r"https?:|@import|url\((?!#)|<link|<iframe", document)
    return " ".join(" ".join(reader.words).split()), reader.tags
