"""Runner assembly: mmengine's runner, made to work on CPU, to resume exactly and to be quiet."""

import copy
import itertools
import logging
import platform
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import barrier, is_main_process
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import (
    DATA_SAMPLERS,
    EVALUATOR,
    FUNCTIONS,
    LOOPS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    Registry,
)
from mmengine.runner import Runner as MMRunner
from mmengine.visualization import Visualizer
from torch import nn

from sparse3d.registry import SCOPE
from sparse3d.structures import collate

from . import distributed
from .checkpoints import SHOWN, load_weights, read_checkpoint, save_atomic
from .config_kinds import check_kinds
from .hooks import FINAL, POINTER, latest_checkpoint
from .loops import TrainLoop
from .optim import NotFiniteError
from .progress import LOG, cut_log, read_log
from .same_data import compare_data, data_of

# mmengine looks for our scope in each of its registries and warns about every one without it.
_SCOPED = [
    Registry(parent.name, parent=parent, scope=SCOPE)
    for parent in (
        DATA_SAMPLERS,
        EVALUATOR,
        FUNCTIONS,
        LOOPS,
        OPTIM_WRAPPER_CONSTRUCTORS,
        OPTIM_WRAPPERS,
        OPTIMIZERS,
        PARAM_SCHEDULERS,
    )
]
_RUNNERS = itertools.count()
PARTS = (
    *(f"{phase}_{part}" for phase in ("train", "val", "test") for part in ("dataloader", "cfg")),
    *("model", "optim_wrapper", "param_scheduler", "val_evaluator", "test_evaluator"),
    *("default_hooks", "custom_hooks", "custom_imports", "default_scope", "env_cfg"),
    *(
        "auto_scale_lr",
        "find_unused_parameters",
        "load_from",
        "log_level",
        "randomness",
        "work_dir",
    ),
)
"""What a config says at its top level; other names there are variables of its own."""
NOISE = ("has no metainfo", "Failed to search registry", "prefix is not set")


