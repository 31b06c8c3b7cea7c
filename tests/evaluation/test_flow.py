import csv
import json
import math

import numpy as np
import pytest
import torch

from sparse3d.evaluation import flow as metrics
from sparse3d.evaluation.flow import Frame
from sparse3d.evaluation.flow_metric import PROTOCOLS, FlowMetric, frame_of
from sparse3d.structures import Flow, SweepPair
from tests.conftest import fixture_files, real_data
from tests.flow_fixtures import files_where

ROWS = {"Accuracy Relax": "ACCURACY_RELAX", "Accuracy Strict": "ACCURACY_STRICT"}
ROWS |= {"Angle Error": "ANGLE_ERROR", "EPE": "EPE"}


def same(found, stored, tolerance=1e-9):
    if stored is None or math.isnan(stored):
        return math.isnan(found)
    return abs(found - stored) <= tolerance


def frames_of(path):
    with np.load(path) as data:
        names = (
            "pc",
            "pred",
            "gt",
            "ego_flow",
            "category",
            "pred_dynamic",
            "is_dynamic",
            "is_valid",
        )
        count = len({name.split(".")[0] for name in data.files})
        return [Frame(*(data[f"f{i}.{name}"] for name in names)) for i in range(count)]


def synthetic_frames():
    """Files of frames, each with the summaries that lie beside it."""
    paths = files_where(lambda names: any(name.endswith("pred_dynamic") for name in names))
    return pytest.mark.parametrize("path", paths, ids=lambda p: p.stem)


def beside(path, kind, ending):
    start = path.stem.removesuffix("_frames")
    return path.with_name(f"{start}{kind}{ending}")


@pytest.mark.parity
@pytest.mark.parametrize(
    "path", files_where(lambda names: "epe3d_accS_accR_outlier" in names), ids=lambda p: p.stem
)
def test_point_benchmarks(path):
    with np.load(path) as data:
        pairs = [
            (metrics.point_scores(data["pred"], data["gt"]), data["epe3d_accS_accR_outlier"]),
            (
                metrics.point_scores(data["pred"], data["gt"], data["mask"]),
                data["masked_epe3d_accS_accR_outlier"],
            ),
            (metrics.image_scores(data["flow2d_pred"], data["flow2d_gt"]), data["epe2d_acc2d"]),
        ]
    for found, stored in pairs:
        np.testing.assert_allclose(list(found.values()), stored, rtol=0, atol=1e-9)


@pytest.mark.parity
@synthetic_frames()
def test_argoverse_rows_and_summary(path):
    frames = frames_of(path)
    with beside(path, "_rows", ".csv").open() as file:
        stored = {tuple(list(row.values())[:4]): row for row in csv.DictReader(file)}
    for number, frame in enumerate(frames):
        for row in metrics.argoverse2_rows(frame, f"f{number}"):
            wanted = stored.pop((row["Example"], row["Class"], row["Motion"], row["Distance"]))
            assert row["Count"] == int(wanted["Count"])
            for ours, theirs in (ROWS | {name: name for name in metrics.COUNTS}).items():
                value = float(wanted[theirs]) if wanted[theirs] else float("nan")
                assert same(row[ours], value), (row, ours)
    assert not stored
    summary = json.loads(beside(path, "", ".json").read_text())["av2"]
    found = metrics.argoverse2_scores(frames)
    assert found.keys() == summary.keys()
    assert all(same(found[name], value) for name, value in summary.items())


@pytest.mark.parity
@synthetic_frames()
@pytest.mark.parametrize("place, limit", [("dist35", 35.0), ("distinf", np.inf)])
def test_bucketed(path, place, limit):
    stored = json.loads(beside(path, "", ".json").read_text())
    found = metrics.bucketed_scores(frames_of(path), limit)
    own = stored[f"bucketed.ego_compensated.{place}"]
    for name, values in (own["per_class"] | {"mean": own["mean"]}).items():
        assert all(map(same, found[name], values)), name
    three = metrics.bucketed_threeway(frames_of(path), limit)
    for name, values in stored[f"threeway_bucketed_pkg.ego_compensated.{place}"][
        "per_class"
    ].items():
        assert all(map(same, three[name], values)), name


