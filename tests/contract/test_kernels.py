"""What every public kernel promises, checked on random inputs built from its own annotations."""

import functools
import inspect
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from concordant import kernels
from concordant.core.errors import DataError
from concordant.core.seeds import Rng
from concordant.core.signature import signature_of

PAIRS = [(0, 1), (2, 0), (1, 3), (4, 6), (5, 4), (7, 9), (11, 8), (10, 7), (8, 9)]  # rows of one group each
ROWS, SIZES = 14, {"s": 7, "n": 4, "k": 3, "u": 5, "d": 6, "p": len(PAIRS)}
OPTIONS = {
    "fixed_length": {"length": 9},
    "clip_values": {"low": -0.5, "high": 0.5},
    "process_outcome_filter": {"drop": 1},
    "weighted_sum": {"weights": (1.0, 0.5, 2.0)},
    "noise_aware_weights": {"mixed": True},
    "random_pairs": {"count": 2},
    "reward_difference_loss": {"beta": 2.0, "clip": 0.5},
    "dpo_loss": {"beta": 0.5},
}
STATEFUL = {"RollingZscore": kernels.RollingZscore(buffer=3, min_count=2)}
LEFT_OUT = {
    "gaussian_step": "noise",
    "flow_sde_step": "noise",
    "ddim_gaussian_step": "noise",
}  # or `prev`, not both
EVERY_ENTRY_COUNTS = {
    "present",  # an added step without a value is a missing value there
    "present_group",
    "gaussian_step",  # the further axes are latent dimensions
    "flow_sde_step",
    "ddim_gaussian_step",
    "calibrate_noise",  # a missing gain is refused
    "reward_difference_loss",  # log-ratios are 0 outside
    "values_after",  # the last step is the last entry
}


def kernel_of(name):
    return STATEFUL.get(name, getattr(kernels, name))


def signature(name):
    return signature_of(kernel_of(name))


ALL = [
    (name, rest)
    for name in kernels.__all__
    for rest in ((), ("s",))
    if rest == () or any("*e" in spec.dims for spec in signature(name).arrays.values())
]
MIXING = [case for case in ALL if signature(case[0]).takes_valid]


def ids(case):
    return f"{case[0]}-{''.join(('b', *case[1]))}"


each = pytest.mark.parametrize("case", ALL, ids=map(ids, ALL))
each_mixing = pytest.mark.parametrize("case", MIXING, ids=map(ids, MIXING))


def axes_of(name, rest):
    found = {}
    for parameter, spec in signature(name).arrays.items():
        if parameter == LEFT_OUT.get(name):
            continue
        found[parameter] = tuple(a for dim in spec.dims for a in (rest if dim == "*e" else (dim,)))
    return found


ENDS = ("left of pairs", "right of pairs")
FRACTIONS = {
    "sigma": (0.5, 1.0),
    "sigma_next": (0.0, 0.5),
    "alpha_bar": (0.1, 0.5),
    "alpha_bar_next": (0.5, 1.0),
    "eta": (0.0, 1.0),
}


def draw(parameter, kind, shape, gen):
    if parameter in ("mask", "span", "turn"):
        length = torch.randint(0, shape[-1] + 1, shape[:1], generator=gen)
        return (
            torch.rand(shape, generator=gen) < 0.7
            if len(shape) == 1
            else torch.arange(shape[1]) < length[:, None]
        )
    if kind == "Bool":
        return torch.rand(shape, generator=gen) < 0.7
    if parameter in ENDS:
        return torch.tensor(PAIRS)[: shape[0], ENDS.index(parameter)]
    if parameter == "id":
        return torch.randperm(shape[0], generator=gen)
    if parameter == "group":
        return torch.tensor([5, 5, 5, 5, 2, 2, 2, 9, 9, 9, 9, 9, 7, -1])[: shape[0]]
    if parameter == "unit":  # inside groups, some shared
        return torch.tensor([0, 0, 1, 2, 3, 4, 4, 5, 6, 6, 7, 7, 8, 9])[: shape[0]]
    if parameter == "segment":
        return torch.randint(-1, SIZES["n"], shape, generator=gen)
    if kind == "Int":
        return torch.randint(0, 4, shape, generator=gen)
    if parameter in ("outcome", "checks"):
        return torch.randint(0, 2, shape, generator=gen).double()
    if parameter in FRACTIONS:
        low, high = FRACTIONS[parameter]
        return low + (high - low) * torch.rand(shape, generator=gen, dtype=torch.float64)
    x = torch.randn(shape, generator=gen, dtype=torch.float64)
    return x.abs() if parameter in ("weight", "std", "noise", "noise_level", "psi", "cap") else x


