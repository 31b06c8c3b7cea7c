"""Values of a config that mmengine and torch take as they come, and fail on without naming them."""

from typing import Any

from mmengine.config import Config

DICTS = (
    *(f"{phase}_{part}" for phase in ("train", "val", "test") for part in ("dataloader", "cfg")),
    *("model", "optim_wrapper", "default_hooks", "custom_imports", "env_cfg", "randomness"),
)
WHOLE = (
    *(f"{phase}_dataloader.batch_size" for phase in ("train", "val", "test")),
    *(f"{phase}_dataloader.num_workers" for phase in ("train", "val", "test")),
    *("train_cfg.max_epochs", "train_cfg.val_interval", "train_cfg.val_begin", "randomness.seed"),
)


def check_kinds(cfg: Config) -> None:
    """Refuses what is no dict, or no whole number, where one must be; None is for what is absent.

    Raises:
        ValueError: names the first such value.
    """
    for path in (*DICTS, *WHOLE):
        value = _value(cfg, path)
        kind, wanted = (dict, "a dict") if path in DICTS else (int, "a whole number")
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{path} is {value!r}; it must be {wanted}")


def _value(cfg: Any, path: str) -> Any:
    """What stands at a dotted ``path``; None where nothing does."""
    for name in path.split("."):
        cfg = cfg.get(name) if isinstance(cfg, (dict, Config)) else None
    return cfg
