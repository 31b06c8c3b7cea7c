"""Multi-head attention inside disjoint sets of rows."""

import torch
from torch import Tensor

from . import backend, native
from .arguments import check_floats
from .reference import set_attention as reference

_MOST_PER_HEAD = 128  # of the kernel


def set_attention(
    qkv: Tensor,
    position: Tensor,
    position_index: Tensor,
    order: Tensor,
    offsets: Tensor,
    heads: int,
) -> Tensor:
    """softmax(q k^T / sqrt(C / heads)) v, where a row sees the rows of its own set; differentiable.

    Args:
        qkv: [N, 3 C] float, projected queries, keys and values; each head's channels are adjacent.
        position: [U, 2 C] float, what is added to queries and keys, one row per distinct position.
        position_index: [N] int64, the position of each row.
        order: [N] int64 rows, set by set; every row once.
        offsets: [S+1] int64, set s is order[offsets[s]:offsets[s+1]]; sets are not empty.
        heads: number of heads; divides C.

    Returns:
        [N, C] in the dtype of ``qkv``.

    Raises:
        ValueError: sizes or types that do not fit; an index that is no row or no position; an
            ``order`` that leaves a row out; ``offsets`` that do not ascend from 0 to N. The values
            of indices are not looked at on CUDA, nor in compiled programs of the torch definition.
    """
    if qkv.dim() != 2 or position.dim() != 2 or heads < 1:
        raise ValueError(
            f"qkv has shape {tuple(qkv.shape)}, position {tuple(position.shape)} and heads is "
            f"{heads}; [N, 3 C], [U, 2 C] and 1 or more are needed"
        )
    channels = qkv.shape[1] // 3
    if qkv.shape[1] % 3 or channels % heads or position.shape[1] != 2 * channels:
        raise ValueError(
            f"qkv has {qkv.shape[1]} columns and position {position.shape[1]}: 3 C and 2 C are "
            f"needed with C a multiple of heads = {heads}"
        )
    check_floats("qkv", qkv)
    check_floats("position", position)
    run = backend.choose(_TABLE, qkv)
    return run(qkv, position, position_index, order, offsets, heads)


def _check_sets(
    rows: int, positions: int, position_index: Tensor, order: Tensor, offsets: Tensor
) -> None:
    native.check_index("position_index", position_index, rows, positions)
    native.check_index("order", order, rows, rows)
    native.check_index("offsets", offsets, len(offsets), rows + 1)
    # a row that no set holds is written by nobody
    times = order.bincount(minlength=rows)
    if rows and int(times.amin()) != 1:
        absent = int((times == 0).nonzero()[0])
        raise ValueError(f"order must hold every row once; row {absent} is not in it")
    ends = offsets[[0, -1]].tolist() if len(offsets) else []
    if ends != [0, rows] or bool((offsets.diff() < 0).any()):
        raise ValueError(
            f"offsets must ascend from 0 to {rows}, the number of rows; it is {offsets}"
        )


def _reference(qkv, position, position_index, order, offsets, heads):
    if not torch.compiler.is_compiling():
        _check_sets(len(qkv), len(position), position_index, order, offsets)
    return _plain(qkv, position, position_index, order, offsets, heads)


def _plain(qkv, position, *sets):
    return reference.set_attention(qkv, position.to(qkv.dtype), *sets)


def _native(qkv, position, position_index, order, offsets, heads):
    if qkv.dtype == torch.bfloat16:  # twice as fast as torch's attention in bfloat16
        return _native(qkv.float(), position, position_index, order, offsets, heads).bfloat16()
    if qkv.dtype == torch.float64 or qkv.shape[1] // 3 // heads > _MOST_PER_HEAD:
        return _reference(qkv, position, position_index, order, offsets, heads)
    index = (position_index, order, offsets)
    return _attention(qkv.float(), position.float(), *index, heads)[0].to(qkv.dtype)


@torch.library.custom_op("sparse3d::set_attention", mutates_args=())
def _attention(
    qkv: Tensor,
    position: Tensor,
    position_index: Tensor,
    order: Tensor,
    offsets: Tensor,
    heads: int,
) -> tuple[Tensor, Tensor]:
    rows, channels = len(qkv), qkv.shape[1] // 3
    _check_sets(rows, len(position), position_index, order, offsets)
    out, norms = qkv.new_empty(rows, channels), qkv.new_empty(rows, 2, heads)
    index = (position_index.contiguous(), order.contiguous(), offsets.contiguous())
    sizes = (len(offsets) - 1, channels, heads)
    native.call(
        "s3d_set_attention",
        *(qkv.contiguous(), position.contiguous(), *index, *sizes, out, norms, native.threads()),
    )
    return out, norms


@_attention.register_fake
def _(qkv, position, position_index, order, offsets, heads):
    rows, channels = qkv.shape[0], qkv.shape[1] // 3
    return qkv.new_empty(rows, channels), qkv.new_empty(rows, 2, heads)


@torch.library.custom_op("sparse3d::set_attention_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    qkv: Tensor,
    position: Tensor,
    position_index: Tensor,
    order: Tensor,
    offsets: Tensor,
    norms: Tensor,
) -> tuple[Tensor, Tensor]:
    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    index = (position_index.contiguous(), order.contiguous(), offsets.contiguous())
    sizes = (len(offsets) - 1, qkv.shape[1] // 3, norms.shape[2])
    given = (grad.contiguous(), qkv.contiguous(), position.contiguous())
    native.call(
        "s3d_set_attention_backward", *given, *index, norms, *sizes, grad_qkv, native.threads()
    )
    grad_position = torch.empty_like(position, memory_format=torch.contiguous_format)
    counts = order.new_empty(len(position))
    sizes = (qkv.shape[1], index[0], len(qkv), position.shape[1], len(position))
    native.call("s3d_segment_sum", grad_qkv, *sizes, 0, grad_position, counts, native.threads())
    return grad_qkv, grad_position


@_attention_backward.register_fake
def _(grad, qkv, position, position_index, order, offsets, norms):
    return torch.empty_like(qkv), torch.empty_like(position)


def _setup(ctx, inputs, output):
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:-1], output[1])


def _gradient(ctx, grad, _):
    grads = _attention_backward(grad, *ctx.saved_tensors)
    return *grads, None, None, None, None


_attention.register_autograd(_gradient, setup_context=_setup)

_TABLE = {
    "reference": _reference,
    "native": _native,
    "cuda": _plain,  # torch checks indices there, and looking at them waits for the GPU
}
