"""Synthetic languages with exact generators: what a mechanism can track, count and recall, measured at any length.

An example is a row of symbols with a target under each and a mark where the target is scored. Lengths are those of the
input; a row is padded to the longest, so that every length runs in the same program. Where an answer has more than one
symbol, or comes only after the whole input, blanks follow the input and the answer is read under them.
"""

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hybrid_flax.data.pipeline import Batches, make_batch
from hybrid_flax.errors import nearest
from hybrid_flax.typing import Batch

__all__ = ["LANGUAGES", "Language", "eval_language", "make_language", "make_language_batches"]

EVAL_ROWS = 512  # of a split
BLANK = "_"


class Language(NamedTuple):
    """A source of exact examples.

    symbols: the vocabulary, inputs and targets alike. row: (rng, length) -> (tokens, targets, scored), equally long
    sequences. total: (length) -> how long those are. shortest: the least length that has an example.
    every_symbol: whether there is a target under every symbol of the input. one_length: whether training has rows
    of the greatest length alone. every: lengths are rounded down to multiples of it.
    """

    symbols: tuple[str, ...]
    row: Callable[[np.random.Generator, int], tuple[Sequence[int], Sequence[int], Sequence[bool]]]
    total: Callable[[int], int] = lambda length: length
    shortest: int = 1
    every_symbol: bool = False
    one_length: bool = False
    every: int = 1


def make_language(text: str) -> Language:
    """The language of `name` or `name,option=number,...`: "parity", "mqar,pairs=16,vocab_size=8192".

    Raises ValueError for an unknown name or option, naming the nearest, and for values that do not fit.
    """
    name, *given = text.split(",")
    if name not in LANGUAGES:
        raise ValueError(f"unknown synthetic language {name!r}; {nearest(name, LANGUAGES)}")
    known = inspect.signature(LANGUAGES[name]).parameters
    options = {}
    for text in given:
        key, _, value = text.partition("=")
        if key not in known or not value.isdecimal():
            takes = ", ".join(f"{option}=NUMBER" for option in known) or "no options"
            raise ValueError(f"option {text!r} of the synthetic language {name!r}: it takes {takes}")
        options[key] = int(value)
    return LANGUAGES[name](**options)


def make_language_batches(language: Language, *, batch_size: int, length: int, seed: int) -> Batches:
    """Training batches: lengths uniform in [shortest, length], examples a function of (seed, step, row) alone.

    Raises ValueError for a length below the shortest.
    """
    if length < language.shortest:
        raise ValueError(f"data.length={length} must be at least {language.shortest} for this synthetic language")
    total = language.total(length)
    lengths = (length if language.one_length else language.shortest, length)

    def batch(step: int, rows: slice = slice(None)) -> Batch:
        places = np.arange(batch_size)[rows]
        return _batch(language, lengths, total, places, [seed, 0, step])

    return Batches(batch, batch_size, 1, batch_size * total)


