import math

import pytest
import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper

from sparse3d.engine.runner import load_config
from sparse3d.models.splat_rows import NAMES, append_rows, keep_rows
from sparse3d.models.splat_strategies import Densification, MonteCarlo, Pruning, shared, split_rows
from sparse3d.models.splatting import SplattingModel
from sparse3d.structures import Gaussians, SparsePoints, collate
from tests.models.test_dense_start import views
from tests.photographs import poses, some_points

POINTS = {"type": "PointStart", "opacity": 0.5}
PRUNING = {"type": "Pruning"}


def rates() -> dict:
    return load_config("configs/splatting/edgs_colmap.py").optim_wrapper.to_dict()


def build(start=None, strategy=None, samples=None, steps=20, **options):
    """A model at its start, its optimizer and the views."""
    samples = samples or views(poses(3))
    torch.manual_seed(0)
    start, strategy = start or POINTS, strategy or PRUNING
    model = SplattingModel(start=start, strategy=strategy, **{"sh_degree": 1, **options})
    xyz, rgb = (torch.from_numpy(x).float() for x in some_points())
    model.begin(samples, SparsePoints(xyz, rgb / 255), steps)
    wrapper = build_optim_wrapper(model, {**rates(), "type": "OptimWrapper"})
    return model.train(), wrapper, samples


def train(model, wrapper, samples, steps) -> list[float]:
    losses = []
    for step in range(steps):
        torch.manual_seed(step)
        log = model.train_step(collate([samples[step % len(samples)]]), wrapper)
        losses.append(float(log["loss"]))
    return losses


def moments(wrapper: OptimWrapper, parameter):
    return wrapper.optimizer.state[parameter]["exp_avg"]


@pytest.mark.parametrize(
    ("start", "strategy"),
    [
        ({"type": "DenseStart", "matches": 300}, PRUNING),
        (POINTS, {"type": "Densification", "start": 0.1, "every": 4, "reset": 0.4}),
        (POINTS, {"type": "Densification", "start": 0.1, "every": 4, "absgrad": True}),
        (POINTS, {"type": "MonteCarlo", "start": 0.1, "every": 4, "growth": 1.2}),
    ],
    ids=["edgs", "3dgs", "absgrad", "mcmc"],
)
def test_every_strategy_learns_the_pictures(start, strategy):
    model, wrapper, samples = build(start, strategy)
    before = len(model)
    losses = train(model, wrapper, samples, 20)
    assert sum(losses[-3:]) < sum(losses[10:13])  # when clones and splits have come to an end
    assert int(model.step) == 20 and model.gaussians.finite().all()
    if strategy is not PRUNING:
        assert len(model) > before
    for name in NAMES:  # the optimizer followed
        parameter = getattr(model, name)
        assert moments(wrapper, parameter).shape == parameter.shape


def test_a_random_background_is_another_at_each_step_and_the_mean_in_the_end():
    model, _, samples = build(background="random")
    plain, _, _ = build(background="mean")
    model.set_gaussians(model.gaussians[:0])
    plain.set_gaussians(plain.gaussians[:0])
    camera = samples[0].cameras["view"]
    first, again = (model.picture(camera)[0] for _ in range(2))
    assert torch.equal(first, again)
    model.step += 1
    assert not torch.equal(model.picture(camera)[0], first)
    assert torch.equal(model.eval().picture(camera)[0], plain.eval().picture(camera)[0])
    with pytest.raises(ValueError, match="background is 'sky'"):
        build(background="sky")


def test_predictions_carry_what_evaluation_needs():
    model, _, samples = build()
    found = model.eval().test_step(collate(samples[:2]))
    assert [one.sample.sample_id for one in found] == ["view 0", "view 1"]
    shape = samples[0].images["view"].shape
    assert found[0].image.shape == shape and found[0].depth.shape == shape[:2]
    assert found[0].image.min() >= 0 and found[0].image.max() <= 1
    assert found[0].count == len(model) and found[0].depth[found[0].alpha > 0.5].min() > 0.5


