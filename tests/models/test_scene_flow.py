import numpy as np
import pytest
import torch

from sparse3d.engine.checkpoints import read_checkpoint
from sparse3d.engine.published import convert_detector, convert_state, our_name
from sparse3d.models.flow_losses import consistency
from sparse3d.models.point_transformer import PointTransformer
from sparse3d.models.scene_flow import FLOT, SCTN
from sparse3d.models.set_conv import NeighborGraph, SetConv
from sparse3d.ops import backend
from sparse3d.structures import Batch, SweepPair
from tests.conftest import real_data
from tests.flow_fixtures import error, files_where, load, pairs, weights_for

ROLE = "scene_flow"
each = pytest.mark.parametrize("implementation", ["reference", "native"])
TIES = 2e-2
"""A near tie in a maximum that falls the other way moves single entries of a gradient this much."""


def files(*names):
    return pytest.mark.parametrize(
        "path", files_where(lambda has: all(n in has for n in names)), ids=lambda p: p.stem
    )


def narrow(weights):
    """The U-Net's config that SCTN's ``weights`` were made with."""
    sizes = {
        name.removeprefix("minkowski_extractor.").removesuffix(".kernel"): tensor.shape
        for name, tensor in weights.items()
        if name.endswith(".kernel") and "block" not in name
    }
    return {
        "type": "InstanceUNet",
        "channels": [sizes[f"encoder.conv{i}"][-1] for i in (1, 2, 3, 4)],
        "up_channels": [sizes[f"decoder.conv{i}_tr"][-1] for i in (4, 3, 2, 1)],
        "out_channels": sizes["decoder.final"][-1],
        "kernel_size": round(sizes["encoder.conv1"][0] ** (1 / 3)),
    }


def loaded(model, weights):
    model.load_state_dict(convert_state(ROLE, _with_counters(weights, model), model))
    return model


def _with_counters(tensors, model):
    """``tensors`` under reference names, and what of the model they leave out."""
    state = {n.replace("attention.", "pct."): t for n, t in model.state_dict().items()}
    left_out = ("num_batches_tracked", "running_mean", "running_var", "gamma")
    return {n: t for n, t in state.items() if n.endswith(left_out)} | dict(tensors)


def compare_gradients(model, stored, norm_share, zero):
    """Entries up to near ties in maxima; norms to ``norm_share`` of their own or of the whole.

    A norm that is a small part of the whole is known no better: the ties move it, in float64 too.
    """
    stored = convert_state(ROLE, _with_counters(stored, model), model)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    whole = torch.cat([grad.flatten() for grad in found.values()]).norm()
    wanted = torch.cat([stored[name].flatten() for name in found]).norm()
    assert abs(whole - wanted) <= norm_share * wanted
    for name, grad in found.items():
        if name in zero:
            assert grad.abs().max() < 1e-5
            continue
        assert error(grad, stored[name]) <= TIES, name
        norm = stored[name].norm()
        assert abs(grad.norm() - norm) <= norm_share * max(norm, 0.3 * wanted), name


@pytest.mark.parity
@each
@files("edge_feats", "grad_x")
def test_set_conv_is_the_published_one(path, implementation):
    data = load(path)
    layer = SetConv(data["x"].shape[-1], data["out"].shape[-1])
    state = {name[2:]: value for name, value in data.items() if name.startswith("w.")}
    layer.load_state_dict(convert_state(ROLE, state, layer))
    inputs = data["x"].clone().requires_grad_()
    with backend.forced(implementation):
        graphs = [NeighborGraph.of(cloud, int(data["k"])) for cloud in data["pc"]]
        assert torch.equal(torch.stack([g.index for g in graphs]), data["neighbors"])
        out = torch.stack([layer(g, x) for g, x in zip(graphs, inputs)])
        torch.testing.assert_close(out, data["out"], rtol=0, atol=1e-5)
        (out * data["grad_out"]).sum().backward()
    torch.testing.assert_close(inputs.grad, data["grad_x"], rtol=0, atol=1e-5)
    for name, parameter in layer.named_parameters():
        assert error(parameter.grad, data[f"gw.{name}"]) < 1e-5


