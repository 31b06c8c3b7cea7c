import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse3d.ops import backend, native
from sparse3d.ops.transport import transport, transport_flow
from tests.flow_fixtures import files_where, load

IMPLEMENTATIONS = ("reference", "native")
each = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
SINKHORN = files_where(lambda names: any(name.startswith("T.") for name in names))


def _unit(rows):
    return rows / (rows.square().sum(-1, keepdim=True) + 1e-8).sqrt()


def _clouds(sizes, seed, scale=12.0, channels=7, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    points = [torch.rand(n, 3, generator=generator, dtype=dtype) * scale for n in sizes]
    features = [_unit(torch.randn(n, channels, generator=generator, dtype=dtype)) for n in sizes]
    return tuple(features), tuple(points)


@pytest.mark.parity
@each
@pytest.mark.parametrize("path", SINKHORN, ids=lambda p: p.stem)
def test_plan_is_the_published_one(path, implementation):
    data = load(path)
    clouds = {"near": ("pc0", "pc1"), "far": ("big_pc0", "big_pc1")}
    eps, gamma = torch.tensor(0.2), torch.tensor(0.7)
    for name in (name for name in data if name.startswith("T.")):
        _, place, rounds = name.split(".")
        iterations = int(rounds.removeprefix("it"))
        for s, stored in enumerate(data[name]):
            features = (_unit(data["f0"][s]), _unit(data["f1"][s]))
            points = tuple(data[key][s] for key in clouds[place])
            identity = torch.eye(stored.shape[1])
            with backend.forced(implementation):
                plan, mass = transport(features, points, identity, eps, gamma, iterations)
            # Without iterations the plan is exp(-cost / eps), of order one: the cost is rounded as
            # a product, a difference and a quotient, and what is lost there is divided by eps.
            rounding = 3 * torch.finfo(torch.float32).eps / float(eps)
            slack = rounding if iterations == 0 else 0
            torch.testing.assert_close(plan, stored, rtol=slack, atol=1e-8)
            torch.testing.assert_close(mass, stored.sum(1), rtol=1e-5, atol=1e-8)


@pytest.mark.parity
@each
@pytest.mark.parametrize("path", SINKHORN, ids=lambda p: p.stem)
def test_gradients_are_the_published_ones(path, implementation):
    data = load(path)
    leaves = [
        data[f"grad.{name}_val"].float().squeeze().requires_grad_() for name in ("eps", "gamma")
    ]
    rows = [data[name].clone().requires_grad_() for name in ("f0", "f1")]
    with backend.forced(implementation):
        flow = torch.stack(
            [
                transport_flow(
                    (_unit(first), _unit(second)), points, *leaves, int(data["grad.iters"])
                )[0]
                for first, second, *points in zip(*rows, data["pc0"], data["pc1"])
            ]
        )
        torch.testing.assert_close(flow, data["grad.flow"], rtol=0, atol=2e-5)
        (flow * data["grad.flow_in"]).sum().backward()
    for leaf, name in zip([*rows, *leaves], ("f0", "f1", "eps", "gamma")):
        stored = data[f"grad.{name}"].reshape(leaf.shape)
        assert (leaf.grad - stored).abs().max() <= 2e-5 * stored.abs().max()


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.tuples(st.integers(0, 90), st.integers(0, 150)),
    scale=st.sampled_from([3.0, 12.0, 60.0]),
    iterations=st.integers(0, 3),
)
def test_native_is_the_definition(seed, sizes, scale, iterations):
    features, points = _clouds(sizes, seed, scale)
    generator = torch.Generator().manual_seed(seed)
    batch = tuple(torch.randint(0, 3, (n,), generator=generator) for n in sizes)
    weight = torch.randn(sizes[0], 3, generator=generator)
    results = []
    kinds = (("reference", torch.float64), ("reference", torch.float32), ("native", torch.float32))
    for name, dtype in kinds:
        leaves = [f.to(dtype, copy=True).requires_grad_() for f in features]
        scalars = [torch.tensor(v, dtype=dtype, requires_grad=True) for v in (0.1, 0.5)]
        places = tuple(p.to(dtype) for p in points)
        with backend.forced(name):
            flow, mass = transport_flow(leaves, places, *scalars, iterations, batch=batch)
            grads = torch.autograd.grad(
                (flow * weight).sum() + mass.sum(), [*leaves, *scalars], allow_unused=True
            )
        results.append([r.float() for r in (flow, mass, *grads) if r is not None])
    for true, reference, found in zip(*results):
        if not true.numel():
            continue
        # where masses are tiny, float32 cancels: the kernel may be as far off as the definition
        rounding = 4 * float((reference - true).detach().abs().max())
        share = 2e-4 if true.dim() else 5e-3  # a scalar's gradient is a sum that cancels
        limit = share * float(true.abs().max()) + rounding + 1e-6
        torch.testing.assert_close(found, true, rtol=0, atol=limit)


