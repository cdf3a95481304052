"""Texts that stand for values, with their verdict by what the value must be: said here again, not asked of the package.

A sense is what a value must be: "count" (a whole number of at least 1), "number" (finite) and so on.
"""

from fuzz.case import Part, nonsense, unknown, valid

__all__ = ["MARKUP", "SENSES", "draw_value"]

MARKUP = ("[/x]", "[bold]", r"$\frac{$", "$", "<b>&amp;", "a\nb", "{0}", "%s", "日本語", "\u202e", "é", "'", '"')

_WORDS = ("", " ", "ten", "None", "[/x]", "--", "1,000", "²", "1.5.1", "日本", "a b", "1e", "[1]", "{}")
_NOT_WHOLE = ("1.5", "nan", "inf", "-inf", "1e-3", "1e999", "0x10", "-1", "-3", str(-(10**12)), "1e400")
_NOT_FINITE = ("nan", "inf", "-inf", "1e999", "NaN", "Infinity")
_HUGE = (str(10**12), str(2**31), str(2**63), str(10**30), "1e12", "9" * 5000)
_NO_CHOICE = ("batch?", "None", "naïve", "adam adam", "0", "true", "a\nb")

# sense: (texts that are right, texts that are nonsense, texts of which nothing is known); _WORDS are nonsense besides
SENSES: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "count": (("1", "2"), ("0", "-1", "-3") * 4 + _NOT_WHOLE, (*_HUGE, "1e0", "１", "1_0", " 2 ", "+1", "True")),
    "count or 0": (("0",), ("-1", "-3") * 4 + _NOT_WHOLE, (*_HUGE, "-0", "１", "true")),
    "seed": (("0", "1", "7"), (*_NOT_WHOLE, str(2**63), str(10**30), "9" * 5000), (str(2**32), str(2**63 - 1))),
    "share below 1": (
        ("0.0", "0.1", "0.25"),
        (*_NOT_FINITE, "-0.1", "1.0", "1.5", "-1e-9", "1e30"),
        ("-0.0", "0.9999999999999999", "1e-320", "0.99999999999999999"),
    ),
    "share": (("0.5",), (*_NOT_FINITE, "-0.1", "1.5", "1e30"), ("0", "1", "1e-320", "-0.0")),
    "at least 0": (("0.001", "0.1"), (*_NOT_FINITE, "-1", "-1e-9"), ("0", "1e30", "1e300", "1e-320", "-0.0")),
    "above 0": (("1.0",), (*_NOT_FINITE, "0", "-1", "-0.0"), ("1e30", "1e-320", "1e300")),
    "finite": (("0.5", "1.0"), _NOT_FINITE, ("-1e30", "1e300", "0", "-1")),
    "at most inf": (("1.0", "inf"), ("nan", "-1", "-inf", "0"), ("1e300", "1e-320")),
    "truth": (("true", "false"), ("2", "-1", "nan", "perhaps", "tru"), ("yes", "TRUE", "on")),
    "choice": ((), _NO_CHOICE, ()),
    "encoding": (("utf-8", "ascii", "latin-1"), ("utf-9", "hex", "rot13", "undefined"), ("utf-7", "idna")),
    "file": ((), ("nowhere.txt", "/dev/null", "/dev/zero", "a" * 300, "nowhere=,"), ("/", ".", "{here}")),
    "label": ((*MARKUP[:2], r"$\frac{$", "日本語"), (), ("", "0", " ", "\udc80")),
}


def draw_value(rng, name: str, sense: str, odds: tuple[int, int, int] = (2, 6, 2)) -> Part:
    """A value of a sense, as likely right, nonsense or unknown as `odds` say."""
    groups = [(made, texts, weight) for made, texts, weight in zip((valid, nonsense, unknown), SENSES[sense], odds)]
    groups = [group for group in groups if group[1] and group[2]]
    made, texts, _ = rng.choices(groups, [weight for *_, weight in groups])[0]
    if made is nonsense and rng.random() < 0.15:
        text = rng.choice(_WORDS)
        return unknown(name, text) if sense == "file" and not text.strip() else nonsense(name, text)
    return made(name, rng.choice(texts))
