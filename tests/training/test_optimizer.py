"""Optimisers and schedules against optax, closed forms, and one matrix at a time."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from optax import contrib

from hybrid_flax import register_optimizer, register_schedule
from hybrid_flax.config import apply_overrides, base_config
from hybrid_flax.errors import ConfigError
from hybrid_flax.models.build import init_params, make_model
from hybrid_flax.ranges import Share
from hybrid_flax.registration import OPTIMIZERS, SCHEDULES
from hybrid_flax.training.loop import train
from hybrid_flax.training.optimizer import leaf_kinds, make_optimizer, make_unit_schedule
from hybrid_flax.training.setup import make_setup, step_program
from hybrid_flax.training.state import make_hparams
from hybrid_flax.training.writers import read_jsonl

optax_alone = functools.partial(jax.numpy_dtype_promotion, "standard")  # optax mixes counts of steps with floats
RATE = 0.02
VALUES = {
    "learning_rate": RATE,
    "weight_decay": 0.0,
    "table_decay": 0.0,
    "b1": 0.8,
    "b2": 0.9,
    "epsilon": 1e-6,
    "momentum": 0.7,
    "clip_norm": math.inf,
    "ema_decay": 0.0,
    "dropout": 0.0,
    "embedding_dropout": 0.0,
    "word_dropout": 0.0,
    "recurrent_dropout": 0.0,
    "label_smoothing": 0.0,
    "z_loss": 0.0,
}
SHAPES = {
    "input": {"kernel": (4, 3, 5), "bias": (3, 5)},
    "cell": {"recurrent_kernel": (5, 3, 5)},
    "norm": {"scale": (4,)},
    "embed": {"embedding": (7, 4)},
    "output": {"kernel": (5, 4)},
}


def hparams(**changes):
    return make_hparams(**VALUES | changes)


def random_tree(seed):
    rng = np.random.default_rng(seed)
    leaves, structure = jax.tree.flatten(SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    return jax.tree.unflatten(structure, [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in leaves])


def walk(optimizer, params, gradients, scale=1.0):
    """Parameters after updates by `optimizer`, each times `scale`."""
    state = optimizer.init(params)
    for grads in gradients:
        updates, state = optimizer.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p + scale * u, params, updates)
    return params


def assert_near(one, other, bound=1e-6):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.max(np.abs(a - b)) <= bound * np.max(np.abs(b))


ALIASES = {
    "adam": optax.adam(RATE, b1=0.8, b2=0.9, eps=1e-6),
    "adamw": optax.adamw(
        RATE,
        b1=0.8,
        b2=0.9,
        eps=1e-6,
        weight_decay=0.1,
        mask=lambda p: jax.tree.map(lambda k: k == "matrix", leaf_kinds(p)),
    ),
    "rmsprop": optax.rmsprop(RATE, decay=0.9, eps=1e-6),
    "sgd": optax.sgd(RATE, momentum=0.7, nesterov=True),
    "lion": optax.lion(RATE, b1=0.8, b2=0.9, weight_decay=0.0),
    "adafactor": optax.chain(optax.adafactor(learning_rate=None), optax.scale(RATE)),
    "muon": contrib.muon(
        RATE,
        beta=0.7,
        nesterov=True,
        consistent_rms=0.2,
        adam_b1=0.8,
        adam_b2=0.9,
        eps=1e-6,
        muon_weight_dimension_numbers=lambda p: jax.tree_util.tree_map_with_path(
            lambda path, leaf: contrib.MuonDimensionNumbers(0, leaf.ndim - 1) if "kernel" in path[-1].key else None, p
        ),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_the_alias_of_optax(name):
    params, gradients = random_tree(0), [random_tree(seed) for seed in range(1, 5)]
    ours = make_optimizer(name, hparams(weight_decay=0.1 if name == "adamw" else 0.0), nesterov=True)
    with optax_alone():
        wanted = walk(ALIASES[name], params, gradients)
    assert_near(walk(ours, params, gradients, -RATE), wanted)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lowers_a_quadratic(name):
    target = random_tree(1)

    def loss(params):
        return sum(jnp.sum(jnp.square(a - b)) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(target)))

    params, grad = random_tree(0), jax.jit(jax.value_and_grad(loss))
    optimizer = make_optimizer(name, hparams(clip_norm=1.0), nesterov=True)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    losses = []
    for _ in range(20):
        value, grads = grad(params)
        losses.append(float(value))
        updates, state = update(grads, state, params)
        params = jax.tree.map(lambda p, u: p - RATE * u, params, updates)
    assert losses[-1] < 0.95 * losses[0] and losses[1] < losses[0]


def test_unknown_names():
    with pytest.raises(ValueError, match="adam, adamw, rmsprop, sgd, lion, adafactor, muon"):
        make_optimizer("adagrad", hparams())
    with pytest.raises(ValueError, match="constant, exponential, step, linear, cosine, wsd, rsqrt"):
        make_unit_schedule("cosinus", num_steps=5)
    for attempt in (leaf_kinds, make_optimizer("adamw", hparams()).init, make_optimizer("muon", hparams()).init):
        with pytest.raises(ValueError) as error:
            attempt({"mixer": {"weights": jnp.ones((2, 2))}})
        assert "mixer/weights" in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def scanned_params():
    """Parameters of four scanned layers and one left over."""
    model = make_model(vocab_size=6, width=8, depth=5, pattern="gru", norm="layer")
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adam"])
@pytest.mark.parametrize("weight_decay, table_decay", [(0.1, 0.0), (0.1, 0.7), (0.0, 0.7)])
def test_decay_reaches_matrices_and_tables_alone(name, weight_decay, table_decay, scanned_params):
    """Also where a stack of layers gives a bias two axes; without a gradient nothing else moves."""
    strengths = {"kernel": weight_decay, "recurrent_kernel": weight_decay, "embedding": table_decay}
    optimizer = make_optimizer(name, hparams(weight_decay=weight_decay, table_decay=table_decay), nesterov=True)
    zeros = jax.tree.map(jnp.zeros_like, scanned_params)
    updates, _ = optimizer.update(zeros, optimizer.init(scanned_params), scanned_params)
    assert set(scanned_params["backbone"]) > {"repeats"}
    seen = set()

    def check(path, update, param):
        name = path[-1].key
        seen.add((name, update.ndim))
        np.testing.assert_allclose(update, strengths.get(name, 0.0) * param, rtol=1e-6)

    jax.tree_util.tree_map_with_path(check, updates, scanned_params)
    assert ("bias", 3) in seen and ("scale", 2) in seen and ("embedding", 2) in seen and ("kernel", 4) in seen


def test_decay_comes_behind_the_direction():
    """Oracle: optax's AdamW, each kind of parameter trained alone with its own strength."""
    params, gradients = random_tree(0), [random_tree(seed) for seed in range(1, 5)]
    found = walk(make_optimizer("adamw", hparams(weight_decay=0.1, table_decay=2.0)), params, gradients, -RATE)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        outer, name = (entry.key for entry in path)
        strength = {"kernel": 0.1, "recurrent_kernel": 0.1, "embedding": 2.0}.get(name, 0.0)
        alone = optax.adamw(RATE, b1=0.8, b2=0.9, eps=1e-6, weight_decay=strength)
        with optax_alone():
            wanted = walk(alone, leaf, [tree[outer][name] for tree in gradients])
        assert_near(found[outer][name], wanted)


