"""The classical cells against torch, where it is installed (extra "oracles"): values and gradients in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cells.oracle import BATCH, LENGTH, WIDTH, widen  # noqa: E402

from hybrid_flax.cells.gated import elman, gru, lstm, lstmp  # noqa: E402
from hybrid_flax.certify.compare import check_close  # noqa: E402
from hybrid_flax.certify.subjects import noise, normal  # noqa: E402
from hybrid_flax.mixers.recurrent import run_cell  # noqa: E402

STATE, PROJECTION = 8, 5

# Our cell, the module of torch, and the order in which torch stacks our gates.
MODULES = {
    "tanh": (elman(WIDTH, state_width=STATE), lambda: torch.nn.RNN(WIDTH, STATE, batch_first=True), [0]),
    "relu": (
        elman(WIDTH, state_width=STATE, activation="relu"),
        lambda: torch.nn.RNN(WIDTH, STATE, nonlinearity="relu", batch_first=True),
        [0],
    ),
    "lstm": (lstm(WIDTH, state_width=STATE), lambda: torch.nn.LSTM(WIDTH, STATE, batch_first=True), [0, 1, 2, 3]),
    "lstmp": (
        lstmp(WIDTH, state_width=STATE, projection=PROJECTION),
        lambda: torch.nn.LSTM(WIDTH, STATE, proj_size=PROJECTION, batch_first=True),
        [0, 1, 2, 3],
    ),
    "gru": (gru(WIDTH, state_width=STATE), lambda: torch.nn.GRU(WIDTH, STATE, batch_first=True), [0, 1, 2]),
}


def weights_of(params, order):
    """Our parameters as torch stores them: stacked gates first, and two biases."""
    cell, bias = params["cell"], params["input"]["bias"][order].reshape(-1)
    recurrent_bias = np.zeros_like(bias)
    if "recurrent_bias" in cell:
        recurrent_bias[-cell["recurrent_bias"].size :] = cell["recurrent_bias"]
    weights = {
        "weight_ih_l0": np.concatenate([params["input"]["kernel"][:, gate].T for gate in order]),
        "weight_hh_l0": np.concatenate([cell["recurrent_kernel"][:, gate].T for gate in order]),
        "bias_ih_l0": bias,
        "bias_hh_l0": recurrent_bias,
    }
    return weights | ({"weight_hr_l0": cell["kernel"].T} if "kernel" in cell else {})


def gradients_of(module, params, order):
    """What torch says about our parameters, from the gradients of its own."""
    gradient = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}

    def kernel(name):
        return np.stack(np.split(gradient[name], len(order)), axis=0)[np.argsort(order)].transpose(2, 0, 1)

    cell = {"recurrent_kernel": kernel("weight_hh_l0")}
    if "recurrent_bias" in params["cell"]:
        cell["recurrent_bias"] = gradient["bias_hh_l0"][-params["cell"]["recurrent_bias"].size :]
    if "kernel" in params["cell"]:
        cell["kernel"] = gradient["weight_hr_l0"].T
    bias = np.stack(np.split(gradient["bias_ih_l0"], len(order)))[np.argsort(order)]
    return {"input": {"kernel": kernel("weight_ih_l0"), "bias": bias}, "cell": cell}


@pytest.mark.parametrize("form", ["sequential", "deferred"])
@pytest.mark.parametrize("name", MODULES)
def test_cell_equals_torch(name, form):
    """Ours in float32 against float64 of torch: outputs, last states and all gradients, that of the state included."""
    cell, build, order = MODULES[name]
    rng = np.random.default_rng(0)
    params = {"input": noise(cell.input.init, rng), "cell": noise(cell.init, rng)}
    state = jax.tree.map(lambda leaf: normal(rng, *leaf.shape), jax.eval_shape(lambda: cell.init_state(BATCH)))
    x, dy = normal(rng, BATCH, LENGTH, WIDTH), normal(rng, BATCH, LENGTH, cell.width)
    dlast = jax.tree.map(lambda leaf: normal(rng, *leaf.shape), state)

    def ours(params, x, state):
        off = jnp.zeros((BATCH, LENGTH), bool)
        u, _ = cell.input.apply(params["input"], x, None)
        y, last = run_cell(cell, form, params["cell"], u, off, off, state)
        products = jax.tree.map(jnp.vdot, last, dlast)
        return jnp.vdot(y, dy) + sum(jax.tree.leaves(products)), (y, last)

    gradients, (y, last) = jax.device_get(jax.jit(jax.grad(ours, (0, 1, 2), has_aux=True))(params, x, state))

    module, wide = build().double(), widen(params)
    module.load_state_dict({key: torch.tensor(value) for key, value in weights_of(wide, order).items()})
    torch_x = torch.tensor(widen(x), requires_grad=True)
    torch_state = {key: torch.tensor(leaf[None], requires_grad=True) for key, leaf in widen(state).items()}
    given = (torch_state["h"], torch_state["c"]) if "c" in state else torch_state["h"]
    torch_y, after = module(torch_x, given)
    torch_last = dict(zip("hc", after)) if "c" in state else {"h": after}
    loss = (torch_y * torch.tensor(widen(dy))).sum()
    (loss + sum((torch_last[key] * torch.tensor(leaf)).sum() for key, leaf in widen(dlast).items())).backward()

    check_close(y, torch_y.detach().numpy())
    check_close(last, {key: leaf.detach().numpy()[0] for key, leaf in torch_last.items()})
    torch_dstate = {key: leaf.grad.numpy()[0] for key, leaf in torch_state.items()}
    check_close(gradients, (gradients_of(module, params, order), torch_x.grad.numpy(), torch_dstate))
