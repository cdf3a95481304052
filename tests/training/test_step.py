"""The train step: accumulation, the running mean of parameters, regularisers, and randomness by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from hybrid_flax.models.build import init_params
from hybrid_flax.models.model import Dropout
from hybrid_flax.ops.losses import cross_entropy
from hybrid_flax.training.noise import row_keys
from hybrid_flax.training.position import fresh_position
from hybrid_flax.training.setup import make_setup
from hybrid_flax.training.step import make_train_step


def run(config, num_steps):
    """The state after every step."""
    setup = make_setup(config)
    step = jax.jit(make_train_step(setup.model, setup.task, setup.traits, None))
    state, carry = fresh_position(setup, config)
    states = [state]
    for index in range(num_steps):
        state, carry, _ = step(state, carry, setup.batches.batch(index))
        states.append(state)
    return setup, states


def assert_near(one, other, bound):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.max(np.abs(a - b)) <= bound * np.max(np.abs(b))


@pytest.fixture(scope="module")
def whole(text):
    """Three steps in stream mode with all kinds of dropout and a running mean."""
    return run(stream_config(text), 3)


def stream_config(text, **changes):
    """With sgd: an update is linear in the gradient, so its rounding stays rounding (adam divides it by itself)."""
    changes = {"data__mode": "stream", "train__dropout": 0.3, "optim__ema_decay": 0.15} | changes
    changes |= {"optim__name": "sgd", "optim__learning_rate": 0.1}
    changes |= {"train__embedding_dropout": 0.2, "train__word_dropout": 0.2, "train__recurrent_dropout": 0.3}
    return tiny.tiny_config(text, **changes, train__log_every=3, schedule__name="constant")


def test_accumulated_parts_are_the_whole(text, whole):
    """Also with dropout, whose masks go by row or by step, and with a carry, whose rows come back in order."""
    _, parts = run(stream_config(text, optim__accumulate=4), 3)
    assert_near(parts[3].params, whole[1][3].params, 1e-6)
    assert_near(parts[3].sums, whole[1][3].sums, 1e-6)


def test_devices_count_by_their_tokens(text):
    """The mean is over all tokens of all devices, however many each has; a mapped axis stands for two of them."""
    config = tiny.tiny_config(text, optim__name="sgd", optim__learning_rate=0.1, optim__clip_norm=1e30)
    setup = make_setup(config)
    state, carry = fresh_position(setup, config)
    batch = setup.batches.batch(0)
    factors = np.where(np.arange(4) < 2, 1, 0.1).astype(np.float32)[:, None]
    batch = batch._replace(weights=batch.weights * factors)
    alone, shared = (make_train_step(setup.model, setup.task, setup.traits, axis) for axis in (None, "devices"))
    wanted, _, _ = jax.jit(alone)(state, carry, batch)
    halves = jax.tree.map(lambda leaf: leaf.reshape(2, -1, *leaf.shape[1:]), batch)
    devices = jax.jit(jax.vmap(shared, in_axes=(None, None, 0), axis_name="devices"))
    found, _, _ = devices(state, carry, halves)
    for device in (0, 1):
        assert_near(jax.tree.map(lambda leaf, d=device: leaf[d], found.params), wanted.params, 1e-6)


def test_running_mean(whole):
    """ema_t = d ema_tm1 + (1 - d) p_t, d = min(decay, (1 + t) / (10 + t)) for t updates done before."""
    mean = jax.device_get(whole[1][0].params)
    for done, state in enumerate(whole[1][1:]):
        decay = min(0.15, (1 + done) / (10 + done))
        mean = jax.tree.map(lambda old, p, d=decay: d * old + (1 - d) * np.asarray(p), mean, state.params)
        assert_near(state.ema, mean, 1e-6)
        assert not np.array_equal(jax.tree.leaves(state.ema)[0], jax.tree.leaves(state.params)[0])


def test_sums_start_again_after_a_log_row(text, whole):
    setup, states = whole
    assert [float(state.sums["steps"]) for state in states] == [0, 1, 2, 3]
    counts = [np.sum(setup.batches.batch(index).weights) for index in range(3)]
    assert float(states[3].sums["count"]) == np.sum(counts)
    _, every = run(tiny.tiny_config(text, train__log_every=1), 2)
    assert [float(state.sums["steps"]) for state in every] == [0, 1, 1]


def test_learning_rate_and_schedule_scale_the_update(text):
    config = tiny.tiny_config(text, optim__name="sgd", optim__momentum=0.0, optim__learning_rate=0.25, train__steps=4)
    config.schedule.name, config.schedule.warmup_steps = "linear", 2
    setup, states = run(config, 3)

    def loss(params, batch):
        logits, _ = setup.model.apply({"params": params}, batch.tokens, batch.segments)
        return jnp.mean(cross_entropy(logits, batch.targets))

    grad = jax.jit(jax.grad(loss))
    for index, factor in enumerate((0.5, 1.0, 1.0)):
        grads = grad(states[index].params, setup.batches.batch(index))
        norm = np.sqrt(sum(float(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(grads)))
        rate = 0.25 * factor * min(1.0, 1.0 / norm)
        wanted = jax.tree.map(lambda p, g, r=rate: p - r * g, states[index].params, grads)
        assert_near(states[index + 1].params, wanted, 1e-5)


@pytest.mark.slow
def test_label_smoothing_and_z_loss_enter_the_loss(text):
    config = tiny.tiny_config(text, loss__label_smoothing=0.1, loss__z_loss=0.01)
    setup, states = run(config, 1)
    batch = setup.batches.batch(0)
    tokens, segments = jax.tree.map(jnp.asarray, (batch.tokens, batch.segments))
    logits, _ = setup.model.apply({"params": states[0].params}, tokens, segments)
    logits = np.asarray(logits, np.float64)
    log_z = np.log(np.sum(np.exp(logits), axis=-1))
    log_p = logits - log_z[..., None]
    target = np.take_along_axis(log_p, batch.targets[..., None], axis=-1)[..., 0]
    losses = -0.9 * target - 0.1 * np.mean(log_p, axis=-1) + 0.01 * log_z**2
    assert float(states[1].sums["loss"]) == pytest.approx(np.sum(losses * batch.weights), rel=1e-5)


@pytest.fixture(scope="module")
def dropped(whole):
    """(model outputs, params, batch, keys): a function of rows with dropout."""
    setup, states = whole
    batch = jax.tree.map(jnp.asarray, setup.batches.batch(0))
    keys = row_keys(jax.random.key(3), jnp.asarray(5, jnp.int32), batch.row)

    @jax.jit
    def outputs(batch, keys, rate):
        return setup.model.apply({"params": states[0].params}, batch.tokens, batch.segments, None, Dropout(keys, rate))[
            0
        ]

    return outputs, batch, keys


@pytest.mark.slow
def test_dropout_goes_by_row(dropped):
    """Rows alone, or in another order, lose the same entries; other keys and steps lose others."""
    outputs, batch, keys = dropped
    whole = outputs(batch, keys, 0.4)
    for rows in (slice(2, 4), slice(None, None, -1)):
        part = outputs(jax.tree.map(lambda leaf, r=rows: leaf[r], batch), keys[rows], 0.4)
        np.testing.assert_allclose(part, whole[rows], rtol=1e-5, atol=1e-6)
    other = row_keys(jax.random.key(3), jnp.asarray(6, jnp.int32), batch.row)
    assert float(jnp.max(jnp.abs(outputs(batch, other, 0.4) - whole))) > 1e-2
    assert float(jnp.max(jnp.abs(outputs(batch, keys[::-1], 0.4) - whole))) > 1e-2


def test_dropout_of_nothing_is_nothing(dropped, whole):
    outputs, batch, keys = dropped
    setup, states = whole
    plain, _ = setup.model.apply({"params": states[0].params}, batch.tokens, batch.segments)
    np.testing.assert_allclose(outputs(batch, keys, 0.0), plain, rtol=1e-5, atol=1e-6)


def test_initial_matrices_are_scaled(text):
    """model.init_scale reaches kernels alone, and nothing else of the position."""
    one, half = (
        fresh_position(make_setup(config), config)
        for config in (tiny.tiny_config(text), tiny.tiny_config(text, model__init_scale=0.5))
    )
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(one.state.params)[0], jax.tree.leaves(half.state.params)
    ):
        factor = 0.5 if path[-1].key in ("kernel", "recurrent_kernel") else 1.0
        np.testing.assert_array_equal(np.asarray(a) * factor, b)
    assert one.state.key == half.state.key


def test_initial_parameters_depend_on_the_seed_alone(text):
    model = make_setup(tiny.tiny_config(text)).model
    init = jax.jit(init_params, static_argnums=0)
    one, two, other = (init(model, jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert not np.array_equal(one["embed"]["embedding"], other["embed"]["embedding"])
