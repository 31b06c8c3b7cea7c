"""Checkpoints: read without running what they contain; load and write all or nothing."""

import os
import pickle
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from torch import Tensor, nn

METHODS = {
    HistoryBuffer: ("min", "max", "current", "mean"),
    OneCycleParamScheduler: ("_annealing_cos", "_annealing_linear"),
}
SHOWN = 8
"""Names listed of each kind of misfit."""


def read_checkpoint(path: str | Path) -> Any:
    """What ``path`` holds, on the CPU; plain data, tensors and mmengine's own records only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, cut off, no checkpoint, or holds other Python objects.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"checkpoint {path} {kind}; give the path of a .pth file")
    size = path.stat().st_size
    try:
        with torch.serialization.safe_globals(safe_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "unsupported" in str(error):
            raise ValueError(_unsafe_message(path)) from error
        raise ValueError(_broken_message(path, size, error)) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise ValueError(_broken_message(path, size, error)) from error


def safe_globals() -> list:
    """What mmengine's checkpoints need beyond torch's own list, for ``torch.serialization``."""
    numpy_types = [type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8", "bool", "u1")]
    array, scalar = np.asarray(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")  # before and since numpy 2
    return [
        HistoryBuffer,
        OneCycleParamScheduler,
        np.ndarray,
        np.dtype,
        *numpy_types,
        *((array, f"{module}._reconstruct") for module in modules),
        *((scalar, f"{module}.scalar") for module in modules),
        (_known_method, "builtins.getattr"),
    ]


def _known_method(owner: type, name: str):
    """Stands in for getattr: mmengine's records refer to a few of their own methods by it."""
    if name in METHODS.get(owner, ()):
        return getattr(owner, name)
    raise pickle.UnpicklingError(f"unsupported attribute {name} of {owner} in a checkpoint")


def load_weights(model: nn.Module, path: str | Path) -> dict[str, Any]:
    """Loads the weights in ``path`` into ``model``: all of them, or none.

    Args:
        model: built from the configuration that the weights belong to.
        path: a checkpoint of this toolkit (or of mmengine), or a plain state dict.

    Returns:
        What the checkpoint says about itself (its 'meta'), empty for a plain state dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, is of another toolkit, holds NaN or infinity, or does
            not fit the model, or has its classes in another order; the message names the first
            missing, unexpected or misshapen tensors.
    """
    checkpoint = read_checkpoint(path)
    state = _state_of(checkpoint, path)
    meta = (checkpoint.get("meta") or {}) if "state_dict" in checkpoint else {}
    if hasattr(model, "fit_to"):  # its tensors have as many rows as the scene that it holds
        model.fit_to(state)
    problems = _misfits(state, model.state_dict())
    if problems:
        origin = meta.get("config") or meta.get("experiment_name")
        source = f", which came from {origin}," if origin else ""
        raise ValueError(
            f"{path}{source} does not fit {type(model).__name__}; nothing was loaded:\n  "
            + "\n  ".join(problems)
            + "\nBuild the model from the configuration that the weights were trained with."
        )
    spoilt = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if spoilt:
        raise ValueError(
            f"{len(spoilt)} tensors in {path} hold NaN or infinity, the first is {spoilt[0]}: the "
            "training had diverged; take an earlier checkpoint. Nothing was loaded"
        )
    _compare_classes(meta, model, path)
    model.load_state_dict(state)
    return meta


def save_atomic(obj: Any, path: str | Path) -> None:
    """Writes ``obj`` to ``path``: a crash leaves the old file or the new one, never a part.

    Raises:
        OSError: it cannot be written; the message says how much room is left there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            torch.save(obj, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        refused = _refusal(error)
        if refused is None:
            raise
        beside.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            f"{path} cannot be written ({refused.strerror}): {free / 1e6:.1f} MB are free in "
            f"{path.parent}. What was written before stays; make room, then go on with --resume"
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    finally:
        os.close(folder)


def _refusal(error: BaseException | None) -> OSError | None:
    """The system's refusal to write behind an error, as torch's writer raises another upon it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def strip_prefix(state: Mapping[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    """``state`` without ``prefix`` where every name has it (a model saved inside a DDP wrapper)."""
    if state and all(name.startswith(prefix) for name in state):
        return {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return dict(state)


def _state_of(checkpoint: Any, path: str | Path) -> dict[str, Tensor]:
    if isinstance(checkpoint, Mapping) and "model_state" in checkpoint:
        raise ValueError(
            f"{path} is a checkpoint of OpenPCDet or DSVT; convert it first: python "
            f"tools/convert_checkpoint.py {path} OUTPUT --config CONFIG"
        )
    if isinstance(checkpoint, Mapping):
        state = checkpoint.get("state_dict", checkpoint)
        if _is_state(state):
            return strip_prefix(state)
    keys = (
        list(checkpoint)[:SHOWN] if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
    )
    raise ValueError(
        f"{path} holds no weights: it must hold a 'state_dict', or tensors by name, not {keys}"
    )


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(tensor, Tensor) for tensor in value.values())
    )


def _compare_classes(meta: Mapping, model: nn.Module, path: str | Path) -> None:
    """Refuses the model's classes in another order; warns of others, as one trains on them."""
    then, now = meta.get("class_names"), getattr(model, "class_names", None)
    if not then or not now:
        return
    text = f"{path} was trained for the classes {list(then)}, but the model's are {list(now)}"
    then, now = ([name.lower() for name in names] for names in (then, now))
    if then != now and sorted(then) == sorted(now):
        raise ValueError(f"{text}: give the config's class_names that order. Nothing was loaded")
    if then != now:
        warnings.warn(text, stacklevel=3)


def _misfits(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """A line or more for each kind of misfit; none if ``state`` fits."""
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    misshapen = [
        f"{name} {tuple(state[name].shape)}, the model has {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    lines = []
    for title, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", misshapen),
    ):
        if names:
            more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"{len(names)} {title}: {', '.join(names[:SHOWN])}{more}")
    return lines


def _broken_message(path: Path, size: int, error: Exception) -> str:
    reason = str(error).split(". ")[0].splitlines()[0] if str(error) else type(error).__name__
    return (
        f"checkpoint {path} ({size} bytes) cannot be read: it is cut off, or is no checkpoint "
        f"({reason}); copy or download it again"
    )


def _unsafe_message(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file of the old format; the names only make the message better
        names = []
    objects = f" ({', '.join(names[:SHOWN])})" if names else ""
    return (
        f"checkpoint {path} holds Python objects{objects} that could run code when read; if you "
        "trust it, save its state_dict alone with torch.save where it was made"
    )