@pytest.mark.parity
@synthetic_frames()
def test_opensceneflow(path):
    frames = frames_of(path)
    stored = json.loads(beside(path, "", ".json").read_text())
    three = metrics.opensceneflow_threeway(frames)
    for name, value in stored["opensceneflow.v1_threeway"].items():
        assert same(three[name], value, 1e-8), name
    buckets = metrics.opensceneflow_bucketed(frames)
    for name, values in stored["opensceneflow.v2_bucketed"].items():
        found = buckets["mean" if name == "Mean" else name]
        assert all(same(*pair, 1e-8) for pair in zip(found, values.values())), name
    ranges = metrics.range_scores(frames)
    for name, values in stored["opensceneflow.range_wise"].items():
        row = ranges["mean" if name == "Mean" else name]
        assert all(same(row[part], values[part], 1e-8) for part in row), name


@pytest.mark.parity
@pytest.mark.parametrize("path", fixture_files("flow/metrics_av2.json"), ids=lambda p: p.stem)
def test_square_and_circle_differ(path):
    stored = json.loads(path.read_text())
    official = stored["bucketed.ego_compensated.dist35"]["mean"][1]
    assert abs(official - stored["opensceneflow.v2_bucketed"]["Mean"]["Dynamic"]) > 1e-3


@pytest.mark.parametrize("path", real_data("argoverse2/pair.npz"), ids=lambda p: "pair")
def test_baselines_of_a_real_pair(path):
    from sparse3d.datasets.flow import read_npz_pair

    pair = read_npz_pair(path)
    stored = json.loads(path.with_name("baseline_metrics.json").read_text())
    for name, flow in (("zero", torch.zeros_like(pair.flow)), ("ego_only", pair.ego_flow)):
        frame = frame_of(Flow(flow, pair.ego_flow, pair))
        found = metrics.argoverse2_scores([frame])
        for key, value in stored[name].items():
            assert same(found[key], value, 2e-5), (name, key)


def test_metric_runs_every_protocol_and_leaves_the_ground_out():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(60, 3, generator=generator) * 40
    truth = torch.zeros(60, 3)
    truth[:20, 0] = 1.0
    ground = torch.arange(60) >= 50
    pair = SweepPair(
        points,
        points,
        flow=truth,
        ego_motion=torch.eye(4).double(),
        source_ground=ground,
        category=torch.where(torch.arange(60) < 30, 19, 0),
    )
    found = truth.clone()
    found[:20, 0] = 0.5
    found[50:] = 99.0
    metric = FlowMetric(protocols=PROTOCOLS)
    metric.process({}, [Flow(found, torch.zeros(60, 3), pair)])
    scores = metric.compute_metrics(metric.results)
    assert scores["moving/share"] == pytest.approx(0.5)
    assert scores["EPE3D"] == pytest.approx(20 * 0.5 / 50)
    assert scores["EPE/Foreground/Dynamic"] == pytest.approx(0.5)
    assert scores["bucketed/CAR/dynamic"] == pytest.approx(0.5)
    assert scores["opensceneflow/EPE_BS"] == 0 and "ranges/0-35/Static" in scores


def test_no_points_and_no_truth():
    empty = torch.zeros(0, 3)
    pair = SweepPair(empty, empty, flow=empty, meta={"sample_id": "x"})
    metric = FlowMetric()
    metric.process({}, [Flow(empty, empty, pair)])
    assert math.isnan(metric.compute_metrics(metric.results)["EPE3D"])
    with pytest.raises(ValueError, match="'x' has no true flow"):
        frame_of(Flow(empty, empty, SweepPair(empty, empty, meta={"sample_id": "x"})))
    with pytest.raises(ValueError, match="squares"):
        FlowMetric(protocols=["squares"])
