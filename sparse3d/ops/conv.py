"""Sparse convolution over a kernel map, with gradients.

    y[o] = bias + sum over k of x[table[k, o]] @ weight[k]       (no input: no term)

Down, up and submanifold convolutions are this one function with another table. The gradient by x
is the same convolution with the reversed table and transposed weights.

On processors with AMX wide layers of float32 run on its bfloat16 tiles, each number as the sum of
three: as exactly as with fused multiply-adds, but numbers below 1e-30 lose digits and infinite
ones give NaN. $SPARSE3D_ISA=avx512 turns that off.
"""

import torch
from torch import Tensor

from . import backend, native, spconv_adapter
from .arguments import check_floats, check_shape
from .kernel_map import check_table, refuse_rows
from .pairs import LEVELS, PairLists, cpu_level, pair_lists, tile_lists
from .reference import conv as reference

NO_FINISH = (None, None, None, 0)
AMX = 2  # as s3d_conv_bf16_available says


def sparse_conv(
    features: Tensor,
    weight: Tensor,
    table: Tensor,
    reverse: Tensor | None,
    bias: Tensor | None = None,
    groups: int = 1,
) -> Tensor:
    """Convolves rows of features over a kernel map.

    Half precision is summed in float32. Under autocast operands are rounded to its dtype, and
    weights to bfloat16 where the features are. To go up the triples of a map that leads down, swap
    ``table`` and ``reverse``.

    Args:
        features: [N, Cin] float.
        weight: [K, Cin / groups, Cout], offsets with x fastest.
        table: [K, M] int32, the input row for each offset and output row, -1 where none.
        reverse: [K, N] int32, the output row for each offset and input row; None when no gradient
            is needed.
        bias: [Cout].
        groups: channel groups that do not mix; must divide Cin and Cout.

    Returns:
        [M, Cout] in the dtype of ``features``, or of autocast.

    Raises:
        ValueError: shapes or dtypes that do not fit each other.
    """
    _check(features, weight, table, reverse, groups)
    check_shape("bias", bias, weight.shape[2:])
    dtype, result = _dtypes(features, weight)
    if bias is not None:
        bias = bias.to(torch.float32 if dtype == torch.bfloat16 else dtype)
    out = _sparse_conv(features.to(dtype), weight.to(dtype), bias, table, reverse, groups)
    return out.to(result)


