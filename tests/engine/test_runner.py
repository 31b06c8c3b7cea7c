import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sparse3d.engine import distributed
from sparse3d.engine.hooks import latest_checkpoint
from sparse3d.engine.optim import NotFiniteError
from sparse3d.engine.progress import read_log
from sparse3d.engine.runner import build_runner

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG = str(Path(__file__).with_name("toy_config.py"))


def train(work_dir, resume=False, amp=False, **options):
    runner = build_runner(CONFIG, work_dir, resume=resume, amp=amp, cfg_options=options)
    runner.train()
    return runner


def weights(path) -> dict:
    return torch.load(path, weights_only=True)["state_dict"]


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def log(work_dir) -> list[dict]:
    return [{k: v for k, v in e.items() if k != "seconds"} for e in read_log(work_dir)]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    """The work folder of a run never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def start_tool(work_dir, *more, **options):
    """tools/train.py as a process; ``more`` arguments, and values to replace in the config."""
    command = [sys.executable, "tools/train.py", CONFIG, "--work-dir", str(work_dir), *more]
    command += ["--cfg-options", *(f"{k}={v}" for k, v in options.items())] if options else []
    return subprocess.Popen(command, **surroundings())


def surroundings() -> dict:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return {
        "cwd": ROOT,
        "env": environment,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
    }


class Died(Exception):
    """Stands for a sudden end."""


@pytest.mark.parametrize("moment", ["epoch", "inside", "before validation", "at the last step"])
def test_a_resumed_run_equals_one_never_stopped(tmp_path, monkeypatch, whole_run, moment):
    stop = {"epoch": 12, "inside": 9, "before validation": 18, "at the last step": 17}[moment]
    runner = build_runner(CONFIG, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(Died):
        end_after(patch, runner, stop, moment == "before validation")
        runner.train()
    train(tmp_path, resume=True)
    for name in ("epoch_3.pth", "best.pth", "final.pth"):
        assert same(weights(tmp_path / name), weights(whole_run / name))
    assert log(tmp_path) == log(whole_run)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_change_nothing(tmp_path, whole_run, persistent):
    options = {"num_workers": 2, "persistent_workers": persistent}
    train(tmp_path, **{f"train_dataloader.{name}": value for name, value in options.items()})
    assert same(weights(tmp_path / "epoch_3.pth"), weights(whole_run / "epoch_3.pth"))


def end_after(patch, runner, stop: int, validating: bool) -> None:
    """Let ``runner`` die after ``stop`` iterations, as it trains on or as it validates."""
    forward = runner.model.forward

    def dying(batch, mode="loss"):
        done = runner.iter
        if done == stop and (mode == "predict") == validating:
            raise Died
        return forward(batch, mode)

    patch.setattr(runner.model, "forward", dying)


def test_killed_at_a_random_moment_and_resumed(tmp_path, whole_run):
    process = start_tool(tmp_path, **{"model.pause": 0.05})
    deadline = time.time() + 60
    while latest_checkpoint(tmp_path) is None and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(torch.rand(()).item() * 0.8)  # anywhere in the 18 iterations and 3 validations
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    train(tmp_path, resume=True)
    assert same(weights(tmp_path / "epoch_3.pth"), weights(whole_run / "epoch_3.pth"))
    assert log(tmp_path) == log(whole_run)


def test_resume_with_nothing_says_so_and_starts(tmp_path, whole_run, capsys):
    train(tmp_path, resume=True)
    assert "TRAINING STARTS ANEW" in "".join(capsys.readouterr())
    assert same(weights(tmp_path / "epoch_3.pth"), weights(whole_run / "epoch_3.pth"))


def test_a_new_run_does_not_resume_from_the_old_one_in_its_folder(tmp_path):
    train(tmp_path, **{"train_cfg.max_epochs": 1})
    runner = build_runner(CONFIG, tmp_path, cfg_options={"model.poison": "loss"})
    with pytest.raises(NotFiniteError):
        runner.train()
    assert latest_checkpoint(tmp_path) is None or latest_checkpoint(tmp_path).name != "epoch_1.pth"
    (aside,) = tmp_path.glob("before_*")
    assert latest_checkpoint(aside).name == "epoch_1.pth"
    assert {"log.jsonl", "final.pth", "best.pth"} <= {path.name for path in aside.iterdir()}


def test_the_words_of_the_training_are_noted(tmp_path):
    runner = build_runner(CONFIG, tmp_path, cfg_options={"train_cfg.max_epochs": 1})
    runner.train_dataloader.dataset.vocabulary = ["chair", "red"]
    runner.train()
    noted = torch.load(tmp_path / "final.pth", weights_only=True)["meta"]
    assert noted["words"] == ["chair", "red"]


def test_resume_refuses_another_batch_size(tmp_path):
    train(tmp_path, **{"train_cfg.max_epochs": 1})
    with pytest.raises(ValueError, match="iterations_per_epoch was 6 and is 3"):
        train(tmp_path, resume=True, **{"train_dataloader.batch_size": 4})


@pytest.mark.parametrize(
    ("poison", "message"), [("loss", "the loss is nan"), ("gradient", "gradients hold NaN")]
)
def test_not_finite_stops_before_the_weights_are_touched(tmp_path, poison, message):
    runner = build_runner(CONFIG, tmp_path, cfg_options={"model.poison": poison})
    seen = []
    runner.model.register_forward_pre_hook(
        lambda *_: seen.append({k: v.clone() for k, v in runner.model.named_parameters()})
    )
    with pytest.raises(NotFiniteError, match=rf"{message}.*iteration \d+ .*samples .*\b5\b"):
        runner.train()
    assert same(seen[-1], dict(runner.model.named_parameters()))


def test_mixed_precision_on_cpu(tmp_path):
    runner = train(tmp_path, amp=True)
    assert runner.model.dtypes == {torch.bfloat16}
    assert {p.dtype for p in runner.model.parameters()} == {torch.float32}
    assert runner.model.predicted == torch.float32, "validation stays exact"


@pytest.mark.parametrize("amp", [False, True])
def test_a_test_may_run_in_bfloat16(whole_run, tmp_path, amp):
    runner = build_runner(CONFIG, tmp_path, amp=amp, checkpoint=whole_run / "final.pth")
    assert runner.test()["samples"] == 7
    assert runner.model.predicted == (torch.bfloat16 if amp else torch.float32)


def test_only_the_newest_checkpoints_stay(whole_run, tmp_path):
    assert {p.name for p in whole_run.glob("*.pth")} == {
        "epoch_1.pth",
        "epoch_2.pth",
        "epoch_3.pth",
        "best.pth",
        "final.pth",
    }
    train(tmp_path, **{"default_hooks.checkpoint.max_keep_ckpts": 1})
    assert {p.name for p in tmp_path.glob("*.pth")} == {"epoch_3.pth", "best.pth", "final.pth"}


def test_one_cycle_follows_its_definition(whole_run):
    rates = {e["iter"]: e["lr"] for e in log(whole_run) if e["mode"] == "train"}
    first = torch.load(whole_run / "epoch_1.pth", weights_only=True)
    group = first["optimizer"]["param_groups"][0]
    # 18 iterations; after 6 of them (1/3 - 0.1) / 0.9 of the fall is done.
    part = torch.tensor((6 / 18 - 0.1) / 0.9 * torch.pi).cos()
    assert group["lr"] == pytest.approx(3e-9 + (3e-3 - 3e-9) * float(1 + part) / 2, rel=1e-5)
    assert group["betas"][0] == pytest.approx(0.95 - 0.10 * float(1 + part) / 2, rel=1e-5)
    assert max(rates.values()) <= 3e-3
    assert rates[18] < 1e-4


def two_processes(work_dir, *more) -> str:
    """Output of tools/train.py in two processes, which must end well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command += ["tools/train.py", CONFIG, "--work-dir", str(work_dir), "--launcher", "pytorch"]
    around = surroundings()
    around["env"]["CUDA_VISIBLE_DEVICES"] = ""  # there may be fewer GPUs than processes
    done = subprocess.run([*command, *more], timeout=600, check=False, **around)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"2 processes .* 1 GPUs"):
        distributed.start("pytorch")


def test_a_run_can_be_prolonged(tmp_path):
    train(tmp_path, **{"train_cfg.max_epochs": 1})
    train(tmp_path, resume=True, **{"train_cfg.max_epochs": 2})
    rates = [entry["lr"] for entry in log(tmp_path) if entry["mode"] == "train"]
    assert rates[2] < 1e-3 < rates[3]  # the cycle of two epochs has its middle here
    assert weights(tmp_path / "final.pth").keys() == weights(tmp_path / "epoch_2.pth").keys()


@pytest.mark.slow
def test_two_processes_count_every_sample_once_and_resume(tmp_path):
    two_processes(tmp_path / "whole")
    results = [entry for entry in log(tmp_path / "whole") if entry["mode"] == "val"]
    assert [(entry["samples"], entry["different"]) for entry in results] == [(7, 7)] * 3
    (tmp_path / "part").mkdir()
    shutil.copy(tmp_path / "whole" / "epoch_1.pth", tmp_path / "part")
    (tmp_path / "part" / "last_checkpoint").write_text("epoch_1.pth\n")
    two_processes(tmp_path / "part", "--resume")
    assert same(weights(tmp_path / "part/epoch_3.pth"), weights(tmp_path / "whole/epoch_3.pth"))
