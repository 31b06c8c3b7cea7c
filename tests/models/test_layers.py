import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparse3d.models.layers import (
    GlobalPool,
    InverseConv,
    StridedConv,
    SubMConv,
    TransposedConv,
    VoxelBatchNorm,
    VoxelInstanceNorm,
    VoxelPool,
    VoxelSequential,
    VoxelUnpool,
    conv_norm,
    voxel_relu,
)
from sparse3d.ops import backend
from sparse3d.structures import SparseVoxels, VoxelGrid
from tests.voxel_cases import IMPLEMENTATIONS, dense_weight, random_coords, sorted_coords

each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
SHAPE = (9, 8, 7)
UNBOUNDED = VoxelGrid((1.0,) * 3, (0.0,) * 3)
BOUNDED = VoxelGrid((1.0,) * 3, (0.0,) * 3, SHAPE)


def voxels(channels=4, grid=BOUNDED, seed=0, coords=None, batch=2) -> SparseVoxels:
    coords = random_coords(SHAPE, share=0.2, seed=seed) if coords is None else coords
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(coords), channels, generator=generator)
    return SparseVoxels.from_coords(coords, features, grid, batch)[0]


@each
@pytest.mark.parametrize(
    "size,stride,padding", [(3, 2, 1), (2, 2, 0), ((3, 1, 1), (2, 1, 1), 0), (3, 1, 1)]
)
def test_strided_conv_is_the_dense_convolution_in_shape_stride_and_values(
    size, stride, padding, implementation
):
    x = voxels()
    layer = StridedConv(4, 6, size, stride, padding, bias=True)
    with backend.forced(implementation):
        y = layer(x)
    weight = dense_weight(layer.weight, layer.kernel_size)
    dense = F.conv3d(x.dense(), weight, layer.bias, layer.stride[::-1], padding)
    assert y.shape == tuple(dense.shape[:1:-1]) and y.stride == layer.stride
    occupied = y.replace(torch.ones(len(y), 1)).dense()
    torch.testing.assert_close(y.dense(), dense * occupied, rtol=1e-5, atol=1e-5)


@each
def test_submanifold_keeps_cells_and_shares_one_map(implementation):
    x = voxels()
    net = VoxelSequential(SubMConv(4, 8), nn.ReLU(), SubMConv(8, 5, bias=True))
    with backend.forced(implementation):
        y = net(x)
    dense = F.conv3d(x.dense(), dense_weight(net[0].weight, (3, 3, 3)), None, 1, 1)
    dense = dense.relu() * x.replace(torch.ones(len(x), 1)).dense()
    dense = F.conv3d(dense, dense_weight(net[2].weight, (3, 3, 3)), net[2].bias, 1, 1)
    assert y.coords is x.coords and y.cache is x.cache
    expected = dense * x.replace(torch.ones(len(x), 1)).dense()
    torch.testing.assert_close(y.dense(), expected, rtol=1e-5, atol=1e-5)


def test_even_submanifold_kernels_are_refused():
    with pytest.raises(ValueError, match="needs odd sizes"):
        SubMConv(4, 4, 2)


@each
def test_inverse_conv_returns_to_the_cells_that_it_came_from(implementation):
    """Against the dense transposed convolution of the coarse array, read at the fine cells."""
    x = voxels()
    down, up = StridedConv(4, 6, 3, 2, 1), InverseConv(6, 5, 3, 2, 1, bias=True)
    with backend.forced(implementation):
        y = down(x)
        z = up(y, like=x)
    weight = dense_weight(up.weight, (3, 3, 3)).transpose(0, 1)
    extra = [(g - 1) % 2 for g in SHAPE[::-1]]  # what the floor of the way down cut off
    dense = F.conv_transpose3d(y.dense(), weight, up.bias, 2, 1, extra)
    occupied = x.replace(torch.ones(len(x), 1)).dense()
    assert z.coords is x.coords and z.stride == x.stride and z.shape == x.shape
    torch.testing.assert_close(z.dense(), dense * occupied, rtol=1e-5, atol=1e-5)


