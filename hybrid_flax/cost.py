"""What a function costs, read off its jaxpr: floating-point operations, bytes alive, elements.

One walker for every model. XLA's own `cost_analysis` counts the body of a loop once whatever its length, so
it cannot price a recurrence; here a `scan` costs its length times its body, and nothing knows which cell is
inside.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.interpreters.partial_eval import dce_jaxpr

FlopRule = Callable[[JaxprEqn], int | float]


def flops(fn: Callable, *args: Any) -> float:
    """Arithmetic operations of one call `fn(*args)`, over all devices; args may be `ShapeDtypeStruct`s.

    The convention is XLA's (HloCostAnalysis, property "flops"):

    * `dot_general` 2·batch·M·N·K; convolutions 2 per kernel tap that meets a real input, so padding is free;
    * one per output element for arithmetic, comparison, selection and conversion, of every dtype: integers
      and booleans count, and a complex operation counts as one;
    * 0 for transcendental functions (exp, log, tanh, erf, sqrt, rsqrt, pow, sin, ...), which XLA tallies
      apart; `logistic` is 3, the arithmetic around its exp;
    * reductions one per input element combined away; `sort` n·log2(n); scatter-add one per update element;
    * 0 for data movement (gather, slice, transpose, broadcast, concatenate, ...).

    Cumulative operations are one per element: XLA's CPU count of them grows with the square of the length, an
    artefact of its lowering. Results nobody reads are not counted, since XLA removes them.

    Control flow: `scan` is length times its body. `while` is its trip count times its body where the count
    follows from constants (a `fori_loop` with fixed bounds), and otherwise **once** its body. `cond` is its
    dearest branch. `shard_map` is its body times the devices it spans. `pallas_call` is its `cost_estimate`,
    else its grid times its body. Anything else that holds a jaxpr (jit, remat, custom_jvp, custom_vjp, ...) is
    that jaxpr. An unknown primitive is one per floating-point output element, unless `declare_flops` knows
    better.
    """
    closed = jax.make_jaxpr(fn)(*args)
    jaxpr, _ = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    return _jaxpr_flops(jaxpr, dict(zip(jaxpr.constvars, closed.consts, strict=True)))


def declare_flops(name: str, rule: FlopRule) -> None:
    """Makes `rule(eqn) -> float` the count of every equation of primitive `name`, before any other rule.

    `name` is a primitive's name ("my_kernel") or, for one kernel among many behind the same primitive,
    "primitive:name" with the equation's `name` or `target_name` parameter ("pallas_call:flash",
    "ffi_call:gru", "jit:attend"). Shapes are read from `eqn.invars[i].aval` and `eqn.outvars[i].aval`. The last
    declaration wins.
    """
    _DECLARED[name] = rule


def peak_bytes(fn: Callable, *args: Any) -> int:
    """The most bytes that are alive at one time while `fn(*args)` runs, its results among them, its arguments not.

    The jaxpr is run in its order: a value takes its bytes from the equation that makes it to the last one that reads
    it, and so the values that a backward pass reads live from the forward pass to there. Two kinds of value take none.
    An alias (reshape, transpose, ...) is its operand. XLA fuses a value into the equations that read it where it is
    element-wise and all of them are element-wise or reductions; its operands then live until the last of them. An
    equation that holds a jaxpr takes what that takes, for one pass of a loop, beside its own results. XLA chooses its
    own order and fusions: compiled models are within about a quarter of it. Arguments may be `ShapeDtypeStruct`s.
    """
    closed = jax.make_jaxpr(fn)(*args)
    return _peak(dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)[0])


def tree_bytes(tree: Any) -> int:
    """Bytes of all leaves of a tree of arrays, `ShapeDtypeStruct`s or numbers; a typed key is its data."""
    return sum(_aval_bytes(leaf) for leaf in _avals(tree))


def tree_size(tree: Any) -> int:
    """Elements of all leaves of a tree of arrays, `ShapeDtypeStruct`s or numbers; a typed key is one."""
    return sum(math.prod(leaf.shape) for leaf in _avals(tree))


def _avals(tree: Any) -> list[Any]:
    return [leaf if hasattr(leaf, "shape") else jax.typeof(leaf) for leaf in jax.tree.leaves(tree)]


def _aval_bytes(aval: Any) -> int:
    # numpy's dtypes and JAX's key dtypes both have an itemsize; abstract values have no nbytes.
    return math.prod(aval.shape) * aval.dtype.itemsize


# --- Walking ---


def _jaxpr_flops(jaxpr: Jaxpr, known: Mapping[Var, Any]) -> int | float:
    return float(sum(_eqn_flops(eqn, known) for eqn in jaxpr.eqns))


def _inner_flops(inner: Jaxpr | ClosedJaxpr, invars=(), known: Mapping[Var, Any] | None = None) -> int | float:
    """FLOPs of a jaxpr inside an equation; the values of `invars` that are constants stay known inside."""
    inside: dict[Var, Any] = {}
    jaxpr = inner.jaxpr if isinstance(inner, ClosedJaxpr) else inner
    if isinstance(inner, ClosedJaxpr):
        inside.update(zip(jaxpr.constvars, inner.consts, strict=True))
    if len(invars) == len(jaxpr.invars):
        values = [_value(v, known or {}) for v in invars]
        inside.update({v: x for v, x in zip(jaxpr.invars, values, strict=True) if x is not None})
    return _jaxpr_flops(jaxpr, inside)


def _eqn_flops(eqn: JaxprEqn, known: Mapping[Var, Any]) -> int | float:
    name, params = eqn.primitive.name, eqn.params
    label = params.get("name", params.get("target_name"))
    for key in (f"{name}:{label}", name):
        if key in _DECLARED:
            return _DECLARED[key](eqn)
    if name in _RULES:
        return _RULES[name](eqn)
    if name in _FREE:
        return 0
    if name in _PER_OUTPUT:
        return _PER_OUTPUT[name] * _out_size(eqn)
    if name == "scan":
        return params["length"] * _inner_flops(params["jaxpr"])
    if name == "while":
        trips = _trip_count(eqn, known)
        once = _inner_flops(params["cond_jaxpr"]) + _inner_flops(params["body_jaxpr"])
        return once if trips is None else trips * once
    if name == "cond":
        return max(_inner_flops(branch, eqn.invars[1:], known) for branch in params["branches"])
    if name == "shard_map":
        devices = math.prod(params["mesh"].shape[axis] for axis in _manual_axes(params))
        return devices * _inner_flops(params["jaxpr"])
    if name == "custom_linear_solve":
        return _inner_flops(params["jaxprs"].solve)
    if inner := _jaxprs_in(params):
        return sum(_inner_flops(j, eqn.invars, known) for j in inner)
    return sum(_aval(v).size for v in eqn.outvars if _is_inexact(v.aval))


def _jaxprs_in(params: Mapping[str, Any]) -> list[Jaxpr | ClosedJaxpr]:
    def is_jaxpr(x):
        return isinstance(x, Jaxpr | ClosedJaxpr)

    return [x for value in params.values() for x in jax.tree.leaves(value, is_leaf=is_jaxpr) if is_jaxpr(x)]


def _manual_axes(params: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(params.get("newly_manual_axes", params.get("manual_axes", params["mesh"].axis_names)))


def _value(var: Any, known: Mapping[Var, Any]) -> Any | None:
    return var.val if isinstance(var, Literal) else known.get(var)


def _trip_count(eqn: JaxprEqn, known: Mapping[Var, Any]) -> int | None:
    """Trips of `while i < n: i += step`; None when start, n or step do not follow from constants."""
    cond, body = eqn.params["cond_jaxpr"].jaxpr, eqn.params["body_jaxpr"].jaxpr
    num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    if len(cond.eqns) != 1 or cond.eqns[0].outvars[0] is not cond.outvars[0]:
        return None
    test = cond.eqns[0]
    if test.primitive.name not in ("lt", "le", "gt", "ge"):
        return None

    def operand(var):
        """(value at the start, change per trip), either None when unknown."""
        if isinstance(var, Literal):
            return var.val, 0
        at = cond.invars.index(var) if var in cond.invars else None
        if at is None:
            return None, None
        if at < num_cond:
            return _value(eqn.invars[at], known), 0
        carry = at - num_cond
        return _value(eqn.invars[num_cond + num_body + carry], known), _carry_step(body, num_body, carry)

    (left, left_step), (right, right_step) = map(operand, test.invars)
    if any(x is None or np.ndim(x) for x in (left, left_step, right, right_step)):
        return None
    # The loop runs while gap > 0 (or >= 0), and the gap shrinks by the same amount every trip.
    sign = 1 if test.primitive.name in ("lt", "le") else -1
    gap, shrink = sign * (float(right) - float(left)), sign * (float(left_step) - float(right_step))
    inclusive = test.primitive.name in ("le", "ge")
    if gap < 0 or (gap == 0 and not inclusive):
        return 0
    if shrink <= 0:
        return None
    return math.floor(gap / shrink) + 1 if inclusive else math.ceil(gap / shrink)


def _carry_step(body: Jaxpr, num_consts: int, carry: int) -> Any | None:
    """By how much one trip changes a carry: 0, or the literal that is added or subtracted; None otherwise."""
    before, after = body.invars[num_consts + carry], body.outvars[carry]
    if after is before:
        return 0
    for eqn in body.eqns:
        if after in eqn.outvars and eqn.primitive.name in ("add", "sub"):
            left, right = eqn.invars
            if left is before and isinstance(right, Literal):
                return right.val if eqn.primitive.name == "add" else -right.val
            if right is before and isinstance(left, Literal) and eqn.primitive.name == "add":
                return left.val
    return None


# --- What is alive ---


def _peak(jaxpr: Jaxpr) -> int:
    """`peak_bytes` of a jaxpr."""
    origins = _origins(jaxpr)
    last: dict[Var, int] = {}  # the number of the equation that reads a buffer last
    for number, read in enumerate([*(eqn.invars for eqn in jaxpr.eqns), jaxpr.outvars]):
        for var in read:
            last.update(dict.fromkeys(origins.get(var, ()) if isinstance(var, Var) else (), number))
    dying: dict[int, list[Var]] = {}
    for var, number in last.items():
        dying.setdefault(number, []).append(var)
    alive = peak = 0
    for number, eqn in enumerate(jaxpr.eqns):
        made = sum(_aval_bytes(var.aval) for var in eqn.outvars if var in last)
        inner = max(map(_peak, map(_opened, _jaxprs_in(eqn.params))), default=0)
        if eqn.primitive.name in _CALLS:
            inner -= made  # the results are the same
        peak = max(peak, alive + made + max(inner, 0))
        alive += made - sum(_aval_bytes(var.aval) for var in dying.get(number, ()))
    return peak


def _origins(jaxpr: Jaxpr) -> dict[Var, frozenset[Var]]:
    """The buffers that hold every value: its own, or those that it is computed from wherever it is read."""
    readers: dict[Var, list[str]] = {}
    for eqn in jaxpr.eqns:
        for var in eqn.invars:
            if isinstance(var, Var):
                readers.setdefault(var, []).append(eqn.primitive.name)
    results = {var for var in jaxpr.outvars if isinstance(var, Var)}
    origins: dict[Var, frozenset[Var]] = {}
    for eqn in jaxpr.eqns:
        operands = frozenset[Var]().union(*(origins.get(v, ()) for v in eqn.invars if isinstance(v, Var)))
        for var in eqn.outvars:
            fused = eqn.primitive.name in _FUSED and var not in results and {*readers.get(var, ())} <= _FUSED_INTO
            origins[var] = operands if fused or eqn.primitive.name in _ALIASES else frozenset([var])
    return origins


def _opened(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


# --- Rules ---


def _out_size(eqn: JaxprEqn) -> int:
    return _aval(eqn.outvars[0]).size


def _aval(var: Var | Literal) -> Any:
    """What the rules below count: an array, or a reference to one, with its shape, size and dtype."""
    return var.aval


def _is_inexact(aval: Any) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, np.inexact)


def _dot_flops(eqn: JaxprEqn) -> int | float:
    (contracting, _), _ = eqn.params["dimension_numbers"]
    lhs = _aval(eqn.invars[0]).shape
    return 2 * _out_size(eqn) * math.prod(lhs[d] for d in contracting)


def _conv_flops(eqn: JaxprEqn) -> int | float:
    """2 · valid (output, tap) pairs · output features · input features a group · batch, as XLA does."""
    p, numbers = eqn.params, eqn.params["dimension_numbers"]
    lhs, rhs, out = (_aval(var).shape for var in (*eqn.invars[:2], eqn.outvars[0]))
    pairs = 1
    for axis in range(len(numbers.lhs_spec) - 2):
        size, taps = lhs[numbers.lhs_spec[2 + axis]], rhs[numbers.rhs_spec[2 + axis]]
        outputs = out[numbers.out_spec[2 + axis]]
        stretch = p["lhs_dilation"][axis]
        starts = np.arange(outputs) * p["window_strides"][axis] - p["padding"][axis][0]
        at = starts[:, None] + np.arange(taps) * p["rhs_dilation"][axis]
        pairs *= int(np.count_nonzero((at >= 0) & (at <= (size - 1) * stretch) & (at % stretch == 0)))
    batch = lhs[numbers.lhs_spec[0]] // p["batch_group_count"]
    return 2 * pairs * batch * rhs[numbers.rhs_spec[0]] * rhs[numbers.rhs_spec[1]]


def _reduce_flops(eqn: JaxprEqn, each: int | float = 1) -> int | float:
    return each * (_aval(eqn.invars[0]).size - _out_size(eqn))


def _generic_reduce_flops(eqn: JaxprEqn) -> int | float:
    return _reduce_flops(eqn, _inner_flops(eqn.params["jaxpr"]))


def _window_flops(eqn: JaxprEqn) -> int | float:
    each = sum(map(_inner_flops, _jaxprs_in(eqn.params))) or 1
    return each * _out_size(eqn) * (math.prod(eqn.params["window_dimensions"]) - 1)


def _sort_flops(eqn: JaxprEqn) -> int | float:
    size = _aval(eqn.invars[0]).size
    return size * math.ceil(math.log2(max(size, 1)))


def _scatter_flops(eqn: JaxprEqn) -> int | float:
    return _aval(eqn.invars[2]).size


def _integer_pow_flops(eqn: JaxprEqn) -> int | float:
    """Multiplications of square-and-multiply, and one division when the exponent is negative."""
    y = abs(eqn.params["y"])
    multiplications = y.bit_length() - 1 + y.bit_count() - 1 if y else 0
    return _out_size(eqn) * (multiplications + (eqn.params["y"] < 0))


def _random_bits_flops(eqn: JaxprEqn) -> int | float:
    # A word of threefry is 20 rounds of 5 integer operations, 6 key injections and its counter; the hardware
    # generators (rbg) are about one operation a word.
    each = 121 if "fry" in str(_aval(eqn.invars[0]).dtype) else 1
    return each * _out_size(eqn)


def _threefry_flops(eqn: JaxprEqn) -> int | float:
    return 112 * _out_size(eqn)


def _triangular_solve_flops(eqn: JaxprEqn) -> int | float:
    return _aval(eqn.invars[0]).shape[-1] * _aval(eqn.invars[1]).size


def _factorise_flops(eqn: JaxprEqn, share: float) -> int | float:
    matrix = _aval(eqn.invars[0])
    return share * matrix.shape[-1] * matrix.size


def _pallas_flops(eqn: JaxprEqn) -> int | float:
    if estimate := eqn.params.get("cost_estimate"):
        return estimate.flops
    grid = [size if isinstance(size, int) else 1 for size in eqn.params["grid_mapping"].grid]
    return math.prod(grid) * _inner_flops(eqn.params["jaxpr"])


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Transcendental functions, which XLA tallies apart.
_TRANSCENDENTAL = _names("""
    exp exp2 log log1p expm1 tanh erf erfc sqrt rsqrt cbrt pow sin cos tan asin acos atan atan2 sinh cosh asinh
    acosh atanh