def _dtypes(features: Tensor, weight: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """What the operands are converted to, and the result."""
    kind, dtype = features.device.type, features.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    if dtype == torch.bfloat16:
        return dtype, dtype
    common = torch.promote_types(features.dtype, weight.dtype)
    return (torch.float32 if common.itemsize < 4 else common), dtype


@torch.library.custom_op("sparse3d::sparse_conv", mutates_args=())
def _sparse_conv(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    table: Tensor,
    reverse: Tensor | None,
    groups: int,
    transposed: bool = False,
) -> Tensor:
    """``transposed``: the weight is [K, Cout / groups, Cin], that of the other direction."""
    forward = backend.choose(SPARSE_CONV, features)
    given = (features.contiguous(), weight.contiguous(), bias, table, groups)
    with torch.autocast(features.device.type, enabled=False):
        return forward(*given, reverse, transposed)


@_sparse_conv.register_fake
def _(features, weight, bias, table, reverse, groups, transposed=False):
    channels = weight.shape[1] * groups if transposed else weight.shape[2]
    return features.new_empty(table.shape[1], channels)


@torch.library.custom_op("sparse3d::sparse_conv_weight_grad", mutates_args=())
def _weight_grad(
    features: Tensor, grad: Tensor, table: Tensor, reverse: Tensor, groups: int
) -> Tensor:
    kernel = backend.choose(WEIGHT_GRAD, features)
    with torch.autocast(features.device.type, enabled=False):
        return kernel(features.contiguous(), grad.contiguous(), table, groups, reverse)


@_weight_grad.register_fake
def _(features, grad, table, reverse, groups):
    return features.new_empty(len(table), features.shape[1] // groups, grad.shape[1])


def _setup(ctx, inputs, output):
    features, weight, bias, table, reverse, ctx.groups, ctx.transposed = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(features, weight, table, reverse)


def _backward(ctx, grad):
    features, weight, table, reverse = ctx.saved_tensors
    if reverse is None:
        raise ValueError(
            "sparse_conv was called with reverse=None; its gradient needs the reverse table"
        )
    d_features = d_weight = d_bias = None
    if ctx.needs_input_grad[0]:
        flipped = not ctx.transposed
        d_features = _sparse_conv(grad, weight, None, reverse, table, ctx.groups, flipped)
    if ctx.needs_input_grad[1] and ctx.transposed:
        d_weight = _weight_grad(grad, features, reverse, table, ctx.groups)
    elif ctx.needs_input_grad[1]:
        d_weight = _weight_grad(features, grad, table, reverse, ctx.groups)
    if ctx.has_bias and ctx.needs_input_grad[2]:
        # the weight of an input that is one everywhere: summed in the same fixed order
        rows = torch.arange(len(grad), dtype=torch.int32, device=grad.device)[None]
        exact = grad.float() if grad.dtype == torch.bfloat16 else grad
        d_bias = _weight_grad(exact.new_ones(len(grad), 1), exact, rows, rows, 1)[0, 0]
    return d_features, d_weight, d_bias, None, None, None, None


def _setup_weight_grad(ctx, inputs, output):
    *tensors, ctx.groups = inputs
    ctx.save_for_backward(*tensors)


def _backward_weight_grad(ctx, cotangent):
    features, grad, table, reverse = ctx.saved_tensors
    d_features = d_grad = None
    if ctx.needs_input_grad[0]:
        d_features = _sparse_conv(grad, cotangent, None, reverse, table, ctx.groups, True)
    if ctx.needs_input_grad[1]:
        d_grad = _sparse_conv(features, cotangent, None, table, reverse, ctx.groups)
    return d_features, d_grad, None, None, None


_sparse_conv.register_autograd(_backward, setup_context=_setup)
_weight_grad.register_autograd(_backward_weight_grad, setup_context=_setup_weight_grad)


def sparse_conv_norm(
    features: Tensor,
    weight: Tensor,
    table: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    relu: bool = False,
    groups: int = 1,
) -> Tensor:
    """A convolution and what follows it in inference, in one pass: no gradient.

    Args:
        features, weight, table, groups: as in ``sparse_conv``.
        scale: [Cout] float, with ``shift`` a batch norm by running statistics.
        shift: [Cout] float.
        residual: [M, Cout] float, added after that.
        relu: whether negative results become 0 in the end.

    Returns:
        [M, Cout] in the dtype of ``sparse_conv``.

    Raises:
        ValueError: shapes or dtypes that do not fit each other.
    """
    _check(features, weight, table, None, groups)
    ending = {"scale": scale, "shift": shift, "residual": residual}
    for name, value in ending.items():
        if value is not None:
            check_floats(name, value)
            rows = table.shape[1:] if name == "residual" else ()
            check_shape(name, value, (*rows, weight.shape[2]))
    dtype, result = _dtypes(features, weight)
    residual = None if residual is None else residual.to(dtype)
    given = (features.to(dtype), weight.to(dtype), table, scale, shift, residual, relu, groups)
    return _sparse_conv_norm(*given).to(result)


@torch.library.custom_op("sparse3d::sparse_conv_norm", mutates_args=())
def _sparse_conv_norm(
    features: Tensor,
    weight: Tensor,
    table: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    relu: bool,
    groups: int,
) -> Tensor:
    forward = backend.choose(SPARSE_CONV_NORM, features)
    residual = None if residual is None else residual.contiguous()
    given = (features.contiguous(), weight.contiguous(), table, scale.contiguous())
    with torch.autocast(features.device.type, enabled=False):
        return forward(*given, shift.contiguous(), residual, relu, groups)


@_sparse_conv_norm.register_fake
def _(features, weight, table, scale, shift, residual, relu, groups):
    return features.new_empty(table.shape[1], weight.shape[2])


def _transpose(weight: Tensor, groups: int) -> Tensor:
    """[K, Cin / groups, Cout] -> [K, Cout / groups, Cin], group by group."""
    offsets, inputs, outputs = weight.shape
    parts = weight.reshape(offsets, inputs, groups, outputs // groups)
    return parts.permute(0, 3, 2, 1).reshape(offsets, outputs // groups, groups * inputs)


def _check(features, weight, table, reverse, groups) -> None:
    check_table("table", table)
    if reverse is not None:
        check_table("reverse", reverse)
    if weight.dim() != 3 or len(weight) != len(table):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and table {tuple(table.shape)}; they must be "
            "[K, Cin / groups, Cout] and [K, M] with the same K"
        )
    check_floats("features", features)
    check_floats("weight", weight)
    if features.dim() != 2 or groups < 1:
        raise ValueError(
            f"features have shape {tuple(features.shape)} and groups is {groups}; [N, Cin] and 1 "
            "or more are needed"
        )
    if features.shape[1] != weight.shape[1] * groups or weight.shape[2] % groups:
        raise ValueError(
            f"features have {features.shape[1]} channels and weight is {tuple(weight.shape)}; with "
            f"groups={groups}, Cin must be {weight.shape[1] * groups} and {groups} divide Cout"
        )
    if reverse is not None and reverse.shape != (len(table), len(features)):
        raise ValueError(
            f"reverse has shape {tuple(reverse.shape)}; it must be {(len(table), len(features))}: "
            "one row per offset, one column per row of features"
        )


# ---------------------------------------------------------------------- implementations


def _reference_conv(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    table: Tensor,
    groups: int,
    reverse: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    weight = _transpose(weight, groups) if transposed else weight
    if table.numel() and not table.is_cuda:  # torch checks rows there
        refuse_rows(int(table.max()) >= len(features), table, len(features))
    if features.dtype == torch.bfloat16:
        exact = reference.sparse_conv(features.float(), weight.float(), bias, table, groups)
        return exact.bfloat16()
    return reference.sparse_conv(features, weight, bias, table, groups)


def _reference_weight_grad(
    features: Tensor, grad: Tensor, table: Tensor, groups: int, reverse: Tensor | None = None
) -> Tensor:
    if features.dtype == torch.bfloat16:
        return reference.weight_grad(features.float(), grad.float(), table, groups).bfloat16()
    return reference.weight_grad(features, grad, table, groups)


def _native_conv(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    table: Tensor,
    groups: int,
    reverse: Tensor | None = None,
    transposed: bool = False,
    finish: tuple = NO_FINISH,
) -> Tensor:
    """``finish``: scale, shift, residual and whether there is a ReLU; see ``sparse_conv_norm``."""
    if features.dtype == torch.bfloat16:
        return _bf16_conv(features, weight, bias, table, groups, reverse, transposed, finish)
    if features.dtype != torch.float32:
        return _reference_conv(features, weight, bias, table, groups, reverse, transposed)
    pairs = _pairs(table, reverse, features)
    bias = None if bias is None else bias.contiguous()
    inputs = features.shape[1] // groups
    outputs = weight.shape[1] if transposed else weight.shape[2] // groups
    out = native.empty(table.shape[1], outputs * groups)
    sizes = (table.shape[1], len(table), groups, inputs, outputs)
    given = (features, weight, int(transposed), bias, *finish, *pairs.arguments(), *sizes)
    native.call("s3d_sparse_conv", *given, out, cpu_level(), native.threads())
    return out


def _reference_conv_norm(
    features: Tensor,
    weight: Tensor,
    table: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    relu: bool,
    groups: int,
) -> Tensor:
    if features.dtype == torch.bfloat16:
        residual = None if residual is None else residual.float()
        exact = (features.float(), weight.float(), table, scale, shift, residual, relu, groups)
        return _reference_conv_norm(*exact).bfloat16()
    convolved = backend.choose(SPARSE_CONV, features)(features, weight, None, table, groups)
    out = convolved * scale.to(features) + shift.to(features)
    out = out if residual is None else out + residual
    return out.relu() if relu else out


def _native_conv_norm(
    features: Tensor,
    weight: Tensor,
    table: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    relu: bool,
    groups: int,
) -> Tensor:
    if features.dtype not in (torch.float32, torch.bfloat16):
        given = (features, weight, table, scale, shift, residual, relu, groups)
        return _reference_conv_norm(*given)
    finish = (scale.float(), shift.float(), residual, int(relu))
    return _native_conv(features, weight, None, table, groups, finish=finish)


def _native_weight_grad(
    features: Tensor, grad: Tensor, table: Tensor, groups: int, reverse: Tensor | None = None
) -> Tensor:
    if features.dtype == torch.bfloat16:
        return _bf16_weight_grad(features, grad, table, groups, reverse)
    if features.dtype != torch.float32:
        return reference.weight_grad(features, grad, table, groups)
    pairs = _pairs(table, reverse, features)
    inputs, outputs = features.shape[1] // groups, grad.shape[1]
    result = features.new_empty(len(table), inputs, outputs)
    sizes = (table.shape[1], len(table), groups, inputs, outputs // groups)
    given = (features, grad, *pairs.arguments(), *sizes, result)
    native.call("s3d_sparse_conv_weight_grad", *given, cpu_level(), native.threads())
    return result


def _bf16_conv(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    table: Tensor,
    groups: int,
    reverse: Tensor | None,
    transposed: bool,
    finish: tuple,
) -> Tensor:
    scale, shift, residual, relu = finish
    level = _bf16_level()
    if groups > 1 or not level:
        finish = (scale, shift, None if residual is None else residual.float(), relu)
        exact = (features.float(), weight.float(), bias, table, groups, reverse, transposed)
        return _native_conv(*exact, finish).bfloat16()
    name, lists = "s3d_sparse_conv_bf16", pair_lists
    if level == AMX:
        name, lists = "s3d_sparse_conv_bf16_tiles", tile_lists
    found = lists(table, reverse)
    refuse_rows(found.highest >= len(features), table, len(features))
    shift = shift if bias is None else bias.contiguous()  # never both
    inputs, outputs = features.shape[1], weight.shape[1 if transposed else 2]
    out = native.empty(table.shape[1], outputs, dtype=torch.bfloat16)
    sizes = (table.shape[1], len(table), inputs, outputs)
    ending = (scale, shift, residual, relu)
    given = (features, weight, int(transposed), *ending, *found.arguments(), *sizes)
    native.call(name, *given, out, native.threads())
    return out


def _bf16_weight_grad(
    features: Tensor, grad: Tensor, table: Tensor, groups: int, reverse: Tensor | None
) -> Tensor:
    level = _bf16_level()
    if groups > 1 or not level:
        exact = (features.float(), grad.float(), table, groups, reverse)
        return _native_weight_grad(*exact).bfloat16()
    pairs = _pairs(table, reverse, features)
    inputs, outputs = features.shape[1], grad.shape[1]
    result = torch.empty(len(table), inputs, outputs)
    sizes = (table.shape[1], len(table), inputs, outputs)
    given = (features, grad, *pairs.arguments(), *sizes, result, int(level == AMX))
    native.call("s3d_sparse_conv_weight_grad_bf16", *given, native.threads())
    return result.bfloat16()


def _bf16_level() -> int:
    """The kernels for bfloat16: AMX, 1 for AVX512-BF16, 0 for those of float32."""
    level = cpu_level()
    if level and LEVELS[level] != "avx512":
        return 0
    found = native.call("s3d_conv_bf16_available")
    return min(found, 1) if level else found


def _pairs(table: Tensor, reverse: Tensor | None, features: Tensor) -> PairLists:
    pairs = pair_lists(table, reverse)
    refuse_rows(pairs.highest >= len(features), table, len(features))
    return pairs


def _spconv_conv(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    table: Tensor,
    groups: int,
    reverse: Tensor | None = None,
    transposed: bool = False,
) -> Tensor:
    """spconv, fed with the pairs of our table; runs on any device that spconv runs on."""
    if features.dtype == torch.bfloat16:  # spconv has none
        exact = (features.float(), weight.float(), bias, table, groups, reverse, transposed)
        return _spconv_conv(*exact).bfloat16()
    weight = _transpose(weight, groups) if transposed else weight
    result = spconv_adapter.convolve(features, weight, table, groups)
    if result is None:
        return reference.sparse_conv(features, weight, bias, table, groups)
    return result if bias is None else result + bias


def _paired_weight_grad(
    features: Tensor, grad: Tensor, table: Tensor, groups: int, reverse: Tensor | None = None
) -> Tensor:
    return spconv_adapter.weight_grad(features, grad, table, groups)


SPARSE_CONV = {
    "reference": _reference_conv,
    "native": _native_conv,
    "cuda": _spconv_conv,
}
SPARSE_CONV_NORM = {
    "reference": _reference_conv_norm,
    "native": _native_conv_norm,
    "cuda": _reference_conv_norm,
}
WEIGHT_GRAD = {
    "reference": _reference_weight_grad,
    "native": _native_weight_grad,
    "cuda": _paired_weight_grad,
}
