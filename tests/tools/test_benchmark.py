"""tools/benchmark.py from the command line."""

import json

import pytest
import torch

from tools.benchmark import COLUMNS, main


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
    return json.loads(out.read_text())


def test_sparse_conv_writes_every_column_for_every_pass(tmp_path):
    found = measured(
        tmp_path,
        "sparse_conv",
        "--channels=4",
        "--scenes=lidar",
        "--no-peers",
        "--orders",
        "lexicographic",
        "random",
    )
    assert found["machine"]["threads"] == 1 and found["machine"]["cpu"]
    assert all(tuple(row) == COLUMNS for row in found["rows"])
    seen = {(row["workload"], row["pass"], row["order"]) for row in found["rows"]}
    assert {"index", "forward", "forward_backward"} == {what for _, what, _ in seen}
    assert {"lidar submanifold", "lidar strided", "lidar inverse"} == {name for name, _, _ in seen}
    timed = [row for row in found["rows"] if row["pass"] != "index"]
    assert {row["order"] for row in timed} == {"lexicographic", "random"}
    for row in timed:
        assert row["ms"] > 0 and row["gflops"] >= 0 and row["voxels"] > 100
        assert row["in_channels"] in (4, 32, 64) and row["dtype"] == "float32"


def test_operators_are_timed_in_both_implementations(tmp_path):
    rows = measured(tmp_path, "ops")["rows"]
    by_workload = {}
    for row in rows:
        by_workload.setdefault(row["workload"], set()).add(row["implementation"])
    assert len(by_workload) > 4
    assert all(names == {"native", "reference"} for names in by_workload.values())


def test_an_unknown_dtype_is_answered_with_the_known_ones(tmp_path, capsys):
    with pytest.raises(SystemExit):
        measured(tmp_path, "sparse_conv", "--dtypes", "int8")
    assert "bfloat16" in capsys.readouterr().err