def build(case, seed=0, rows=ROWS):
    gen = torch.Generator().manual_seed(seed)
    axes = axes_of(*case)
    sizes = SIZES | {"b": rows, "p": SIZES["p"] if rows else 0}
    arrays = {}
    for parameter, letters in axes.items():
        shape = tuple(int(a) if a.isdigit() else sizes[a] for a in letters)
        name = f"{parameter} of pairs" if parameter in ("left", "right") and letters == ("p",) else parameter
        arrays[parameter] = draw(name, signature(case[0]).arrays[parameter].kind, shape, gen)
    return arrays


def context_of(name):
    made = {"rng": Rng(seed=3)} | ({"state": kernel_of(name).init()} if name in STATEFUL else {})
    return {parameter: made[kind] for parameter, kind in signature(name).context.items()}


def call(case, arrays, **more):
    name = case[0]
    value = kernel_of(name)(**arrays, **context_of(name), **OPTIONS.get(name, {}), **more)
    if name in STATEFUL:
        value = value[0]
    return list(value) if isinstance(value, tuple) else [value]


def makes_pairs(case):
    returns = signature(case[0]).returns
    return isinstance(returns, dict) and list(returns) == ["left", "right"]


def compared(case, arrays, names=None, **more):
    """Results that can be compared across tables; made pairs as sorted sets of row names (by default row numbers)."""
    got = call(case, arrays, **more)
    if not makes_pairs(case):
        return got
    pairs = torch.stack(got, 1)
    pairs = (pairs if names is None else names[pairs]).sort(1).values
    return [pairs[(pairs[:, 0] * ROWS + pairs[:, 1]).argsort()].double()]


def out_axes(case):
    if makes_pairs(case):
        return [("p", "2")]
    returns = signature(case[0]).returns
    specs = returns.values() if isinstance(returns, dict) else [returns]
    return [tuple(a for dim in spec.dims for a in (case[1] if dim == "*e" else (dim,))) for spec in specs]


def along(x, axes, letter, index):
    return x.index_select(axes.index(letter), index) if letter in axes else x


def rows_of(case, arrays, index):
    """Some rows in another order, and the pairs among them."""
    axes = axes_of(*case)
    place = torch.full((ROWS,), -1)
    place[index] = torch.arange(len(index))
    arrays = {p: place[x] if p in ("left", "right") and axes[p] == ("p",) else x for p, x in arrays.items()}
    inside = torch.arange(SIZES["p"])
    if axes.get("left") == ("p",):
        inside = ((arrays["left"] >= 0) & (arrays["right"] >= 0)).nonzero().squeeze(1)
    return {p: along(along(x, axes[p], "b", index), axes[p], "p", inside) for p, x in arrays.items()}


def same(got, want):
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-9, atol=1e-12)


@each
def test_permuting_rows_permutes_results(case):
    arrays = build(case)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    got = compared(case, rows_of(case, arrays, order), order)
    want = [along(y, a, "b", order) for y, a in zip(compared(case, arrays), out_axes(case), strict=True)]
    same(got, want)


@each_mixing
def test_renaming_groups_changes_nothing(case):
    arrays = build(case)
    names = torch.randint(0, 1 << 62, (20,), generator=torch.Generator().manual_seed(2))
    renamed = {p: torch.where(x < 0, x, names[x]) if p in ("group", "unit") else x for p, x in arrays.items()}
    same(compared(case, renamed), compared(case, arrays))


PADDED = [
    (case, letter)
    for case in ALL
    for letter in "snu"
    if case[0] not in EVERY_ENTRY_COUNTS and any(letter in a for a in axes_of(*case).values())
]


