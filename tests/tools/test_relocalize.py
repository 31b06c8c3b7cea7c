"""tools/relocalize.py from building to evaluating, on a painted corner."""

import json

import cv2
import numpy as np
import pytest

from tests.models.relocalization.corner import K, photograph, pictures, pose
from tools import relocalize


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Mapping pictures and two queries as a COLMAP-free folder in the form of 7-Scenes."""
    root = tmp_path_factory.mktemp("scene")
    views = {"train": [], "test": []}
    for name, image, camera in pictures():
        views["train"].append((f"seq-01/{name}", image, camera.world_to_cam.numpy()))
    for number, roll in enumerate((0.1, -0.2)):
        matrix = pose(1.5 + 0.2 * number, 1.8, roll)
        views["test"].append((f"seq-02/{number}.png", photograph(matrix), matrix))
    for split, rows in views.items():
        lines = []
        for name, image, matrix in rows:
            (root / name).parent.mkdir(exist_ok=True)
            larger = cv2.copyMakeBorder(image, 120, 120, 160, 160, cv2.BORDER_CONSTANT)
            cv2.imwrite(str(root / name), larger)
            lines.append(
                " ".join(
                    [name, *map(str, wxyz(matrix[:3, :3])), *map(str, matrix[:3, 3]), str(K[0, 0])]
                )
            )
        (root / f"pgt_sfm_{split}.txt").write_text("\n".join(lines) + "\n")
    return root


def wxyz(turn: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(
        np.array(
            [
                [turn[0, 0] - turn[1, 1] - turn[2, 2], 0, 0, 0],
                [turn[0, 1] + turn[1, 0], turn[1, 1] - turn[0, 0] - turn[2, 2], 0, 0],
                [
                    turn[0, 2] + turn[2, 0],
                    turn[1, 2] + turn[2, 1],
                    turn[2, 2] - turn[0, 0] - turn[1, 1],
                    0,
                ],
                [
                    turn[2, 1] - turn[1, 2],
                    turn[0, 2] - turn[2, 0],
                    turn[1, 0] - turn[0, 1],
                    np.trace(turn),
                ],
            ]
        )
    )
    x, y, z, w = vectors[:, values.argmax()]
    return np.array([w, x, y, z])


def run(*words) -> None:
    relocalize.main([str(word) for word in words])


def test_from_pictures_to_numbers(scene, tmp_path, capsys):
    full, small = tmp_path / "map.npz", tmp_path / "small.npz"
    run("build", scene, full, "--landmarks", 120, "--rank", 32, "--calibrate", 2)
    run("compress", full, small, "--modes", 1, "--rank", 16, "--no-frames")
    run("info", small)
    assert "120 landmarks" in capsys.readouterr().out
    assert small.stat().st_size < full.stat().st_size / 10
    for place, out in ((full, "full.json"), (small, "small.json")):
        run("evaluate", place, scene, "--out", tmp_path / out)
        results = json.loads((tmp_path / out).read_text())
        assert results["recall_5cm_5deg"] == 100 and results["failures"] == 0
        assert results["map_mb"] == pytest.approx(place.stat().st_size / 1e6)
        assert "colour camera" in results["ground_truth"]
        assert results["all/pose_set_asked"] == 0.9
    capsys.readouterr()
    query = (full, scene / "seq-02" / "0.png", "--focal", K[0, 0])
    run("query", *query)
    assert "world to camera" in capsys.readouterr().out


def test_a_query_of_another_place_ends_with_code_2(scene, tmp_path, capsys):
    run("build", scene, tmp_path / "map.npz", "--kind", "mean", "--landmarks", 100)
    cv2.imwrite(str(tmp_path / "q.png"), photograph(pose(1.5, 1.8), seed=9))
    with pytest.raises(SystemExit) as end:
        run("query", tmp_path / "map.npz", tmp_path / "q.png", "--focal", K[0, 0])
    assert end.value.code == 2
    assert "no pose" in capsys.readouterr().out


def test_mistakes_are_named(scene, tmp_path):
    with pytest.raises(ValueError, match="--views is 0; it must be 1 or more"):
        run("build", scene, tmp_path / "map.npz", "--views", 0)
    with pytest.raises(ValueError, match="is a folder: name a file"):
        run("build", scene, tmp_path)
    run("build", scene, tmp_path / "map.npz", "--kind", "mean", "--landmarks", 100)
    cv2.imwrite(str(tmp_path / "q.jpg"), photograph(pose(1.5, 1.8)))
    whole = (tmp_path / "q.jpg").read_bytes()
    (tmp_path / "q.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"q\.jpg is cut off: copy it again"):
        run("query", tmp_path / "map.npz", tmp_path / "q.jpg", "--focal", K[0, 0])
