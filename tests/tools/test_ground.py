"""tools/ground.py on small rooms: an answer, a picture, and clear words on bad input."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sparse3d.datasets.scan_files import read_scan
from sparse3d.datasets.world.rooms import make_rooms
from sparse3d.models.text import HashedWords
from sparse3d.structures.ply import write_ply
from sparse3d.visualization.grounding import draw_answer
from sparse3d.visualization.report import write_image
from tools import ground

CUBE = np.array([(x, y, z) for z in (0, 1) for x, y in ((1, 1), (0, 1), (0, 0), (1, 0))], float)
pytestmark = pytest.mark.filterwarnings("ignore:no weights")


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    root = tmp_path_factory.mktemp("rooms")
    return make_rooms(root, "one", {"val": 1}, points=4000, sentences=2) / "val" / "000000.npz"


@pytest.fixture
def ask(tmp_path):
    """Runs the tool on a scene; the picture that it writes."""

    def run(scene, sentence="the red chair", *more: str):
        out = tmp_path / "answer.png"
        ground.main([str(scene), sentence, "--out", str(out), "--points", "3000", *more])
        return out

    return run


def test_answer_and_picture(room, ask, capsys):
    number = read_scan(room).ids[0]
    picture = ask(room, "the red chair next to the door", "--truth", str(number))
    said = capsys.readouterr().out
    assert "box: centre" in said and "score: 0." in said and picture.stat().st_size > 5000
    first = picture.read_bytes()
    assert ask(room, "the red chair next to the door", "--truth", str(number)).read_bytes() == first


def test_scans_of_all_kinds_hold_the_same_points(room, tmp_path):
    points = read_scan(room).points
    np.save(tmp_path / "a.npy", points)
    np.savez(
        tmp_path / "b.npz", xyz=points[:, :3], rgb=np.round(255 * points[:, 3:]), inst=0, sem=0
    )
    table = np.zeros(len(points), [(a, "f4") for a in "xyz"])
    for k, axis in enumerate("xyz"):
        table[axis] = points[:, k]
    write_ply(tmp_path / "c.ply", {"vertex": table})
    assert np.array_equal(read_scan(tmp_path / "a.npy").points, points)
    assert np.allclose(read_scan(tmp_path / "b.npz").points, points, atol=1e-6)
    with pytest.warns(UserWarning, match="has no colours"):
        plain = read_scan(tmp_path / "c.ply")
    assert np.array_equal(plain.points[:, :3], points[:, :3]) and len(plain.boxes) == 0


def test_one_point(tmp_path, ask, capsys):
    np.save(tmp_path / "one.npy", np.array([[0.1, 0.2, 0.3, 0.5, 0.5, 0.5]]))
    assert ask(tmp_path / "one.npy").exists()
    assert "wrote" in capsys.readouterr().out


def test_millimetres_are_warned_of(room, tmp_path, ask):
    points = read_scan(room).points[:50] * [1000, 1000, 1000, 1, 1, 1]
    np.save(tmp_path / "big.npy", points)
    with pytest.warns(UserWarning, match="look like millimetres"):
        ask(tmp_path / "big.npy")


@pytest.mark.parametrize("sentence", ["qwzx flurb gnarg", "the chair " * 5000], ids=["odd", "long"])
def test_odd_sentences_are_answered(room, ask, sentence):
    assert ask(room, sentence).exists()


@pytest.mark.parametrize(
    ("sentence", "more", "match"),
    [
        ("  ", (), "the sentence is empty"),
        ("a chair", ("--truth", "999"), "--truth is 999; the scene's objects are"),
        ("a chair", ("--config", "configs/none.py"), "no config"),
    ],
)
def test_bad_questions_are_refused(room, ask, sentence, more, match):
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        ask(room, sentence, *more)


def test_bad_scans_are_refused(room, tmp_path, ask):
    np.save(tmp_path / "flat.npy", np.zeros(7))
    np.save(tmp_path / "none.npy", np.zeros((0, 6)))
    (tmp_path / "cut.npz").write_bytes(room.read_bytes()[:900])
    (tmp_path / "cut.ply").write_bytes(b"ply\nformat binary_little_endian 1.0\n")
    (tmp_path / "a.obj").write_text("v 0 0 0")
    for name, match in (
        ("flat.npy", r"shape \(7,\)"),
        ("none.npy", "holds no points"),
        ("cut.npz", "cut.npz cannot be read"),
        ("cut.ply", "is no ply file"),
        ("a.obj", r"ends in '\.obj'"),
        ("absent.ply", "there is no scan"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            ask(tmp_path / name)


@pytest.mark.parametrize("count", [0, 1, 500])
def test_picture_of_any_number_of_points(count, tmp_path):
    points = np.random.default_rng(0).random((count, 6))
    found = CUBE if count else np.zeros((0, 3))
    words = [("word", 1.0)] * 40 if count else []
    image = draw_answer(points, found, 0.5, [points[:, :3], points[:1, :3]], words, CUBE)
    assert image.dtype == np.uint8 and image.shape[1] == 1580
    write_image(tmp_path / "a.png", image)
    if count > 1:
        assert (image == np.array([255, 150, 40])).all(2).any()


def test_words_that_no_training_had_are_named():
    model = SimpleNamespace(text=HashedWords(8, 16))
    meta = {"words": ["chair", "red", "the"]}
    with pytest.warns(UserWarning, match="never seen 'rote', 'stuhl' in its training"):
        ground.warn_of_unknown("the rote Stuhl", meta, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ground.warn_of_unknown("The red chair!", meta, model)
        ground.warn_of_unknown("der rote Stuhl", {}, model)  # an old checkpoint
        pretrained = SimpleNamespace(text=torch.nn.Identity())  # knows more than its sentences
        ground.warn_of_unknown("the crimson chair", meta, pretrained)