class Runner(MMRunner):
    """mmengine's Runner with checkpoints of plain data, exact resumption and processes on CPU."""

    def build_logger(self, log_level="INFO", log_file=None, **kwargs) -> MMLogger:
        """Everything goes to the log file, warnings also to the console."""
        logger = super().build_logger(log_level, log_file, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.setLevel(logging.WARNING)
                handler.addFilter(
                    lambda record: not any(text in record.getMessage() for text in NOISE)
                )
        return logger

    def build_visualizer(self, visualizer=None) -> Visualizer:
        """mmengine wants one; pictures are made by sparse3d.visualization."""
        return Visualizer.get_instance(self._experiment_name)

    def _log_env(self, env_cfg: dict) -> None:
        self.logger.info(
            f"python {platform.python_version()}, torch {torch.__version__}, "
            f"mmengine {mmengine.__version__}, {platform.platform()}, seed {self.seed}, "
            f"{self.world_size} processes of {torch.get_num_threads()} threads"
        )

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """The model on its device, wrapped when there are several processes."""
        if not self.distributed:
            return super().wrap_model(None, revert_sync_batchnorm(model))
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        return distributed.wrap(model, self.cfg.get("find_unused_parameters", False))

    @staticmethod
    def build_dataloader(dataloader, seed=None, diff_rank_seed=False):
        """As mmengine's, with batches of Samples and no workers kept where there are none."""
        if isinstance(dataloader, dict):
            dataloader = copy.deepcopy(dataloader)
            dataloader.setdefault("collate_fn", collate)
            if not dataloader.get("num_workers"):
                dataloader.pop("persistent_workers", None)
        return MMRunner.build_dataloader(dataloader, seed, diff_rank_seed)

    def build_train_loop(self, loop):
        """The resumable loop over epochs.

        Raises:
            ValueError: train_cfg asks for training by iterations.
        """
        if not isinstance(loop, dict) or "type" in loop:
            return super().build_train_loop(loop)
        loop = dict(loop)
        if not loop.pop("by_epoch", True):
            raise ValueError("train_cfg has by_epoch=False; training goes by epochs: max_epochs=N")
        return TrainLoop(**loop, runner=self, dataloader=self._train_dataloader)

    def train(self) -> nn.Module:
        """Train.

        Raises:
            FileNotFoundError: the config has no training data.
        """
        self._need("train")
        return super().train()

    def test(self) -> dict:
        """Test; returns the metrics.

        Raises:
            FileNotFoundError: the config has no data to test on.
        """
        self._need("test")
        return super().test()

    def _need(self, phase: str) -> None:
        if self.cfg.get(f"{phase}_dataloader") is None:
            raise FileNotFoundError(
                f"{self.cfg.filename} names no data to {phase} on: give it a {phase}_dataloader, "
                "or take another config of its folder as an example"
            )

    # ------------------------------------------------------------------ checkpoints

    @cached_property
    def config_text(self) -> str:
        """The config as a file would have it; formatting it takes a while."""
        return self.cfg.pretty_text

    @cached_property
    def training_data(self) -> dict[str, str]:
        """Which data the training is of; finding it out can load a sample."""
        return data_of(self.train_dataloader.dataset)

    @property
    def bare_model(self) -> nn.Module:
        """The model without its wrapper."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    def save_checkpoint(
        self, out_dir, filename, *args, meta: dict | None = None, by_epoch: bool = True, **kwargs
    ) -> None:
        """Write weights, optimizer, schedules and counters as plain data, in one step.

        Args:
            out_dir, filename: where.
            meta: more to note.
            by_epoch: called at the end of an epoch (before it is counted), not of an iteration.

        Raises:
            NotFiniteError: a weight or running statistic is NaN or infinite; nothing is written.
        """
        if not is_main_process():
            return
        state = {k: v.cpu() for k, v in self.bare_model.state_dict().items()}
        spoilt = [name for name, tensor in state.items() if not tensor.isfinite().all()]
        if spoilt:
            raise NotFiniteError(
                f"{len(spoilt)} tensors of the model hold NaN or infinity, the first is "
                f"{spoilt[0]}: {filename} is not written and older checkpoints stay; look at the "
                "last samples (tools/prepare_data.py check) or lower the learning rate"
            )
        counters = (
            {"epoch": self.epoch + 1, "iter": self.iter}
            if by_epoch
            else {"epoch": self.epoch, "iter": self.iter + 1}
        )
        checkpoint = {
            "meta": {
                **counters,
                **(meta or {}),
                "seed": self.seed,
                "processes": self.world_size,
                "iterations_per_epoch": len(self.train_dataloader),
                "data": self.training_data,
                "words": getattr(self.train_dataloader.dataset, "vocabulary", []),
                "class_names": list(getattr(self.bare_model, "class_names", ())),
                "config": self.cfg.filename,
                "config_text": self.config_text,
            },
            "state_dict": state,
            "optimizer": self.optim_wrapper.state_dict(),
            "param_schedulers": [s.state_dict() for s in self.param_schedulers or []],
        }
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        save_atomic(checkpoint, Path(out_dir) / filename)

    def load_checkpoint(self, filename, *args, **kwargs) -> None:
        """Weights alone, of a file of ours or a published one."""
        load_weights(self.bare_model, filename)
        self._has_loaded = True

    def load_or_resume(self) -> None:
        """Resume the newest checkpoint of the work folder, or load weights, or neither."""
        if self._has_loaded:
            return
        if self._train_loop is None:
            super().load_or_resume()
            return
        found = latest_checkpoint(self.work_dir) if self._resume else None
        if found is not None:
            self.resume(found)
            return
        if self._resume:
            self.logger.warning(
                f"--resume: there is no checkpoint in {self.work_dir}; TRAINING STARTS ANEW"
            )
        if self._load_from is not None:
            self.load_checkpoint(self._load_from)
        barrier()  # the weights may be those of the old run
        if is_main_process():
            self._set_aside_old_run()
        barrier()

    def _set_aside_old_run(self) -> None:
        """A new run in a used folder neither resumes from the old one nor writes over it."""
        folder = Path(self.work_dir)
        patterns = (POINTER, LOG, FINAL, "best.pth", "epoch_*.pth", "iter_*.pth")
        old = [path for pattern in patterns for path in folder.glob(pattern)]
        if not old:
            return
        aside = folder / f"before_{self.timestamp}"
        aside.mkdir(exist_ok=True)
        for path in old:
            path.rename(aside / path.name)
        self.logger.warning(
            f"{folder} held another run, now in {aside}; to go on with it, --resume with "
            f"--work-dir {aside}"
        )

    def resume(self, filename, *args, **kwargs) -> None:
        """Continue where the checkpoint ``filename`` was written.

        Raises:
            ValueError: the data or the number of processes is not that of the checkpoint.
        """
        checkpoint = read_checkpoint(filename)
        meta = checkpoint["meta"]
        moved = compare_data(meta.get("data", {}), self.training_data, filename)
        if moved:
            self.logger.warning(moved)
        present = {
            "seed": self.seed,
            "processes": self.world_size,
            "iterations_per_epoch": len(self.train_dataloader),
        }
        changed = [
            f"{name} was {meta[name]} and is {value}"
            for name, value in present.items()
            if meta[name] != value
        ]
        if changed:
            raise ValueError(
                f"cannot resume {filename}: {'; '.join(changed)}. Use what the run began with, or "
                f"begin a new one from its weights: --cfg-options load_from={filename}"
            )
        self.bare_model.load_state_dict(checkpoint["state_dict"])
        self.optim_wrapper.load_state_dict(checkpoint["optimizer"])
        for scheduler, state in zip(self.param_schedulers or [], checkpoint["param_schedulers"]):
            scheduler.load_state_dict(state)
        loop = self.train_loop
        loop._epoch, loop._iter, loop.resumed = meta["epoch"], meta["iter"], True
        if is_main_process():
            cut_log(self.work_dir, meta["iter"])
        barrier()
        self.call_hook("after_resume", checkpoint=checkpoint)
        self._has_loaded = True
        self.logger.warning(f"resumed {filename}: epoch {meta['epoch']}, iteration {meta['iter']}")

    def has_validated(self, epoch: int) -> bool:
        """Whether the log has the results after ``epoch`` epochs."""
        return any(e["mode"] == "val" and e["epoch"] == epoch for e in read_log(self.work_dir))


def load_config(cfg: Config | str | Path, cfg_options: dict[str, Any] | None = None) -> Config:
    """A config from its file, with single values replaced (``key.inner=value`` pairs).

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no config, or a name at its top level is misspelt or without effect.
    """
    if isinstance(cfg, (str, Path)):
        if not Path(cfg).is_file():
            raise FileNotFoundError(f"no config {str(cfg)!r}; those delivered lie in configs/")
        try:
            cfg = Config.fromfile(cfg)
        except Exception as error:  # a config is a program: anything can go wrong in it
            raise ValueError(
                f"config {cfg} cannot be read ({type(error).__name__}: {error})"
            ) from error
    else:
        cfg = copy.deepcopy(cfg)
    cfg_options = dict(cfg_options or {})
    if "data_root" in cfg_options and isinstance(cfg.get("data_root"), str):
        _move_data(cfg, str(cfg_options.pop("data_root")))
    for name in cfg_options:
        if name.split(".")[0] not in PARTS:
            meant = _paths_to(cfg, name.split(".")[-1])[:SHOWN]
            remedy = f"a name must begin with one of {', '.join(PARTS)}"
            if meant:
                remedy = f"did you mean {' or '.join(meant)}?"
            raise ValueError(f"--cfg-options sets {name!r}, which would change nothing: {remedy}")
    cfg.merge_from_dict(cfg_options)
    for name in cfg:
        close = get_close_matches(name, PARTS, 1, 0.88)
        if name not in PARTS and close:
            raise ValueError(
                f"{cfg.filename} sets {name!r}, which means nothing; did you mean {close[0]!r}? (a "
                "variable of your own needs a name less like it)"
            )
    check_kinds(cfg)
    return cfg


def _paths_to(cfg: Config, key: str) -> list[str]:
    """Where ``key`` stands within the parts of a config, as --cfg-options names it."""

    def below(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name == key:
                    yield f"{path}.{name}"
                yield from below(inner, f"{path}.{name}")

    return [path for part in PARTS if part in cfg for path in below(cfg[part], part)]


def _move_data(cfg: Config, root: str) -> None:
    """Put ``root`` wherever the config's own variable data_root stands, or begins a path."""
    old = cfg.data_root

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: moved(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(moved(inner) for inner in value)
        if isinstance(value, str) and (value == old or value.startswith(old + "/")):
            return root + value[len(old) :]
        return value

    for name in list(cfg):
        cfg[name] = moved(cfg[name])


def model_config(cfg: Config) -> ConfigDict:
    """The model's part of a config.

    Raises:
        ValueError: there is none.
    """
    if not cfg.get("model"):
        raise ValueError(f"{cfg.filename} has no model: it must set model = dict(type=...)")
    return cfg.model


def build_runner(
    cfg: Config | str | Path,
    work_dir: str | Path | None = None,
    resume: bool = False,
    amp: bool = False,
    launcher: str = "none",
    cfg_options: dict[str, Any] | None = None,
    checkpoint: str | Path | None = None,
) -> Runner:
    """A runner for ``cfg``: call train(), val() or test().

    Args:
        cfg: a config, or its file.
        work_dir: where checkpoints and logs go; the config's, or work_dirs/<its name>.
        resume: go on from the newest checkpoint in ``work_dir``.
        amp: bfloat16 in the forward pass of training and of testing, not of validation.
        launcher: 'none', or 'pytorch' under torchrun.
        cfg_options: single values to replace in the config.
        checkpoint: weights to load.

    Raises:
        ValueError: the config has no model, or trains for no number of epochs.
        KeyError: the type of the optimizer is unknown.
    """
    cfg = load_config(cfg, cfg_options)
    model_config(cfg)
    name = Path(cfg.filename).stem if cfg.filename else "run"
    cfg.work_dir = str(work_dir or cfg.get("work_dir") or Path("work_dirs") / name)
    cfg.setdefault("default_scope", SCOPE)
    cfg.resume, cfg.launcher = resume, launcher
    if checkpoint is not None:
        cfg.load_from = str(checkpoint)
    if cfg.get("randomness", {}).get("seed") is None:
        cfg.randomness = {**cfg.get("randomness", {}), "seed": 0}
    if cfg.get("optim_wrapper"):
        kind = cfg.optim_wrapper.optimizer.type
        if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:
            raise KeyError(f"{kind} is not in the optimizer registry")  # mmengine would not say so
        cfg.optim_wrapper.type = "CheckedOptimWrapper"
        if amp:
            cfg.optim_wrapper.precision = "bfloat16"
    _complete_phases(cfg)
    if amp and cfg.test_cfg is not None:
        cfg.test_cfg = {**cfg.test_cfg, "fp16": True}  # mmengine's name; bfloat16 on a CPU
        torch.set_autocast_dtype("cuda", torch.bfloat16)  # and what it takes on a GPU
    epochs = (cfg.get("train_cfg") or {"max_epochs": 1}).get("max_epochs")
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"train_cfg.max_epochs is {epochs!r}; it must be 1 or more")
    distributed.start(launcher)
    cfg.experiment_name = f"{name}_{next(_RUNNERS)}"  # mmengine shares loggers of one name
    return Runner.from_cfg(cfg)


def _complete_phases(cfg: Config) -> None:
    """The test is as the validation where the config does not say; a phase without data is none."""
    for part in ("dataloader", "evaluator"):
        if cfg.get(f"test_{part}") is None and cfg.get(f"val_{part}") is not None:
            cfg[f"test_{part}"] = copy.deepcopy(cfg[f"val_{part}"])
    if cfg.get("train_dataloader") is None:
        cfg.train_cfg = cfg.optim_wrapper = cfg.param_scheduler = None
    for phase in ("val", "test"):
        missing = cfg.get(f"{phase}_dataloader") is None
        cfg[f"{phase}_cfg"] = None if missing else cfg.get(f"{phase}_cfg") or {}
        if missing:
            cfg[f"{phase}_evaluator"] = None