""")

# What moves data, makes it out of nothing, or is bookkeeping.
_MOVEMENT = _names("""
    broadcast_in_dim reshape squeeze expand_dims transpose rev slice dynamic_slice dynamic_update_slice gather
    scatter concatenate stack pad tile iota copy copy_p split unstack stop_gradient optimization_barrier name
    sharding_constraint device_put layout_constraint empty create_token random_seed random_wrap random_unwrap
    random_clone all_gather all_to_all ppermute pbroadcast pvary axis_index debug_callback debug_print get swap
""")

_FREE = _TRANSCENDENTAL | _MOVEMENT

# One operation per output element, also where the output is not floating-point.
_ELEMENTWISE = _names("""
    add sub mul div rem neg abs sign floor ceil round max min clamp add_any square nextafter select_n
    eq ne lt le gt ge eq_to le_to lt_to is_finite and or xor not population_count clz real imag complex conj
    shift_left shift_right_logical shift_right_arithmetic convert_element_type bitcast_convert_type
    reduce_precision cumsum cumprod cummax cummin
""")
_PER_OUTPUT = {**dict.fromkeys(_ELEMENTWISE, 1), "logistic": 3, "cumlogsumexp": 8, "erf_inv": 37, "lgamma": 53}

_REDUCTIONS = _names("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor")
_WINDOWS = _names("reduce_window reduce_window_sum reduce_window_max reduce_window_min")
_SCATTERS = _names("""
    scatter-add scatter-sub scatter-mul scatter-min scatter-max
    scatter_add scatter_sub scatter_mul scatter_min scatter_max