def test_adam_does_not_decay(scanned_params):
    optimizer = make_optimizer("adam", hparams(weight_decay=0.1, table_decay=0.1))
    zeros = jax.tree.map(jnp.zeros_like, scanned_params)
    updates, _ = optimizer.update(zeros, optimizer.init(scanned_params), scanned_params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))


def test_muon_orthogonalises_every_gate_of_every_layer_alone(scanned_params):
    """Oracle: the same matrices as separate parameters, each of two axes."""
    rng = np.random.default_rng(1)
    grads = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), scanned_params)
    optimizer = make_optimizer("muon", hparams(), nesterov=True)
    updates, _ = optimizer.update(grads, optimizer.init(scanned_params), scanned_params)

    def matrices(tree):
        """Every matrix by name, layer and gate."""
        alone = {}
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            names = [entry.key for entry in path]
            if names[-1] not in ("kernel", "recurrent_kernel"):
                continue
            layers = list(leaf) if "repeats" in names else [leaf]
            for number, layer in enumerate(layers):
                between = layer.reshape(layer.shape[0], -1, layer.shape[-1])
                for gate in range(between.shape[1]):
                    alone[f"{'/'.join(names)} {number} {gate}"] = between[:, gate]
        return alone

    oracle = contrib.muon(1.0, beta=0.7, nesterov=True, consistent_rms=0.2)
    alone = matrices(scanned_params)
    assert any(name.endswith(" 3 2") for name in alone)
    with optax_alone():
        expected, _ = oracle.update(matrices(grads), oracle.init(alone), alone)
    found = matrices(updates)
    for name, update in expected.items():
        assert np.max(np.abs(found[name] + update)) <= 1e-5 * np.max(np.abs(update)), name


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_step_of_muon_is_what_its_docstring_says(nesterov):
    """Oracle: the momentum in float64, orthogonalised once more by optax; vectors and tables by Adam or NAdam."""
    params, gradients = random_tree(0), [random_tree(seed) for seed in range(1, 4)]
    optimizer = make_optimizer("muon", hparams(), nesterov=nesterov)
    rest = (optax.nadamw if nesterov else optax.adamw)(1.0, b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.0)
    state, rest_state = optimizer.init(params), rest.init(params)
    momentum, b = np.zeros((5, 4)), 0.7
    for t, grads in enumerate(gradients, start=1):
        updates, state = optimizer.update(grads, state, params)
        with optax_alone():
            others, rest_state = rest.update(grads, rest_state, params)
        assert_near(updates["norm"], jax.tree.map(jnp.negative, others["norm"]), 1e-5)
        assert_near(updates["embed"], jax.tree.map(jnp.negative, others["embed"]), 1e-5)
        g = np.asarray(grads["output"]["kernel"], float)
        momentum = b * momentum + (1 - b) * g
        looked = b * momentum / (1 - b ** (t + 1)) + (1 - b) * g / (1 - b**t) if nesterov else momentum
        once = contrib.muon(1.0, beta=0.0, nesterov=False, consistent_rms=0.2, eps=1e-6)
        looked = jnp.asarray(looked, jnp.float32)
        with optax_alone():
            wanted, _ = once.update(looked, once.init(looked), looked)
        assert_near(updates["output"]["kernel"], -wanted, 1e-3)