def test_rows_keep_the_optimizers_memory():
    model, wrapper, samples = build()
    train(model, wrapper, samples, 2)
    before = {name: moments(wrapper, getattr(model, name)).clone() for name in NAMES}
    values = model.gaussians
    mask = torch.arange(len(model)) % 3 > 0
    added = {name: value[:2].clone() for name, value in values.tensors().items()}
    keep_rows(model, wrapper.optimizer, mask)
    append_rows(model, wrapper.optimizer, added)
    kept = int(mask.sum())
    for name in NAMES:
        parameter = getattr(model, name)
        assert torch.equal(parameter[:kept], getattr(values, name)[mask])
        assert torch.equal(parameter[kept:], added[name])
        assert torch.equal(moments(wrapper, parameter)[:kept], before[name][mask])
        assert not moments(wrapper, parameter)[kept:].any()
    train(model, wrapper, samples, 1)


def test_edgs_fades_and_prunes():
    model, wrapper, samples = build(strategy={"type": "Pruning", "prune_every": 1})
    with torch.no_grad():
        model.opacities[:7] = -8.0
        model.means[7] = 50.0  # behind all cameras: nothing holds it up
    before = len(model), float(model.opacities[7])
    train(model, wrapper, samples, 10)
    assert len(model) == before[0] - 7
    assert float(model.opacities[0]) == pytest.approx(before[1] + math.log(0.99), abs=1e-5)
    after = len(model), float(model.opacities[0])
    train(model, wrapper, samples, 10)  # the second half of the training
    assert (len(model), float(model.opacities[0])) == pytest.approx(after, abs=1e-6)


def test_a_short_training_fades_as_much_faster_as_it_learns():
    model, wrapper, samples = build(rate_power=0.1)
    with torch.no_grad():
        model.means[7] = 50.0  # behind all cameras: nothing holds it up
    before = float(model.opacities[7])
    train(model, wrapper, samples, 10)
    faded = before + (30_000 / 20) ** 0.1 * math.log(0.99)
    assert float(model.opacities[7]) == pytest.approx(faded, abs=1e-5)


def test_splitting_keeps_the_place_and_shrinks():
    rows = Gaussians.from_points(torch.zeros(500, 3), torch.rand(500, 3), torch.full((500,), 2.0))
    torch.manual_seed(0)
    halves = split_rows(rows.tensors())
    assert len(halves["means"]) == 1000
    assert halves["means"].std() == pytest.approx(2.0, rel=0.05)
    torch.testing.assert_close(halves["scales"].exp(), torch.full((1000, 3), 2 / 1.6))


@pytest.mark.parametrize("copies", [1, 2, 5, 51, 80])
def test_shared_gaussians_look_as_one(copies):
    opacity, scales = torch.tensor([0.3, 0.9]), torch.ones(2, 3)
    each, size = shared(opacity, scales, torch.full((2,), copies))
    number = min(copies, 51)
    torch.testing.assert_close(1 - (1 - each) ** number, opacity, rtol=1e-4, atol=1e-4)
    # Equation 9 keeps the integral of the opacity along a line through the centre.
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    one = opacity[:, None] * torch.exp(-(x**2) / 2)
    alpha = each[:, None] * torch.exp(-(x**2) / (2 * size[:, :1].double() ** 2))
    together = 1 - (1 - alpha) ** number
    torch.testing.assert_close(together.sum(1), one.sum(1), rtol=2e-3, atol=0)


def test_caps_hold():
    assert len(build(most_gaussians=25)[0]) == 25
    grown, wrapper, samples = build(
        strategy={"type": "Densification", "start": 0, "every": 2, "grow_gradient": 0.0},
        most_gaussians=70,
    )
    train(grown, wrapper, samples, 8)
    assert len(grown) <= 70
    with pytest.raises(ValueError, match="leave no Gaussian"):
        build(memory_gb=1e-7)
    assert build(memory_gb=1e-5)[0].most == 13


def test_a_checkpoint_of_any_number_can_be_loaded(tmp_path):
    model, wrapper, samples = build()
    train(model, wrapper, samples, 3)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    other = SplattingModel(start=POINTS, strategy=PRUNING, sh_degree=1)
    assert len(other) == 0
    other.load_state_dict(state)
    assert len(other) == len(model) and int(other.step) == 3
    a, b = (m.eval().render(samples[0].cameras["view"]).image for m in (model, other))
    assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="size mismatch"):
        SplattingModel(start=POINTS, strategy=PRUNING, sh_degree=2).load_state_dict(state)


