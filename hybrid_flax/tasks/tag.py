"""Sequence tagging: a tag for every token, scored token by token, and by whole spans where tags mark them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hybrid_flax.data.tags import are_spans, span_types
from hybrid_flax.ops.crf import Transitions, best_path, log_likelihood
from hybrid_flax.ops.losses import cross_entropy
from hybrid_flax.tasks.base import Metric, Task, known_targets, likeliest
from hybrid_flax.tasks.classify import class_counts, class_metrics, f1_scores, measure_classes
from hybrid_flax.typing import TokenIds, TokenMask

__all__ = ["allowed_moves", "make_tagging", "span_counts"]

SPAN_METRICS = (
    Metric("loss", "nats/token", lower_is_better=True, text="loss {:.4f} nats/token"),
    Metric("accuracy", share=True, text="  accuracy {:.2f} %"),
    Metric("precision", share=True, text="  spans: precision {:.2f}"),
    Metric("recall", share=True, text="  recall {:.2f}"),
    Metric("f1", share=True, text="  f1 {:.2f}"),
)

_FORBIDDEN = -1e9


@functools.cache
def make_tagging(names: tuple[str, ...], unseen: tuple[str, ...] = ()) -> Task:
    """The task; equal arguments give the identical object.

    names: "O", then B- and I- of every span type; or plain tags (`are_spans` tells them apart).
    unseen: tags of tokens that follow these, which no training example has and no model can predict. They count as
    missed in all metrics but the loss, which is of the other tokens; a CRF passes over them there.

    Outputs are emissions [B, T, C], or (emissions, transitions) of a model with a CRF, whose loss is the negative log
    likelihood of the row and whose predictions are Viterbi paths; moves that BIO2 forbids are never taken.
    Metrics: loss in nats a token and accuracy of tokens; of spans precision, recall and F1 (strict, micro over types)
    and F1 of every type, of plain tags F1 macro, micro and weighted.
    """
    moves = allowed_moves(names)
    spans = are_spans(names)
    num_tags = len(names) + len(unseen)

    def loss(outputs, batch, label_smoothing=0.0, z_loss=0.0):
        targets, weights = known_targets(batch, len(names))
        count = jnp.sum(weights)
        if isinstance(outputs, tuple):
            emissions, transitions = _constrain(outputs, moves)
            likelihood = log_likelihood(emissions, targets, weights > 0, transitions)
            return {"loss": -jnp.sum(likelihood), "count": count}
        losses = cross_entropy(outputs, targets, label_smoothing, z_loss)
        return {"loss": jnp.sum(losses * weights), "count": count}

    def predict(outputs, live):
        if isinstance(outputs, tuple):
            emissions, transitions = _constrain(outputs, moves)
            return best_path(emissions, live, transitions)
        return likeliest(outputs)

    def evaluate(outputs, batch):
        live = batch.weights > 0
        predicted = predict(outputs, live)
        if not spans:
            given, actual = (jax.nn.one_hot(tags.reshape(-1), num_tags) for tags in (predicted, batch.targets))
            return loss(outputs, batch) | class_counts(given, actual, batch.weights.reshape(-1))
        right = jnp.sum((predicted == batch.targets) & live).astype(jnp.float32)
        sums = {"right": right, "scored": jnp.sum(live).astype(jnp.float32)}
        return loss(outputs, batch) | sums | span_counts(predicted, batch.targets, live, num_tags // 2)

    if not spans:
        return Task(loss, evaluate, measure_classes, class_metrics("nats/token"), predict)
    metrics = (*SPAN_METRICS, *(Metric(f"f1/{kind}", share=True) for kind in span_types(names)))
    return Task(loss, evaluate, functools.partial(_measure, names), metrics, predict)


def allowed_moves(names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Whether a row may begin with a tag [C], and go from one to the next [C, C].

    I-X follows B-X or I-X alone; plain tags follow one another as they like.
    """
    inside = np.array([name.startswith("I-") for name in names]) & are_spans(names)
    kinds = np.array([name[2:] for name in names])
    same = (kinds[:, None] == kinds[None, :]) & np.array([name != "O" for name in names])[:, None]
    return ~inside, ~inside[None, :] | same


def span_counts(predicted: TokenIds, actual: TokenIds, live: TokenMask, num_types: int) -> dict[str, Any]:
    """Spans by type [C]: "true_positive" (same type, begin and end), "predicted", "actual".

    Tags are 0 for O, 1 + 2 k for B- of type k, 2 + 2 k for I-. A span begins at a B- and takes in the I- of its type
    that follow at once among live places; any other I- is in no span.
    """
    spans = [_spans(tags, live) for tags in (predicted, actual)]
    (begins_p, type_p, end_p), (begins_a, type_a, end_a) = spans
    both = begins_p & begins_a & (type_p == type_a) & (end_p == end_a)

    def count(mask, kinds):
        each = jax.nn.one_hot(kinds, num_types)
        return jnp.sum(each * mask[..., None].astype(each.dtype), axis=(0, 1))

    return {
        "true_positive": count(both, type_a),
        "predicted": count(begins_p, type_p),
        "actual": count(begins_a, type_a),
    }


def _spans(tags, live):
    """(whether a span begins, its type, the place of its last token) at every place."""
    begins, inside, kinds = live & (tags % 2 == 1), live & (tags > 0) & (tags % 2 == 0), (tags - 1) // 2
    place = jnp.arange(tags.shape[1], dtype=jnp.int32)

    def step(carry, xs):
        """From the end: (type that goes on after this place, or -1; where it ends)."""
        going, end = carry
        inside_t, begins_t, kind_t, live_t, t = xs
        last = jnp.where(going == kind_t, end, t)
        new_going = jnp.where(inside_t, kind_t, -1)
        return (jnp.where(live_t, new_going, going), jnp.where(live_t & inside_t, last, end)), last

    batch = tags.shape[0]
    first = (jnp.full(batch, -1, tags.dtype), jnp.zeros(batch, jnp.int32))
    xs = (inside.T, begins.T, kinds.T, live.T, place)
    _, ends = lax.scan(step, first, xs, reverse=True)
    return begins, kinds, ends.T


def _constrain(outputs, moves):
    emissions, transitions = outputs
    may_start, may_follow = moves
    return emissions.astype(jnp.float32), Transitions(
        jnp.where(may_start, transitions.start, _FORBIDDEN),
        jnp.where(may_follow, transitions.between, _FORBIDDEN),
        transitions.end,
    )


def _measure(names, sums):
    true_positive, predicted, actual = (sums[name] for name in ("true_positive", "predicted", "actual"))
    by_type = {
        f"f1/{name}": f1_scores(*(count[[place]] for count in (true_positive, predicted, actual)))["f1_micro"]
        for place, name in enumerate(span_types(names))
    }
    return {
        "loss": sums["loss"] / max(sums["count"], 1.0),
        "accuracy": sums["right"] / sums["scored"],
        "precision": float(true_positive.sum() / max(predicted.sum(), 1.0)),
        "recall": float(true_positive.sum() / max(actual.sum(), 1.0)),
        "f1": f1_scores(true_positive, predicted, actual)["f1_micro"],
        **by_type,
    }