@pytest.mark.parametrize(("case", "letter"), PADDED, ids=[f"{ids(case)}-{letter}" for case, letter in PADDED])
def test_padding_changes_nothing(case, letter):
    axes, padded = axes_of(*case), {}
    for p, x in (arrays := build(case)).items():
        pad = [n for a in reversed(axes[p]) for n in ((0, 3) if a == letter else (0, 0))]
        fill = float("nan") if x.is_floating_point() else False if x.dtype == torch.bool else -1
        padded[p] = torch.nn.functional.pad(x, pad, value=fill)
    wider = call(case, padded)
    keep = torch.arange(SIZES[letter])
    same([along(y, a, letter, keep) for y, a in zip(wider, out_axes(case), strict=True)], call(case, arrays))
    if "mask" in arrays or "segment" in arrays:
        for y, a in zip(wider, out_axes(case), strict=True):
            assert letter not in a or bool((y[..., SIZES[letter] :] == 0).all())


def with_missing_rows(case, arrays, gone):
    """The `valid` that the binder would give when these rows are not kept."""
    first, axes = next(iter(arrays)), axes_of(*case)
    if "p" in axes[first]:
        valid = ~gone[arrays["left"]] & ~gone[arrays["right"]]
    else:
        shape = [ROWS if a == "b" else 1 for a in axes[first]]
        valid = (~gone).reshape(shape).expand(arrays[first].shape).clone()
    given = dict(arrays)
    if "keep" in given:
        given["keep"] = given["keep"] & ~gone
    return given, valid


@each_mixing
def test_an_invalid_row_equals_a_row_left_out(case):
    arrays = build(case)
    gone = torch.zeros(ROWS, dtype=torch.bool)
    gone[[1, 6, 12]] = True
    given, valid = with_missing_rows(case, arrays, gone)
    whole = compared(case, given, valid=valid)
    kept = (~gone).nonzero().squeeze(1)
    same(
        [along(y, a, "b", kept) for y, a in zip(whole, out_axes(case), strict=True)],
        compared(case, rows_of(case, arrays, kept), kept),
    )
    for y, a in zip(whole, out_axes(case), strict=True):
        if "b" not in a:
            continue
        lost = y[gone]
        outside = ~given["mask"][gone] if "mask" in given else torch.zeros_like(lost, dtype=torch.bool)
        missing = (
            lost.isnan() if lost.is_floating_point() else ~lost if lost.dtype == torch.bool else lost == -1
        )
        assert bool((missing | (outside & (lost == 0))).all())


FLOAT_FIRST = [case for case in MIXING if next(iter(signature(case[0]).arrays.values())).kind == "Float"]


@pytest.mark.parametrize("case", FLOAT_FIRST, ids=map(ids, FLOAT_FIRST))
def test_nan_is_read_as_not_valid(case):
    arrays = build(case)
    first = next(iter(arrays))
    hole = torch.rand(arrays[first].shape, generator=torch.Generator().manual_seed(4)) < 0.2
    by_nan = compared(case, {**arrays, first: arrays[first].masked_fill(hole, torch.nan)})
    same(by_nan, compared(case, {**arrays, first: arrays[first].masked_fill(hole, 0.0)}, valid=~hole))


@each
def test_inputs_are_untouched_and_results_repeat(case):
    arrays = build(case)
    before = {p: x.clone() for p, x in arrays.items()}
    first, second = call(case, arrays), call(case, arrays)
    for p, x in arrays.items():
        assert torch.equal(x, before[p]), p
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))


@each
def test_float32_gives_float32_and_agrees_with_float64(case):
    arrays = build(case)
    halved = {p: x.float() if x.is_floating_point() else x for p, x in arrays.items()}
    widened = {p: x.double() if x.is_floating_point() else x for p, x in halved.items()}
    has_floats = any(x.is_floating_point() for x in arrays.values())
    for a, b in zip(call(case, halved), call(case, widened), strict=True):
        if a.is_floating_point():
            assert a.dtype == torch.float32 and (b.dtype == torch.float64 or not has_floats)
            torch.testing.assert_close(a, b.float(), equal_nan=True, rtol=2e-5, atol=2e-6)
        else:
            assert torch.equal(a, b)


class CountOperations(TorchDispatchMode):
    """Counts tensor operations and the largest tensor they make."""

    def __init__(self):
        super().__init__()
        self.calls = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        made = func(*args, **(kwargs or {}))
        self.largest = max(
            [self.largest, *(x.numel() for x in tree_leaves(made) if isinstance(x, torch.Tensor))]
        )
        return made


