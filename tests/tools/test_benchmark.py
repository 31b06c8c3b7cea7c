"""tools/benchmark.py from the command line."""

import json

import pytest
import torch

from tools.benchmark import benchmarks, main
from tools.benchmarks.sparse_conv import COLUMNS


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def measured(tmp_path, *arguments) -> dict:
    """What one command writes, on scenes of a hundredth of the points."""
    out = tmp_path / "numbers.json"
    common = ["--scale", "0.01", "--rounds", "1", "--threads", "1", "--out", str(out)]
    main([*arguments, *common])
    assert out.with_suffix(".png").exists()
    return json.loads(out.read_text())


def test_sparse_conv_writes_every_column_for_every_pass(tmp_path, capsys):
    scene = ["--channels=4", "--scenes=lidar", "--no-peers", "--dtypes=float32"]
    found = measured(tmp_path, "sparse_conv", *scene, "--sizes", "500", "1000", "2000")
    assert set(found) == {"machine", "rows"}
    assert found["machine"]["threads"] == 1 and found["machine"]["cpu"]
    assert all(tuple(row) == COLUMNS for row in found["rows"])
    seen = {(row["workload"], row["pass"], row["order"]) for row in found["rows"]}
    assert {"build", "forward", "forward_backward"} == {what for _, what, _ in seen}
    workloads = {name for name, _, _ in seen}
    assert {"lidar submanifold", "lidar strided", "lidar inverse", "scaling 500"} <= workloads
    assert {order for _, _, order in seen} == {"sorted", "random"}
    by_name = {row["implementation"] for row in found["rows"]}
    assert by_name <= {"native", "reference", "roofline"} and "roofline" in by_name
    for row in found["rows"]:
        assert row["ms"] > 0 and row["voxels"] > 100
        assert row["pass"] == "build" or "BackBone" in row["workload"] or row["gflops"] > 0
    shown = capsys.readouterr().out
    assert "exponent of ms over voxels, build" in shown and "native / roofline" in shown
    assert "memory of a forward" in shown


def test_operators_are_timed_in_both_implementations(tmp_path):
    rows = measured(tmp_path, "ops")["rows"]
    by_workload = {}
    for row in rows:
        by_workload.setdefault(row["workload"], set()).add(row["implementation"])
    assert len(by_workload) > 4
    assert all(names == {"native", "reference"} for names in by_workload.values())


def test_every_benchmark_says_what_it_measures():
    found = benchmarks()
    assert {"sparse_conv", "ops", "detector"} <= set(found) and "common" not in found
    assert all(found.values())


@pytest.mark.parametrize(
    "words,answer", [(["sparse_conv", "--dtypes", "int8"], "bfloat16"), (["speed"], "sparse_conv")]
)
def test_an_unknown_word_is_answered_with_the_known_ones(words, answer, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert answer in capsys.readouterr().err