def test_inverse_conv_takes_pruned_coarse_cells():
    x = voxels()
    down, up = StridedConv(4, 6, 3, 2, 1), InverseConv(6, 5, 3, 2, 1)
    y = down(x)
    keep = torch.arange(len(y)) % 3 > 0
    pruned = up(y.prune(keep), like=x)
    zeroed = up(y.replace(y.features * keep[:, None]), like=x)
    torch.testing.assert_close(pruned.features, zeroed.features)


def test_inverse_conv_refuses_voxels_of_other_strides():
    x = voxels()
    with pytest.raises(ValueError, match="does not join them"):
        InverseConv(4, 4, 3, 2, 1)(x, like=x)


@each
def test_transposed_conv_is_the_dense_transposed_convolution(implementation):
    coarse = StridedConv(4, 6, 3, 2, 1)(voxels())
    layer = TransposedConv(6, 5, 3, 2, 1, bias=True)
    with backend.forced(implementation):
        y = layer(coarse)
    weight = dense_weight(layer.weight, (3, 3, 3)).transpose(0, 1)
    dense = F.conv_transpose3d(coarse.dense(), weight, layer.bias, 2, 1)
    assert y.shape == tuple(dense.shape[:1:-1]) and y.stride == (1, 1, 1)
    occupied = y.replace(torch.ones(len(y), 1)).dense()
    torch.testing.assert_close(y.dense(), dense * occupied, rtol=1e-5, atol=1e-5)


def test_transposed_conv_refuses_to_go_below_base_cells():
    with pytest.raises(ValueError, match="no finer cells"):
        TransposedConv(4, 4, 2, 2)(voxels())


@each
def test_minkowski_u_net_on_negative_cells(implementation):
    coords = random_coords(SHAPE)
    coords[:, 1:] -= 5
    x = voxels(grid=UNBOUNDED, coords=coords)
    down = StridedConv(4, 6, 3, 2, meaning="minkowski")
    up = InverseConv(6, 4, 3, 2, meaning="minkowski")
    grow = TransposedConv(6, 4, 2, 2, meaning="minkowski")
    with backend.forced(implementation):
        y = down(x)
        back, grown = up(y, like=x), grow(y)
    floors = coords.clone()
    floors[:, 1:] = torch.div(coords[:, 1:], 2, rounding_mode="floor")
    assert torch.equal(y.coords, torch.unique(floors, dim=0))
    assert y.shape is None and y.stride == (2, 2, 2) and back.same_cells(x)
    assert grown.stride == (1, 1, 1) and grown.shape is None and len(grown) == 8 * len(y)
    assert (grown.lookup(x.coords) >= 0).all(), "every child of a coarse cell exists"


def test_a_shortcut_of_kernel_one_reads_cells_on_the_coarse_grid_alone():
    x = voxels(grid=UNBOUNDED)
    y = StridedConv(4, 4, 1, 2, meaning="minkowski")(x)
    on_grid = y.coords.clone()
    on_grid[:, 1:] *= 2
    absent = x.lookup(on_grid) < 0
    assert absent.any() and not absent.all()
    assert not y.features[absent].any() and y.features[~absent].any(1).all()


def test_layers_share_the_maps_of_one_topology():
    x = voxels()
    first, second = StridedConv(4, 4, 3, 2, 1), StridedConv(4, 4, 3, 2, 1)
    a, b = first(x), second(x)
    assert a.coords is b.coords and a.cache is b.cache
    other = StridedConv(4, 4, 3, 2, 0)(x)
    assert other.cache is not a.cache


@each
@pytest.mark.parametrize("meaning", ["spconv", "minkowski"])
def test_a_batch_of_two_equals_two_batches_of_one(meaning, implementation):
    x = voxels()
    padding = 1 if meaning == "spconv" else None
    net = VoxelSequential(
        SubMConv(4, 8), VoxelInstanceNorm(8), StridedConv(8, 8, 3, 2, padding, meaning=meaning)
    )
    with backend.forced(implementation), torch.no_grad():
        together = net(x).split()
        apart = [net(part) for part in x.split()]
    for a, b in zip(together, apart):
        assert torch.equal(a.coords, b.coords)
        torch.testing.assert_close(a.features, b.features, rtol=1e-5, atol=1e-6)