def eval_language(
    language: Language, *, batch_size: int, lengths: tuple[int, int], longest: int, beyond: int = 0, stream: int = 1
) -> Sequence[Batch]:
    """EVAL_ROWS examples (rounded up to whole batches) of lengths uniform in `lengths`, both ends included.

    longest: rows are as wide as examples of this length, so that splits of different lengths run in one program.
    beyond: of targets under every symbol, score those after the first `beyond` alone. stream: another one has other
    examples of the same lengths. They do not depend on the seed of a training run.
    """
    total = language.total(longest)

    def batch(step: int) -> Batch:
        places = np.arange(batch_size) + step * batch_size
        made = _batch(language, lengths, total, places, [stream, *lengths])
        weights = made.weights * (made.segments.positions >= beyond) if language.every_symbol else made.weights
        return made._replace(weights=weights, row=np.arange(batch_size, dtype=np.int32))

    return [batch(step) for step in range(-(-EVAL_ROWS // batch_size))]


def _batch(language, lengths, total, places, seed):
    tokens, targets, segment_ids = np.zeros((3, len(places), total), np.int32)
    weights = np.zeros((len(places), total), np.float32)
    for place, number in enumerate(places):
        rng = np.random.default_rng([*seed, int(number)])
        row = language.row(rng, int(rng.integers(lengths[0], lengths[1] + 1)))
        size = len(row[0])
        tokens[place, :size], targets[place, :size], weights[place, :size] = row
        segment_ids[place, :size] = 1
    return make_batch(tokens, segment_ids, targets * (weights > 0), weights, places)


# State tracking: after every symbol, the state that a finite automaton is in. (Delétang et al. 2023, appendix A, ask
# for the last one alone; Grazzi et al. 2025, section 5.1, and Merrill et al. 2024, section 5, for all.)


def _tracking(num_inputs, step, start=0, symbols=None, state_of=lambda state: state):
    """An automaton over random inputs: state = step(state, input), and `state_of` it is the target."""

    def row(rng, length):
        tokens = rng.integers(0, num_inputs, length)
        states = itertools.accumulate(tokens.tolist(), step, initial=start)
        next(states)
        return tokens, [state_of(state) for state in states], np.ones(length, bool)

    return Language(symbols, row, every_symbol=True)


def parity() -> Language:
    """Whether there were an odd number of ones so far."""
    return counting(2)


def counting(modulus: int = 3) -> Language:
    """How many ones there were so far, modulo `modulus`."""
    if modulus < 2:
        raise ValueError(f"modulus={modulus} must be at least 2")
    return _tracking(2, lambda n, one: (n + one) % modulus, symbols=_numbers(modulus))


def even_pairs() -> Language:
    """Whether 01 and 10 together occurred an even number of times (1) so far: the first and the last symbol agree."""

    def row(rng, length):
        tokens = rng.integers(0, 2, length)
        return tokens, tokens == tokens[0], np.ones(length, bool)

    return Language(_numbers(2), row, every_symbol=True)


def cycle_navigation(places: int = 5) -> Language:
    """Where a walk on a cycle stands: 0 stays, 1 goes on, 2 goes back."""
    if places < 3:
        raise ValueError(f"places={places} must be at least 3")
    return _tracking(3, lambda at, move: (at + (0, 1, -1)[move]) % places, symbols=_numbers(places))


def modular_arithmetic(modulus: int = 5) -> Language:
    """The value of numbers joined by + - * so far, modulo `modulus`; * binds more than + and -.

    Numbers and operators alternate; a target stands under every number.
    """
    if modulus < 2:
        raise ValueError(f"modulus={modulus} must be at least 2")

    def row(rng, length):
        tokens = np.where(np.arange(length) % 2, modulus + rng.integers(0, 3, length), rng.integers(0, modulus, length))
        value, total, product, targets = 0, 0, 0, []
        for place, token in enumerate(tokens.tolist()):
            if place % 2 == 0:
                operator = tokens[place - 1] - modulus if place else 0
                if operator == 2:
                    product = product * token % modulus
                else:
                    total, product = (total + product) % modulus, (token if operator == 0 else -token) % modulus
                value = (total + product) % modulus
            targets.append(value)
        return tokens, targets, np.arange(length) % 2 == 0

    return Language((*_numbers(modulus), "+", "-", "*"), row, every_symbol=True)


def word_problem(group: str) -> Language:
    """The product of the elements so far, in S5 or A5 (Merrill et al. 2024, section 5): the first one acts first.

    An element is written as the images of the points 0 to 4.
    """
    elements = list(itertools.permutations(range(5)))
    if group == "a5":
        elements = [p for p in elements if _is_even(p)]
    number = {element: index for index, element in enumerate(elements)}
    table = np.array([[number[tuple(p[i] for i in q)] for q in elements] for p in elements])
    identity = number[tuple(range(5))]
    step = lambda product, element: int(table[element, product])  # noqa: E731
    return _tracking(len(elements), step, identity, tuple("".join(map(str, p)) for p in elements))


def _is_even(permutation):
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0


# Transduction: the answer is read under blanks after the input (Delétang et al. 2023, appendix A).


def _transduction(symbols, draw, answer, answer_length, shortest=1, every=1):
    """draw: (rng, length) -> inputs. answer: (inputs as a list) -> the answer, `answer_length(length)` symbols.

    every: lengths are rounded down to multiples of it.
    """
    blank = len(symbols)

    def row(rng, length):
        inputs = list(draw(rng, length // every * every))
        outputs = answer(inputs)
        tokens = inputs + [blank] * len(outputs)
        return tokens, [0] * len(inputs) + list(outputs), [False] * len(inputs) + [True] * len(outputs)

    total = lambda length: length + answer_length(length)  # noqa: E731
    return Language((*symbols, BLANK), row, total, shortest, every=every)


def reverse() -> Language:
    """The string backwards."""
    return _transduction(_numbers(2), _bits, lambda s: s[::-1], lambda n: n)


def duplicate() -> Language:
    """The string twice."""
    return _transduction(_numbers(2), _bits, lambda s: s + s, lambda n: 2 * n)


def odds_first() -> Language:
    """The symbols at odd places (the first, the third, ...), then those at even ones."""
    return _transduction(_numbers(2), _bits, lambda s: s[::2] + s[1::2], lambda n: n)


def bucket_sort(values: int = 5) -> Language:
    """The string sorted."""
    if values < 2:
        raise ValueError(f"values={values} must be at least 2")
    return _transduction(_numbers(values), lambda rng, n: rng.integers(0, values, n).tolist(), sorted, lambda n: n)


def missing_duplicate() -> Language:
    """A string and its copy with one symbol hidden by "?": which one it is."""

    def draw(rng, length):
        half = _bits(rng, length // 2)
        both = half + half
        both[int(rng.integers(length))] = 2
        return both

    def answer(s):
        half = len(s) // 2
        place = s.index(2)
        return [s[(place + half) % len(s)]]

    return _transduction((*_numbers(2), "?"), draw, answer, lambda n: 1, shortest=2, every=2)


def stack_manipulation() -> Language:
    """A stack from its bottom, then operations (pop, push 0, push 1): the stack from its top, closed by "."."""
    symbols = ("0", "1", "pop", "push0", "push1", ".")

    def draw(rng, length):
        depth = int(rng.integers(1, length + 1))
        return _bits(rng, depth) + (2 + rng.integers(0, 3, length - depth)).tolist()

    def answer(s):
        stack = []
        for symbol in s:
            if symbol < 2:
                stack.append(symbol)
            elif symbol > 2:
                stack.append(symbol - 3)
            elif stack:
                stack.pop()
        return [*stack[::-1], 5]

    return _transduction(symbols, draw, answer, lambda n: n + 1)


# Recall.


def mqar(pairs: int = 8, vocab_size: int = 256) -> Language:
    """Multi-query associative recall (Arora et al. 2024, section 3.1, and its published generator's settings).

    `pairs` keys with their values, then every key once more at a random place, nearer ones likelier (a power law
    of exponent 0.01 - 1), among random symbols; the target under it is its value. Keys are the lower half.
    """
    if not 0 < pairs < vocab_size // 2:
        raise ValueError(f"pairs={pairs} must be at least 1 and less than half of vocab_size={vocab_size}")

    def row(rng, length):
        half = vocab_size // 2
        keys = 1 + rng.choice(half - 1, pairs, replace=False)
        values = half + rng.choice(vocab_size - half, pairs, replace=False)
        tokens = rng.integers(0, vocab_size, length)
        tokens[: 2 * pairs : 2], tokens[1 : 2 * pairs : 2] = keys, values
        space = (length - 2 * pairs) // 2
        weights = np.arange(1, space + 1, dtype=np.float64) ** (0.01 - 1.0)
        places = 2 * pairs + 2 * rng.choice(space, pairs, replace=False, p=weights / weights.sum())
        targets, scored = np.zeros(length, np.int64), np.zeros(length, bool)
        tokens[places], targets[places], scored[places] = keys, values, True
        return tokens, targets, scored

    return Language(_numbers(vocab_size), row, shortest=4 * pairs, one_length=True)


def selective_copying(items: int = 16, vocab_size: int = 16) -> Language:
    """The `items` symbols that stand among noise, in order (Gu & Dao 2023, section 4.1.1)."""
    noise = vocab_size

    def draw(rng, length):
        tokens = np.full(length, noise)
        places = np.sort(rng.choice(length, items, replace=False))
        tokens[places] = rng.integers(0, vocab_size, items)
        return tokens.tolist()

    def answer(s):
        return [symbol for symbol in s if symbol != noise]

    symbols = (*_numbers(vocab_size), ".")
    language = _transduction(symbols, draw, answer, lambda n: items, shortest=max(1, items))
    return language._replace(one_length=True)


def induction_heads(vocab_size: int = 16) -> Language:
    """What followed the mark "!" the first time, when it comes again at the end (Gu & Dao 2023, section 4.1.2)."""

    def row(rng, length):
        tokens = rng.integers(0, vocab_size, length)
        place = int(rng.integers(0, length - 2))
        tokens[place] = tokens[-1] = vocab_size
        return _last(tokens, tokens[place + 1])

    return Language((*_numbers(vocab_size), "!"), row, shortest=3)


def needle(vocab_size: int = 16) -> Language:
    """A key and its value somewhere in noise: the value, when the key comes again at the end.

    Keys are k0, k1, ...; one of them stands in the row, so that noise never looks like a key.
    """

    def row(rng, length):
        tokens = rng.integers(0, vocab_size, length)
        place = int(rng.integers(0, length - 2))
        tokens[place] = tokens[-1] = vocab_size + rng.integers(0, vocab_size)
        return _last(tokens, tokens[place + 1])

    return Language((*_numbers(vocab_size), *(f"k{i}" for i in range(vocab_size))), row, shortest=3)


def _last(tokens, target):
    targets, scored = np.zeros(len(tokens), np.int64), np.zeros(len(tokens), bool)
    targets[-1], scored[-1] = target, True
    return tokens, targets, scored


def _bits(rng, length):
    return rng.integers(0, 2, length).tolist()


def _numbers(count):
    return tuple(str(i) for i in range(count))


LANGUAGES: dict[str, Callable[..., Language]] = {
    "parity": parity,
    "counting": counting,
    "even_pairs": even_pairs,
    "cycle_navigation": cycle_navigation,
    "modular_arithmetic": modular_arithmetic,
    "s5": lambda: word_problem("s5"),
    "a5": lambda: word_problem("a5"),
    "reverse": reverse,
    "duplicate": duplicate,
    "odds_first": odds_first,
    "bucket_sort": bucket_sort,
    "missing_duplicate": missing_duplicate,
    "stack_manipulation": stack_manipulation,
    "mqar": mqar,
    "selective_copying": selective_copying,
    "induction_heads": induction_heads,
    "needle": needle,
}