def test_a_scene_survives_its_files(tmp_path):
    model, _, samples = build()
    model.gaussians.save(tmp_path / "a.ply")
    other = SplattingModel(start=POINTS, strategy=PRUNING, sh_degree=1)
    other.set_gaussians(Gaussians.load(tmp_path / "a.ply"))
    other.background.copy_(model.background)
    a, b = (m.eval().render(samples[0].cameras["view"]).image for m in (model, other))
    torch.testing.assert_close(a, b)


def test_the_rate_of_the_means_falls_in_extents_of_the_scene():
    model, wrapper, samples = build(steps=10, final_rate=0.01)
    group = next(g for g in wrapper.optimizer.param_groups if g["params"][0] is model.means)
    found = []
    for _ in range(11):
        train(model, wrapper, samples, 1)
        found.append(group["lr"])
    assert found[0] == pytest.approx(1.6e-4 * float(model.extent))
    assert found[10] == pytest.approx(0.01 * found[0], rel=1e-4)
    assert found[5] == pytest.approx(0.1 * found[0], rel=1e-4)


def rates_of(steps: int, **options) -> dict[str, list[float]]:
    """The rate of each parameter in each step, over that of the model as published."""
    found = []
    for given in (options, {}):
        model, wrapper, _ = build(steps=steps, **given)
        names = {id(getattr(model, name)): name for name in NAMES}
        rates = {name: [] for name in NAMES}
        for step in range(steps + 1):
            model._set_rates(wrapper.optimizer, step)
            for group in wrapper.optimizer.param_groups:
                rates[names[id(group["params"][0])]].append(group["lr"])
        found.append(rates)
    wanted, published = found
    return {name: [a / b for a, b in zip(wanted[name], published[name])] for name in NAMES}


def test_a_short_training_has_higher_rates_of_everything():
    for rates in rates_of(300, rate_power=0.5).values():
        assert rates == pytest.approx([10.0] * 301)


def test_as_published_all_rates_but_that_of_the_means_stay():
    model, wrapper, _ = build(steps=300)
    for step in (0, 150, 300):
        model._set_rates(wrapper.optimizer, step)
        for group in wrapper.optimizer.param_groups:
            if group["params"][0] is not model.means:
                assert group["lr"] == group["initial_lr"]


@pytest.mark.parametrize("wrong", [{"rate_power": -1.0}, {"settle": -0.5}, {"settle": 1.5}])
def test_rates_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        build(**wrong)


def test_no_training_has_lower_rates_than_published():
    model, wrapper, _ = build(steps=60_000, rate_power=0.5)
    model._set_rates(wrapper.optimizer, 0)
    group = next(g for g in wrapper.optimizer.param_groups if g["params"][0] is model.sh0)
    assert group["lr"] == group["initial_lr"]


def test_a_training_settles_at_a_tenth_of_all_rates():
    for rates in rates_of(20, settle=0.5).values():
        assert rates[:11] == pytest.approx([1.0] * 11)
        assert rates[15] == pytest.approx(10**-0.5)
        assert rates[20] == pytest.approx(0.1)


def test_large_gaussians_cost_what_is_asked():
    model, _, samples = build()
    batch = model.data_preprocessor(collate(samples[:1]), True)
    assert "loss_scale" not in model(**batch, mode="loss")
    model.scale_weight = 0.25
    loss = model(**batch, mode="loss")
    mean = float(model.gaussians.scales.exp().mean() / model.extent)
    assert float(loss["loss_scale"]) == pytest.approx(0.25 * mean, rel=1e-5)
    with pytest.raises(ValueError, match="scale_weight is -1"):
        build(scale_weight=-1)


def test_what_no_picture_shows_shrinks():
    place, color = torch.full((1, 3), 1e3), torch.zeros(1, 3)
    hidden = Gaussians.from_points(place, color, torch.ones(1), 0.5, 1)
    last = {}
    for weight in (0.0, 0.1):
        model, wrapper, samples = build(scale_weight=weight)
        model.set_gaussians(Gaussians.cat([model.gaussians, hidden]))
        train(model, wrapper, samples, 5)
        last[weight] = model.gaussians[-1:].scales
    assert torch.equal(last[0.0], hidden.scales) and (last[0.1] < hidden.scales).all()