@pytest.mark.parity
@files("it1.flow", "feats0")
@each
def test_flot_is_the_published_one(path, implementation):
    data = load(path)
    weights = weights_for(path, "feat_conv1.fc1.weight")
    widths = [weights[f"feat_conv{i}.fc3.weight"].shape[0] for i in (1, 2, 3)]
    for iterations in (int(name[2]) for name in data if name.endswith(".flow")):
        model = loaded(FLOT(iterations=iterations, channels=widths), weights)
        with backend.forced(implementation):
            flows, features = model.flows(pairs(data))
            loss = model.loss(pairs(data))["loss_flow"]
            loss.backward()
        prefix = f"it{iterations}."
        torch.testing.assert_close(torch.stack(flows), data[prefix + "flow"], rtol=0, atol=2e-5)
        assert error(torch.stack(features), data["feats0"]) < 3e-5
        assert abs(loss.item() - data[prefix + "loss"].item()) < 1e-6
        gone = (torch.stack(flows) - data["gt"]).norm(dim=-1)[data["mask"][..., 0].bool()].mean()
        assert abs(gone.item() - data[prefix + "epe"].item()) < 1e-5
        start = prefix + "grad."
        stored = {n[len(start) :]: v for n, v in data.items() if n.startswith(start)}
        compare_gradients(model, stored, 1e-3, zero=())


@pytest.mark.parity
@files("idx0", "idx1")
@pytest.mark.parametrize("weights", real_data("flot_weights/*.tar"), ids=lambda p: p.stem)
def test_released_weights_give_the_published_flow(path, weights):
    data, checkpoint = load(path), read_checkpoint(weights)
    model = FLOT(iterations=checkpoint["nb_iter"]).eval()
    conversion = convert_detector(checkpoint["model"], model)
    assert not conversion.missing and not conversion.leftover
    model.load_state_dict(conversion.state)
    batch = Batch([SweepPair(data["pc0"][0], data["pc1"][0])])
    stored = data["flow_" + weights.stem.split("_")[-1]][0]
    torch.testing.assert_close(model.predict(batch)[0].flow, stored, rtol=0, atol=5e-4)


@pytest.mark.parity
@files("s_C", "eval.flow")
def test_sctn_is_the_published_one(path):
    data = load(path)
    weights = weights_for(path, "minkowski_extractor.encoder.conv1.kernel")
    model = loaded(SCTN(narrow(weights), voxel_size=float(data["voxel_size"])), weights)
    batch = pairs(data)
    with torch.no_grad():
        model.eval()
        compare_stages(model, batch, data)
        model.set_epoch(model.consistency_epoch)
        compare_losses(model.loss(batch), data, "eval")
    model.train()
    losses = model.loss(batch)
    compare_losses(losses, data, "train")
    sum(losses.values()).backward()
    state = model.state_dict()
    for name in (name for name in data if name.startswith("train.after.")):
        ours = our_name(ROLE, name.removeprefix("train.after."))
        torch.testing.assert_close(state[ours], data[name], rtol=1e-5, atol=1e-6)
    zero = ("attention.point_net.0.bias", "attention.point_net.3.bias")
    stored = {n[11:]: v for n, v in data.items() if n.startswith("train.grad.")}
    if stored:
        compare_gradients(model, stored, 1e-4, zero)
    else:
        compare_norms(model, path, zero)


def compare_stages(model, batch, data):
    clouds = [pair.source for pair in batch.samples]
    points, counts = torch.cat(clouds), [len(cloud) for cloud in clouds]
    sample = torch.arange(len(clouds)).repeat_interleave(torch.tensor(counts))
    voxels = model.voxelize(points, sample, len(clouds))
    order = np.lexsort(data["s_C"].numpy().T[::-1])
    assert torch.equal(voxels.coords, data["s_C"][order])
    assert torch.equal(voxels.features, data["s_F"][order])
    coarse, skips = model.backbone.encoder(voxels)
    fine = model.backbone.decoder(coarse, skips)
    local = model.interpolate(fine, points, sample)
    own, others = model.features(batch)
    moved = [model.transport(*p) for p in zip(batch.samples, own, others)]
    found = {
        **{f"skip{i}.F": skip.features for i, skip in enumerate(skips)},
        "enc_out.F": coarse.features,
        "dec_out.F": fine.features,
        "up0": local,
        "att0": model.attention(points, local, counts),
        "feats0": torch.cat(own),
        "ot_flow": torch.cat([flow for flow, _ in moved]),
        "T_rowsum": torch.cat([mass for _, mass in moved]),
        "flow": torch.cat(model.flows(batch)[0]),
    }
    for name, value in found.items():
        assert error(value, data[f"eval.{name}"]) < 3e-5, name