@pytest.mark.parametrize("clip_norm", [0.5, 3.0, 1e6, math.inf])
def test_clipping(clip_norm):
    params, grads = random_tree(0), random_tree(1)
    optimizer = make_optimizer("sgd", hparams(clip_norm=clip_norm, momentum=0.0))
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    norm = float(optax.tree.norm(grads))
    assert float(optax.tree.norm(updates)) == pytest.approx(min(norm, clip_norm), rel=1e-6)
    assert_near(updates, jax.tree.map(lambda g: g * min(1.0, clip_norm / norm), grads))
    zeros = jax.tree.map(jnp.zeros_like, grads)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))


STEPS, FINAL, DECAY, EVERY, FRACTION = 20, 0.1, 0.5, 3, 0.3


def multiplier(name, step, warmup):
    """The closed form of every schedule; step counts updates done before."""
    if step < warmup:
        return (step + 1) / warmup
    t, rest = step - warmup, STEPS - warmup
    if name == "exponential":
        return DECAY ** (t / EVERY)
    if name == "step":
        return DECAY ** (t // EVERY)
    if name == "linear":
        return 1.0 - (1.0 - FINAL) * t / rest
    if name == "cosine":
        return FINAL + (1.0 - FINAL) * 0.5 * (1.0 + math.cos(math.pi * t / rest))
    if name == "wsd":
        decay_steps = round(FRACTION * STEPS)
        return 1.0 - (1.0 - FINAL) * max(0, t - (rest - decay_steps)) / decay_steps
    if name == "rsqrt":
        return math.sqrt(max(warmup, 1) / (step + 1))
    return 1.0


@pytest.mark.parametrize("warmup", [0, 1, 2, 5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name, warmup):
    schedule = make_unit_schedule(
        name,
        num_steps=STEPS,
        warmup_steps=warmup,
        final_fraction=FINAL,
        decay_rate=DECAY,
        decay_every=EVERY,
        decay_fraction=FRACTION,
    )
    found = [float(schedule(jnp.asarray(step))) for step in range(STEPS)]
    np.testing.assert_allclose(found, [multiplier(name, step, warmup) for step in range(STEPS)], rtol=2e-6, atol=1e-7)
    assert max(found) <= 1.0
    as_logged = [float(schedule(step)) for step in range(STEPS)]  # by a Python number, outside of a trace
    np.testing.assert_allclose(as_logged, found, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("warmup", [-1, 5, 6])
def test_a_warm_up_leaves_a_step(warmup):
    with pytest.raises(ValueError, match=r"must be in \[0, 5\)"):
        make_unit_schedule("linear", num_steps=5, warmup_steps=warmup)


def blend(hparams, *, beta: Share = 0.5, sign: bool = True):
    """An optimizer of one's own, with an option that is data and one that is not."""
    steps = [optax.trace(decay=beta), optax.scale_by_sign()]
    return optax.chain(*steps[: 2 if sign else 1])


def test_an_optimizer_of_ones_own_is_what_optax_makes_of_it():
    register_optimizer("blend", blend, decays=False)
    params, gradients = random_tree(0), [random_tree(seed) for seed in (1, 2, 3)]
    choice, traced = OPTIMIZERS.choose("blend", {"beta": 0.25, "sign": False}).split(float)
    ours = make_optimizer(choice, hparams(options=traced, weight_decay=0.5))
    found, wanted = walk(ours, params, gradients, -RATE), walk(optax.trace(0.25), params, gradients, -RATE)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_floats_of_an_optimizer_are_data_and_others_are_not():
    """Runs that differ in a float share a program; those that differ in a bool do not."""
    register_optimizer("blend", blend)
    base = apply_overrides(base_config(), ["optim.name=blend", "model.width=8", "data.length=8", "data.batch_size=2"])

    def program(*overrides):
        config = apply_overrides(base.copy_and_resolve_references(), overrides)
        setup = make_setup(config)
        return step_program(setup, config), setup.hparams.options

    (one, options), (other, others) = program("optimizers.blend.beta=0.25"), program("optimizers.blend.beta=0.75")
    assert one == other and hash(one) == hash(other) and (options["beta"], others["beta"]) == (0.25, 0.75)
    assert one != program("optimizers.blend.sign=false")[0]
    register_optimizer("blend", blend)
    assert one == program()[0], "the same again is the same program"


@pytest.mark.parametrize("kind", ["optimizer", "schedule"])
def test_registered_again_it_takes_effect_at_once(kind, text, tmp_path):
    """Also where a step was compiled for the old one; the same again is what it was."""

    def own(factor):
        def made(given):
            return optax.scale(factor) if kind == "optimizer" else lambda count: jnp.full((), factor)

        return made

    register = {"optimizer": register_optimizer, "schedule": register_schedule}[kind]
    section = {"optimizer": "optim__name", "schedule": "schedule__name"}[kind]
    found = []
    for number, factor in enumerate((1.0, 0.5, 0.5)):
        register("own", own(factor))
        config = tiny.tiny_config(text, **{"schedule__name": "constant"} | {section: "own"})
        run, _ = train(config, tmp_path / str(number))
        rates = {row["train/learning_rate"] for row in read_jsonl(tmp_path / str(number) / "metrics.jsonl")[:3]}
        found.append((jax.tree.leaves(run.params), rates))
    (first, _), (second, rates), (third, _) = found
    assert [*rates] == pytest.approx([config.optim.learning_rate * (1.0 if kind == "optimizer" else 0.5)])
    assert any(np.any(one != other) for one, other in zip(first, second, strict=True))
    assert all(np.all(one == other) for one, other in zip(second, third, strict=True))


def test_what_is_no_optimizer_and_no_schedule():
    register_optimizer("three", lambda hparams: 3)
    register_schedule("four", lambda course: 4)
    with pytest.raises(ConfigError, match=r"optimizer three returned int, no optax.GradientTransformation"):
        make_optimizer("three", hparams())
    with pytest.raises(ConfigError, match="schedule four returned int, no function"):
        make_unit_schedule("four", num_steps=5)


def test_a_fault_in_an_optimizer_is_one_line():
    def own(hparams):
        return optax.GradientTransformation(lambda params: (), lambda updates, state, params: 1 // 0)

    register_optimizer("own", own)
    optimizer = make_optimizer("own", hparams())
    params = random_tree(0)
    with pytest.raises(ConfigError, match=r"^own \(.*own\) fails: ZeroDivisionError: .* \(.*test_optimizer.py, line"):
        optimizer.update(params, optimizer.init(params), params)