def test_the_order_of_the_rows_leaves_no_trace():
    x = voxels()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    mixed, rows = SparseVoxels.from_coords(x.coords[order], x.features[order], BOUNDED, 2)
    assert torch.equal(rows, order)
    net = VoxelSequential(SubMConv(4, 8), VoxelBatchNorm(8), StridedConv(8, 8, 3, 2, 1))
    assert torch.equal(net(x).features, net(mixed).features)


@each
@pytest.mark.parametrize("count", [0, 1])
def test_no_voxel_and_one_voxel_pass_every_layer(count, implementation):
    x = voxels(coords=sorted_coords([[1, 3, 2, 1]])[:count])
    net = VoxelSequential(
        SubMConv(4, 8), VoxelBatchNorm(8), nn.ReLU(), StridedConv(8, 8, 3, 2, 1), VoxelBatchNorm(8)
    )
    before = {k: v.clone() for k, v in net[1].state_dict().items()}
    with backend.forced(implementation):
        y = net(x)
        z = InverseConv(8, 4, 3, 2, 1)(VoxelInstanceNorm(8)(y), like=x)
        pooled = VoxelUnpool()(VoxelPool("max")(z), like=z)
        grown = TransposedConv(8, 4, 2, 2)(y)
        (z.features.sum() + grown.features.sum() + pooled.features.sum()).backward()
    assert len(z) == count and len(y) == 4 * count and GlobalPool("mean")(z).shape == (2, 4)
    assert torch.isfinite(z.features).all()
    assert all(torch.equal(v, before[k]) for k, v in net[1].state_dict().items())
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_batch_norm_is_that_of_torch_with_its_state():
    x = voxels(seed=3)
    ours, theirs = VoxelBatchNorm(4, eps=1e-3, momentum=0.01), nn.BatchNorm1d(4, 1e-3, 0.01)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(2):
        torch.testing.assert_close(ours(x).features, theirs(x.features))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    torch.testing.assert_close(ours.eval()(x).features, theirs.eval()(x.features))


@pytest.mark.parametrize("training", [True, False])
def test_a_norm_and_its_relu_run_as_one_and_mean_the_same(training):
    x = voxels(seed=4)
    net = VoxelSequential(VoxelBatchNorm(4), nn.ReLU(), nn.Linear(4, 2)).train(training)
    nn.init.normal_(net[0].weight)
    apart = net[2](net[0](x).features.relu())
    expected = torch.autograd.grad(apart.square().sum(), list(net.parameters()))
    together = net(x).features
    found = torch.autograd.grad(together.square().sum(), list(net.parameters()))
    torch.testing.assert_close(together, apart)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@each
@pytest.mark.parametrize("conv", [SubMConv(4, 6, bias=True), StridedConv(4, 6, 3, 2, 1)])
@pytest.mark.parametrize("relu,with_residual", [(False, False), (True, False), (True, True)])
def test_inference_in_one_pass_is_the_layers_one_after_another(
    conv, relu, with_residual, implementation
):
    x, norm = voxels(seed=5), VoxelBatchNorm(6).eval()
    for tensor in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    rows = len(conv(x))
    residual = torch.randn(rows, 6) if with_residual else None
    with backend.forced(implementation):
        apart = conv_norm(conv, norm, x, relu, residual).features
        expected = norm(conv(x)).features + (0 if residual is None else residual)
        with torch.no_grad():
            together = conv_norm(conv, norm, x, relu, residual).features
            sequence = VoxelSequential(conv, norm, *([nn.ReLU()] if relu else []))(x).features
    expected = expected.relu() if relu else expected
    assert apart.requires_grad and not together.requires_grad
    torch.testing.assert_close(apart, expected)
    torch.testing.assert_close(together, expected, rtol=1e-5, atol=1e-5)
    if residual is None:
        assert torch.equal(sequence, together)


@pytest.mark.parametrize("training", [True, False])
def test_blocks_run_under_bfloat16_autocast(training):
    x = voxels(8)
    net = VoxelSequential(
        SubMConv(8, 8), VoxelBatchNorm(8), nn.ReLU(), StridedConv(8, 6, 3, 2, 1), VoxelBatchNorm(6)
    ).train(training)
    exact = net(x).features
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
        rounded = net(x).features
    torch.testing.assert_close(rounded.float(), exact, rtol=5e-2, atol=5e-2)
    if training:
        rounded.float().square().sum().backward()
        assert all(p.grad.dtype == torch.float32 and p.grad.any() for p in net.parameters())


