"""torch.compile of layers and networks without a graph break, maps included."""

import pytest
import torch
from torch import nn

from sparse3d.models.backbones.sparse_resnet import SparseResNet
from sparse3d.models.layers import (
    InverseConv,
    StridedConv,
    SubMConv,
    TransposedConv,
    VoxelBatchNorm,
    VoxelPool,
    VoxelSequential,
)
from sparse3d.structures import SparseVoxels, VoxelGrid
from tests.voxel_cases import random_coords

GRID = VoxelGrid.from_range((0, 0, 0, 16, 16, 16), (0.5, 0.5, 0.5))
SHAPE = (32, 32, 32)


@pytest.fixture(autouse=True)
def _dynamic_sizes():
    """How many output cells there are is known only when a program runs."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        yield


def fresh(channels: int, seed: int = 0) -> SparseVoxels:
    """Voxels whose cache knows nothing."""
    coords = random_coords(SHAPE, share=0.05, seed=seed)
    features = torch.randn(len(coords), channels, generator=torch.Generator().manual_seed(seed))
    return SparseVoxels(features, coords, GRID, 2, (1, 1, 1), SHAPE)


class UpAndDown(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = StridedConv(4, 8, 2, 2, meaning="minkowski")
        self.up = InverseConv(8, 4, 2, 2, meaning="minkowski")

    def forward(self, voxels):
        return self.up(self.down(voxels), like=voxels)


LAYERS = {
    "submanifold": lambda: SubMConv(4, 8),
    "strided": lambda: StridedConv(4, 8, 3, 2, 1),
    "down and up": UpAndDown,
    "transposed": lambda: TransposedConv(4, 8, 2, 1),
    "pool": lambda: VoxelPool("max"),
    "several": lambda: VoxelSequential(
        SubMConv(4, 4), VoxelBatchNorm(4), nn.ReLU(), StridedConv(4, 8, 3, 2, 1), VoxelBatchNorm(8)
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compile_whole_with_their_maps(name):
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    for seed in (0, 1):
        wanted, found = layer(fresh(4, seed)), compiled(fresh(4, seed))
        assert torch.equal(found.coords, wanted.coords)
        torch.testing.assert_close(found.features, wanted.features, atol=1e-5, rtol=1e-5)


def test_gradients_pass_through_a_compiled_submanifold_network():
    torch.manual_seed(0)
    net = VoxelSequential(SubMConv(4, 8), VoxelBatchNorm(8), nn.ReLU(), SubMConv(8, 4))
    gradients = []
    for run in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        net.zero_grad()
        run(fresh(4)).features.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    for found, wanted in zip(*gradients):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_a_whole_backbone_compiles_without_a_graph_break():
    torch.manual_seed(0)
    net = SparseResNet(4, GRID, channels=(4, 4, 8, 8), out_channels=8, residual=True).eval()
    with torch.no_grad():
        found = torch.compile(net, fullgraph=True, backend="eager")(fresh(4))
        for ours, wanted in zip(found, net(fresh(4))):
            assert torch.equal(ours.coords, wanted.coords)
            torch.testing.assert_close(ours.features, wanted.features, atol=1e-4, rtol=1e-4)