def repeated(parameter, x, axes, copies, makes_pairs):
    """The table so many times over: pairs stay inside their copy, and so do groups where pairs are made of them."""
    if not {"b", "p"} & set(axes):
        return x
    if parameter in ("left", "right") and axes == ("p",):
        return torch.cat([x + ROWS * i for i in range(copies)])
    if parameter == "group" and makes_pairs:
        return torch.cat([torch.where(x >= 0, x + 10 * i, x) for i in range(copies)])
    return torch.cat([x] * copies, axes.index("b" if "b" in axes else "p"))


@each
def test_work_grows_with_the_rows_and_the_number_of_operations_does_not(case):
    arrays, axes = build(case), axes_of(*case)
    counts = []
    for copies in (4, 40):
        big = {p: repeated(p, x, axes[p], copies, makes_pairs(case)) for p, x in arrays.items()}
        with CountOperations() as counter:
            call(case, big)
        counts.append((counter.calls, counter.largest))
    (few, small), (many, large) = counts
    assert many == few, "a loop over rows, groups or steps"
    assert large <= 11 * small, "memory that grows faster than the rows"


@each
def test_an_empty_batch_gives_an_empty_result(case):
    if case[0] == "calibrate_noise":  # levels of steps: there is something to say, and nothing to say it from
        with pytest.raises(DataError, match="no trajectory"):
            call(case, build(case, rows=0))
        return
    for y, a in zip(compared(case, build(case, rows=0)), out_axes(case), strict=True):
        assert not {"b", "p"} & set(a) or y.shape[a.index("b" if "b" in a else "p")] == 0


def unchecked(name):
    """The kernel without the annotation check, which users do not run."""
    if name in STATEFUL:
        return functools.partial(inspect.unwrap(type(STATEFUL[name]).__call__), STATEFUL[name])
    return inspect.unwrap(getattr(kernels, name))


@each
def test_bad_shapes_are_refused_in_words(case):
    name = case[0]
    arrays, axes = build(case), axes_of(*case)
    first, given = next(iter(arrays)), {**context_of(name), **OPTIONS.get(name, {})}
    for parameter, x in arrays.items():
        others = {a for p in arrays if p != parameter for a in axes[p]}
        letter = next((a for a in ("b", "p", "s") if a in axes[parameter] and a in others), None)
        if letter is None or parameter == first:
            continue
        dim, size = axes[parameter].index(letter), x.shape[axes[parameter].index(letter)]
        with pytest.raises(DataError, match=rf"{name}: .*{size}.*; "):
            unchecked(name)(**{**arrays, parameter: x.narrow(dim, 0, size - 1)}, **given)
    if "*e" not in signature(name).arrays[first].dims:
        with pytest.raises(DataError, match=rf"{name}: "):
            unchecked(name)(**{**arrays, first: arrays[first][..., None]}, **given)


@each_mixing
def test_statistics_carry_no_graph(case):
    arrays = {p: x.requires_grad_() if x.is_floating_point() else x for p, x in build(case).items()}
    assert not any(y.requires_grad for y in call(case, arrays))


@pytest.mark.parametrize("name", kernels.__all__)
def test_kernel_is_documented_named_and_picklable(name):
    kernel = getattr(kernels, name)
    assert pickle.loads(pickle.dumps(kernel)) is kernel
    doc, position = inspect.getdoc(kernel), 0
    for part in ("Formula:", "Args:", "Returns:", "Degenerate cases:", "Differences:", "Source:", ">>> "):
        found = doc.find(part, position)
        assert found > 0, f"{name}: docstring lacks {part!r} in its place"
        position = found
    arrays, seen_option = signature(name).arrays, False
    parameters = [*inspect.signature(kernel).parameters.values()]
    if name in STATEFUL:
        parameters = [*inspect.signature(STATEFUL[name]).parameters.values(), *parameters]
    for parameter in parameters:
        assert parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        is_array = parameter.name in arrays or parameter.name in ("valid", "rng", "state")
        assert not (is_array and seen_option), f"{name}: arrays come first"
        seen_option |= not is_array
        assert is_array or parameter.kind == parameter.KEYWORD_ONLY, (
            f"{name}: option {parameter.name} must be named"
        )
        assert f"    {parameter.name}: " in doc, f"{name}: {parameter.name} is not documented"


def test_every_public_function_of_the_package_is_listed():
    assert sorted(kernels.__all__) == kernels.__all__
    assert len(set(kernels.__all__)) == len(kernels.__all__)