def test_training_a_block_gives_equal_bits_at_any_number_of_threads():
    x = voxels(8, UNBOUNDED, coords=random_coords((30, 30, 20), share=0.3))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            net = VoxelSequential(
                SubMConv(8, 8, bias=True), VoxelBatchNorm(8), nn.ReLU(), StridedConv(8, 8, 3, 2, 1)
            )
            out = net(x).features
            out.square().sum(1).double().sum().backward()
            results.append([out, *(p.grad for p in net.parameters()), *net.buffers()])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_instance_norm_is_biased_per_sample_and_channel():
    coords = sorted_coords([[0, i, 0, 0] for i in range(6)] + [[2, 1, 1, 1]])
    x = voxels(3, coords=coords, batch=3)
    layer = VoxelInstanceNorm(3)
    nn.init.uniform_(layer.weight)
    nn.init.uniform_(layer.bias)
    y = layer(x).features
    part = x.features[:6]
    scaled = (part - part.mean(0)) / (part.var(0, unbiased=False) + 1e-8).sqrt()
    torch.testing.assert_close(y[:6], scaled * layer.weight + layer.bias)
    assert torch.equal(y[6:], layer.bias.detach().expand(1, -1)), "one voxel gives the bias"
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {
        "weight": (1, 3),
        "bias": (1, 3),
    }


def test_pool_and_unpool():
    coords = sorted_coords([[0, 0, 0, 0], [0, 0, 0, 1], [0, -1, 0, 0]])
    x = SparseVoxels.from_coords(coords, torch.tensor([[-5.0], [-3.0], [-1.0]]), UNBOUNDED, 1)[
        0
    ]  # ascending: the cell at -1 comes first
    mean = VoxelPool("mean")(x)
    assert mean.coords.tolist() == [[0, -1, 0, 0], [0, 0, 0, 0]]
    assert mean.features.flatten().tolist() == [-5, -2] and mean.stride == (2, 2, 2)
    assert VoxelPool("max")(x).features.flatten().tolist() == [-5, -1]
    assert VoxelUnpool()(mean, like=x).features.flatten().tolist() == [-5, -2, -2]


def test_groups_do_not_mix_and_must_divide():
    x = voxels()
    layer = SubMConv(4, 8, groups=4)
    assert layer.weight.shape == (27, 1, 8)
    y = layer(x)
    changed = layer(x.replace(x.features * torch.tensor([1.0, 1, 1, 0])))
    assert torch.equal(y.features[:, :6], changed.features[:, :6])
    assert not torch.equal(y.features[:, 6:], changed.features[:, 6:])
    with pytest.raises(ValueError, match="groups is 3"):
        SubMConv(4, 8, groups=3)


def test_maps_of_two_dimensions():
    grid = VoxelGrid((1.0, 1.0), (0.0, 0.0), (9, 8))
    coords = random_coords((9, 8))
    x = SparseVoxels.from_coords(coords, torch.randn(len(coords), 4), grid, 2)[0]
    layer = StridedConv(4, 5, 3, 2, 1, dims=2)
    y = layer(SubMConv(4, 4, dims=2)(x))
    assert y.shape == (5, 4) and y.stride == (2, 2) and y.dense().shape == (2, 5, 4, 5)


def test_weights_are_drawn_like_those_of_dense_convolutions():
    torch.manual_seed(0)
    bound = 1 / (27 * 32) ** 0.5
    layer = SubMConv(32, 64, bias=True)
    assert 0.99 * bound < float(layer.weight.detach().abs().max()) <= bound
    assert 0.5 * bound < float(layer.bias.detach().abs().max()) <= bound


def test_a_layer_compiles_without_a_break():
    x = voxels()
    layer = SubMConv(4, 6, bias=True)
    expected = layer(x)  # the map is in the cache now

    def block(features):
        return voxel_relu(layer(x.replace(features))).features

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x.features), expected.features.relu())