def test_exposure_is_learnt_for_training_views_alone():
    samples = views(poses(2))
    samples[1].images["view"] = (samples[1].images["view"].float() * 0.5).byte()
    model, wrapper, _ = build(samples=samples, exposure=True)
    train(model, wrapper, samples, 20)
    gain = model.exposure.detach()[:, :, :3].diagonal(dim1=1, dim2=2).mean(1)
    assert gain[1] < gain[0]
    assert not torch.equal(model.exposure[0], torch.eye(3, 4))
    torch.testing.assert_close(model.exposure.detach().mean(0), torch.eye(3, 4))
    image = torch.rand(4, 5, 3)
    assert torch.equal(model.exposed(image, "a test view"), image)
    assert torch.equal(model.eval().exposed(image, "view 0"), image)


def test_short_trainings_hurry_all_rates_but_those_of_exposures():
    model, wrapper, samples = build(exposure=True, rate_power=0.6)
    train(model, wrapper, samples, 1)
    assert model.haste > 1
    for group in wrapper.optimizer.param_groups:
        hurried = group["lr"] / group["initial_lr"]
        if group["params"][0] is model.exposure:
            assert hurried == pytest.approx(1)
        elif group["params"][0] is not model.means:  # which has the scene's extent, too
            assert hurried == pytest.approx(model.haste)


def test_what_a_mask_hides_is_learnt_from_no_more():
    model, wrapper, samples = build()
    mask = torch.ones(samples[0].images["view"].shape[:2], dtype=torch.bool)
    mask[20:50, 30:60] = False
    samples[0].meta["mask"] = mask
    found = []
    for color in (0, 255):
        samples[0].images["view"][~mask] = color
        wrapper.zero_grad()
        losses = model(**collate(samples[:1]), mode="loss")
        (losses["loss_l1"] + losses["loss_ssim"]).backward()
        found.append([losses["psnr"].clone(), model.sh0.grad.clone()])
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][1].abs().max() > 0


# ---------------------------------------------------------------------- bad input


def test_gaussians_behind_every_camera_are_refused():
    model = SplattingModel(start=POINTS, strategy=PRUNING, sh_degree=0)
    behind = SparsePoints(torch.tensor([[0.0, -20, 9], [1, -20, 9]]), torch.rand(2, 3))
    with pytest.raises(ValueError, match="no camera sees any of the 2 Gaussians"):
        model.begin(views(poses(3)), behind, 10)


def test_degenerate_and_distant_gaussians_do_not_spoil_the_training():
    model, wrapper, samples = build()
    with torch.no_grad():
        model.scales[0] = -60.0  # no extent
        model.scales[1] = 30.0  # immense
        model.quats[2] = 0  # no rotation
        model.means[3] = 1e12
        model.opacities[4] = 80.0
    train(model, wrapper, samples, 5)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_few_bad_gradients_cost_their_gaussians_alone():
    from sparse3d.engine.optim import CheckedOptimWrapper

    model, wrapper, samples = build()
    checked = CheckedOptimWrapper(wrapper.optimizer)
    spoil = torch.zeros(len(model), 3)
    spoil[5] = float("nan")
    handle = model.means.register_hook(lambda gradient: gradient + spoil)
    before = len(model)
    with pytest.warns(UserWarning, match="1 of 60 Gaussians have gradients that are not finite"):
        model.train_step(collate(samples[:1]), checked)
    handle.remove()
    assert len(model) == before - 1 and model.gaussians.finite().all()
    handle = model.means.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="hold NaN"):
        model.train_step(collate(samples[:1]), checked)
    handle.remove()
    assert model.gaussians.finite().all()


def test_views_must_have_one_camera_and_the_model_gaussians():
    model, _, samples = build()
    with pytest.raises(ValueError, match="call begin, or load weights"):
        SplattingModel(start=POINTS, strategy=PRUNING).loss(collate(samples)["batch"])
    samples[0].cameras["another"] = samples[0].cameras["view"]
    with pytest.raises(ValueError, match="has 2 cameras; a view has one"):
        model.loss(collate(samples)["batch"])
    with pytest.raises(ValueError, match="no photograph to begin"):
        model.begin([], SparsePoints.none(), 5)


def test_strategies_are_what_configs_name():
    assert {Pruning, Densification, MonteCarlo} == {
        type(SplattingModel(start=POINTS, strategy={"type": name}).strategy)
        for name in ("Pruning", "Densification", "MonteCarlo")
    }
