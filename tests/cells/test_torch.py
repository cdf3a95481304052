"""The classical cells against torch, where it is installed (extra "oracles"): values and gradients in float64."""

import engines
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = engines.library("torch")

from cells.oracle import BATCH, LENGTH, WIDTH, widen  # noqa: E402

from hybrid_flax.cells.gated import elman, gru, lstm, lstmp  # noqa: E402
from hybrid_flax.certify.checks import check_close  # noqa: E402
from hybrid_flax.certify.subjects import noise, normal  # noqa: E402
from hybrid_flax.mixers.recurrent import run_cell  # noqa: E402

STATE, PROJECTION = 8, 5

# Our cell and the module of torch, which stacks its gates in the order of ours.
MODULES = {
    "tanh": (elman(WIDTH, state_width=STATE), lambda: torch.nn.RNN(WIDTH, STATE, batch_first=True)),
    "relu": (
        elman(WIDTH, state_width=STATE, activation="relu"),
        lambda: torch.nn.RNN(WIDTH, STATE, nonlinearity="relu", batch_first=True),
    ),
    "lstm": (lstm(WIDTH, state_width=STATE), lambda: torch.nn.LSTM(WIDTH, STATE, batch_first=True)),
    "lstmp": (
        lstmp(WIDTH, state_width=STATE, projection=PROJECTION),
        lambda: torch.nn.LSTM(WIDTH, STATE, proj_size=PROJECTION, batch_first=True),
    ),
    "gru": (gru(WIDTH, state_width=STATE), lambda: torch.nn.GRU(WIDTH, STATE, batch_first=True)),
}


def weights_of(params):
    """Our parameters, or their gradients, as torch stores them: gates stacked in front, and two biases.

    The second bias is a parameter of ours for the candidate of the GRU alone; elsewhere it is left out of the result.
    """
    cell = params["cell"]
    weights = {
        "weight_ih_l0": stacked(params["input"]["kernel"]),
        "weight_hh_l0": stacked(cell["recurrent_kernel"]),
        "bias_ih_l0": params["input"]["bias"].reshape(-1),
    }
    if "recurrent_bias" in cell:
        weights["bias_hh_l0"] = np.concatenate([np.zeros(2 * STATE), cell["recurrent_bias"]])
    if "kernel" in cell:
        weights["weight_hr_l0"] = cell["kernel"].T
    return weights


def stacked(kernel):
    """[D, gates, N] as [gates N, D]."""
    return kernel.reshape(kernel.shape[0], -1).T


def gradients_of(module, names):
    """The gradients of torch in the layout of `weights_of`: of the second bias, the part that we have."""
    gradients = {name: parameter.grad.numpy() for name, parameter in module.named_parameters() if name in names}
    if "bias_hh_l0" in gradients:
        gradients["bias_hh_l0"][: 2 * STATE] = 0.0
    return gradients


@pytest.mark.parametrize("form", ["sequential", "deferred"])
@pytest.mark.parametrize("name", MODULES)
def test_cell_equals_torch(name, form):
    """Ours in float32 against float64 of torch: outputs, last states and all gradients, that of the state included."""
    cell, build = MODULES[name]
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
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    weights = {key: torch.tensor(value) for key, value in weights_of(wide).items()}
    module.load_state_dict(weights, strict=False)
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
    found = (weights_of(gradients[0]), *gradients[1:])
    check_close(found, (gradients_of(module, weights), torch_x.grad.numpy(), torch_dstate))
