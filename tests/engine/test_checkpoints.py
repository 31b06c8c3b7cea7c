import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler import OneCycleLR
from torch import nn

from sparse3d.engine.checkpoints import load_weights, read_checkpoint, save_atomic, strip_prefix


def net(width=4, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width, bias=bias), nn.BatchNorm1d(width))


def fresh():
    model = net()
    for p in model.parameters():
        nn.init.constant_(p, 7.0)
    return model


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Payload:
    """Runs code when unpickled by a reader that is not careful."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Attribute:
    """Reaches for an attribute by way of the getattr that mmengine's checkpoints need."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, "__init__")


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "ddp", "plain ddp"])
def test_weights_come_back(tmp_path, wrap):
    state = net().state_dict()
    plain = wrap.startswith("plain")
    if wrap.endswith("ddp"):
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    path = tmp_path / "a.pth"
    meta = {"config": "configs/x.py", "epoch": 3}
    save_atomic(state if plain else {"state_dict": state, "meta": meta}, path)
    model = fresh()
    assert load_weights(model, path) == ({} if plain else meta)
    assert same(model.state_dict(), net().state_dict())


def test_what_mmengine_writes_can_be_read(tmp_path):
    """Its log records, numpy numbers and schedules; not mere plain data."""
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    optimizer = torch.optim.SGD(net().parameters(), 0.1)
    schedule = OneCycleLR(optimizer, eta_max=0.1, total_steps=4)
    checkpoint = {
        "state_dict": net().state_dict(),
        "meta": {"experiment_name": "trial", "eta": np.float64(0.5), "count": np.int64(3)},
        "message_hub": {"log_scalars": {"train/loss": history}},
        "param_schedulers": [schedule.state_dict()],
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    values, counts = found["message_hub"]["log_scalars"]["train/loss"].data
    assert values.tolist() == [1, 2]
    assert counts.tolist() == [1, 1]
    schedule.load_state_dict(found["param_schedulers"][0])
    assert load_weights(fresh(), tmp_path / "a.pth")["count"] == 3


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", [Payload, Attribute])
def test_code_in_a_checkpoint_is_not_run(tmp_path, kind, zipped):
    target = tmp_path / "made by the payload"
    content = Payload(target) if kind is Payload else Attribute()
    path = tmp_path / "a.pth"
    state = {"state_dict": net().state_dict(), "meta": content}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="could run code"):
        read_checkpoint(path)
    assert not target.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_off_file_is_named(tmp_path, share):
    path = tmp_path / "cut.pth"
    save_atomic({"state_dict": net(64).state_dict()}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.pth \(\d+ bytes\) cannot be read"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "content", [b"<html>404</html>", b"\x00" * 100, b"version https://git-lfs"]
)
def test_what_is_no_checkpoint_is_named(tmp_path, content):
    (tmp_path / "page.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"page\.pth .* cannot be read"):
        read_checkpoint(tmp_path / "page.pth")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
        read_checkpoint(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (net(bias=False), r"1 missing: 0\.bias"),
        (nn.Sequential(*net(), nn.Linear(4, 2)), r"2 unexpected: 2\.weight, 2\.bias"),
        (net(width=5), r"6 of another shape: 0\.weight \(5, 3\), the model has \(4, 3\)"),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_weights_of_another_model_are_refused_whole(tmp_path, other, says):
    meta = {"config": "configs/other.py"}
    save_atomic({"state_dict": other.state_dict(), "meta": meta}, tmp_path / "a.pth")
    model = fresh()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=says) as error:
        load_weights(model, tmp_path / "a.pth")
    assert "configs/other.py" in str(error.value)
    assert "nothing was loaded" in str(error.value)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_of_a_diverged_training_are_refused(tmp_path, value):
    state = net().state_dict()
    state["1.running_mean"][2] = float(value)
    save_atomic({"state_dict": state}, tmp_path / "a.pth")
    model = fresh()
    with pytest.raises(ValueError, match=r"1 tensors in .* the first is 1\.running_mean"):
        load_weights(model, tmp_path / "a.pth")
    assert (model[0].weight == 7).all()


def test_a_published_checkpoint_is_referred_to_the_converter(tmp_path):
    save_atomic({"model_state": net().state_dict()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"convert_checkpoint\.py"):
        load_weights(net(), tmp_path / "a.pth")


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, [1, 2], torch.zeros(3), {"state_dict": {"a": 1}}]
)
def test_files_without_weights_are_refused(tmp_path, content):
    save_atomic(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        load_weights(net(), tmp_path / "a.pth")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "folder" / "a.pth"
    save_atomic({"epoch": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        save_atomic({"epoch": lambda: None}, path)
    assert read_checkpoint(path) == {"epoch": 1}
    assert [file.name for file in path.parent.iterdir()] == ["a.pth"]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.pth"
    save_atomic({"epoch": 1}, path)
    program = (
        "import os, sys, torch\n"
        "from sparse3d.engine import checkpoints\n"
        "real = torch.save\n"
        "def dies(obj, file):\n"
        "    real(obj, file)\n"
        "    file.truncate(file.tell() // 2)\n"
        "    os._exit(1)\n"
        "torch.save = dies\n"
        "checkpoints.save_atomic({'epoch': 2}, sys.argv[1])\n"
    )
    root = Path(__file__).resolve().parents[2]
    run = subprocess.run([sys.executable, "-c", program, str(path)], cwd=root, check=False)
    assert run.returncode == 1
    assert read_checkpoint(path) == {"epoch": 1}


def test_a_prefix_goes_only_where_all_have_it():
    assert strip_prefix({"module.a": 1, "module.b": 2}) == {"a": 1, "b": 2}
    assert strip_prefix({"module.a": 1, "b": 2}) == {"module.a": 1, "b": 2}
    assert strip_prefix({}) == {}


def test_a_full_disk_is_said_and_leaves_the_former_file(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.pth"
    save_atomic({"a": torch.ones(3)}, path)
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, most))  # refuses as a full disk does
    try:
        with pytest.raises(OSError, match=r"a\.pth cannot be written .* MB are free .*--resume"):
            save_atomic({"a": torch.ones(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]
    assert torch.equal(read_checkpoint(path)["a"], torch.ones(3))