@each
def test_gradients_are_true(implementation):
    features, points = _clouds((3, 4), 3, channels=3, dtype=torch.float64)
    scalars = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.4, 0.5)]
    leaves = [f.requires_grad_() for f in features]
    values = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)

    def carried(first, second, values, eps, gamma):
        return transport((first, second), points, values, eps, gamma, 2)

    with backend.forced(implementation):
        assert torch.autograd.gradcheck(carried, (*leaves, values, *scalars))


@each
def test_batch_of_two_is_two_alone_in_any_order_of_rows(implementation):
    parts = [_clouds((40, 50), seed) for seed in (0, 1)]
    scalars = (torch.tensor(0.1), torch.tensor(0.5))
    with backend.forced(implementation):
        alone = torch.cat([transport_flow(f, p, *scalars, 1)[0] for f, p in parts])
        features, points = (tuple(torch.cat(rows) for rows in zip(*kind)) for kind in zip(*parts))
        batch = tuple(torch.arange(2).repeat_interleave(n) for n in (40, 50))
        orders = [torch.randperm(n, generator=torch.Generator().manual_seed(n)) for n in (80, 100)]
        mixed = transport_flow(
            *(tuple(t[o] for t, o in zip(kind, orders)) for kind in (features, points)),
            *scalars,
            1,
            batch=tuple(t[o] for t, o in zip(batch, orders)),
        )[0]
    torch.testing.assert_close(mixed, alone[orders[0]], rtol=1e-5, atol=1e-5)


def test_bits_do_not_depend_on_the_order_of_rows():
    features, points = _clouds((200, 300), 8)
    scalars = (torch.tensor(0.1), torch.tensor(0.5))
    orders = [torch.randperm(len(p), generator=torch.Generator().manual_seed(1)) for p in points]
    mixed = [tuple(t[o] for t, o in zip(kind, orders)) for kind in (features, points)]
    flow = transport_flow(features, points, *scalars, 1)[0]
    assert torch.equal(transport_flow(*mixed, *scalars, 1)[0], flow[orders[0]])


def test_bits_do_not_depend_on_threads():
    features, points = _clouds((500, 700), 5)
    scalars = (torch.tensor(0.1), torch.tensor(0.5))
    results, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(transport_flow(features, points, *scalars, 1)[0])
    torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("level", ["plain", "avx2", "avx512"])
def test_every_instruction_set_agrees(level, monkeypatch):
    if not native.available():
        pytest.skip("no native library")
    features, points = _clouds((70, 130), 6, channels=64)
    scalars = (torch.tensor(0.05), torch.tensor(0.5))
    with backend.forced("reference"):
        wanted = transport_flow(features, points, *scalars, 1)[0]
    monkeypatch.setenv("SPARSE3D_ISA", level)
    torch.testing.assert_close(
        transport_flow(features, points, *scalars, 1)[0], wanted, rtol=1e-4, atol=1e-4
    )


def test_what_does_not_fit_is_refused():
    features, points = _clouds((4, 5), 0)
    scalars = (torch.tensor(0.1), torch.tensor(0.5))
    with pytest.raises(ValueError, match="must be 0 or more"):
        transport_flow(features, points, *scalars, -1)
    with pytest.raises(ValueError, match=r"\[N, C\]"):
        transport_flow(features[::-1], points, *scalars, 1)