""")

_RULES: dict[str, FlopRule] = {
    "dot_general": _dot_flops,
    "conv_general_dilated": _conv_flops,
    "integer_pow": _integer_pow_flops,
    "reduce": _generic_reduce_flops,
    **dict.fromkeys(_REDUCTIONS, _reduce_flops),
    # XLA's reducer of (value, index) pairs that also orders NaNs has nine operations.
    **dict.fromkeys(("argmax", "argmin"), functools.partial(_reduce_flops, each=9)),
    **dict.fromkeys(_WINDOWS, _window_flops),
    **dict.fromkeys(("sort", "top_k", "approx_top_k"), _sort_flops),
    **dict.fromkeys(_SCATTERS, _scatter_flops),
    "random_bits": _random_bits_flops,
    "threefry2x32": _threefry_flops,
    "triangular_solve": _triangular_solve_flops,
    "cholesky": functools.partial(_factorise_flops, share=1 / 3),
    "lu": functools.partial(_factorise_flops, share=2 / 3),
    "pallas_call": _pallas_flops,
}

_DECLARED: dict[str, FlopRule] = {}

# One buffer under another shape or name, as far as memory goes.
_ALIASES = _names("""
    reshape squeeze expand_dims transpose stop_gradient copy copy_p name sharding_constraint
    optimization_barrier
""")

# What XLA computes again for every equation that reads it, rather than to keep it, and what reads it so.
_FUSED = frozenset(_PER_OUTPUT) | _TRANSCENDENTAL | _names("broadcast_in_dim iota integer_pow squeeze reshape")
_FUSED_INTO = _FUSED | _REDUCTIONS

# Calls whose outputs are exactly those of their jaxpr.
_CALLS = _names("""
    jit pjit closed_call core_call remat remat2 checkpoint custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr
    custom_vmap_call
""")