def compare_losses(losses, data, phase):
    wanted = {"loss_flow": "loss_sup", "loss_consistency": "loss_fsc"}
    for ours, theirs in wanted.items():
        weight = 0.3 if ours == "loss_consistency" else 1.0
        assert abs(losses[ours].item() - weight * data[f"{phase}.{theirs}"].item()) < 1e-6
    assert abs(sum(losses.values()).item() - data[f"{phase}.loss_total"].item()) < 1.5e-6


def compare_norms(model, path, zero):
    with np.load(path) as data:
        stored = dict(zip(data["train.grad_names"].tolist(), data["train.grad_norms"].tolist()))
    parameters = dict(model.named_parameters())
    whole = np.linalg.norm([norm for norm in stored.values() if norm > 0])
    for name, norm in stored.items():
        ours = our_name(ROLE, name)
        if norm >= 0 and ours not in zero:
            found = parameters[ours].grad.norm().item()
            assert abs(found - norm) <= 1e-4 * max(norm, 0.3 * whole), name


@pytest.mark.parity
@files("xyz", "out_eval", "w.w_qs.weight")
def test_transformer_is_the_published_one(path):
    data = load(path)
    samples, count, channels = data["feats"].shape
    layer = PointTransformer(channels).eval()
    layer.load_state_dict({n[2:]: v for n, v in data.items() if n.startswith("w.")})
    flat = (data["xyz"].reshape(-1, 3), data["feats"].reshape(-1, channels))
    found = layer(*flat, [count] * samples)
    assert error(found, data["out_eval"]) < 3e-5


@pytest.mark.parity
@files("per_point", "grad_est_flow")
def test_consistency_is_the_published_one(path):
    data = load(path)
    flow = data["est_flow"].clone().requires_grad_()
    found = torch.stack(
        [
            consistency(points, features, own, int(data["k"]), float(data["tau"]))
            for points, features, own in zip(data["pc"], data["feats"], flow)
        ]
    )
    torch.testing.assert_close(found, data["per_point"], rtol=0, atol=1e-6)
    found.mean().backward()
    torch.testing.assert_close(flow.grad, data["grad_est_flow"], rtol=0, atol=1e-8)


SMALL = {
    "type": "InstanceUNet",
    "channels": [4, 4, 8, 8],
    "up_channels": [8, 8, 8, 8],
    "out_channels": 8,
    "kernel_size": 3,
}


def small(kind):
    torch.manual_seed(0)
    if kind == "flot":
        return FLOT(neighbors=8, channels=(4, 4, 8))
    return SCTN(SMALL, voxel_size=0.3, neighbors=8, channels=(4, 4, 8))


def cloud(count, seed):
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("kind", ["flot", "sctn"])
def test_clouds_of_any_sizes_and_empty_ones_are_legal(kind):
    model = small(kind).eval()
    sizes = [(30, 47), (5, 3), (0, 20), (20, 0), (1, 1), (0, 0)]
    batch = Batch([SweepPair(cloud(n, n), cloud(m, m + 1)) for n, m in sizes])
    together = model.predict(batch)
    for (count, _), flow, pair in zip(sizes, together, batch.samples):
        assert flow.flow.shape == (count, 3) and flow.flow.isfinite().all()
        alone = model.predict(Batch([pair]))[0].flow
        torch.testing.assert_close(flow.flow, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["flot", "sctn"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 31000.0])
def test_points_that_are_none_are_named(kind, value):
    points = cloud(9, 0)
    points[4, 1] = value
    with pytest.raises(ValueError, match=r"1 points of the target .* first row 4.*millimetres"):
        small(kind).predict(Batch([SweepPair(cloud(9, 1), points, meta={"sample_id": "x"})]))


def test_without_true_flow_nothing_is_learnt():
    with pytest.raises(ValueError, match="'x' has no true flow"):
        small("flot").loss(Batch([SweepPair(cloud(9, 1), cloud(9, 2), meta={"sample_id": "x"})]))


def test_published_sizes():
    flot = sum(p.numel() for p in FLOT().parameters())
    sctn = sum(p.numel() for p in SCTN({"type": "InstanceUNet"}).parameters())
    assert (flot, sctn) == (111_109, 7_788_229)
