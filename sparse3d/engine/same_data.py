"""Which data a training is of: noted in its checkpoints, compared when it is resumed."""

import hashlib
from pathlib import Path


def data_of(dataset) -> dict[str, str]:
    """Where the data lie and what they are; empty for a data set that cannot say it.

    Args:
        dataset: one with ``data_root`` and ``contents()``, as those of sparse3d.datasets.
    """
    root, contents = getattr(dataset, "data_root", None), getattr(dataset, "contents", None)
    if root is None or contents is None:
        return {}
    digest = hashlib.sha256()
    for part in contents():
        digest.update(len(part).to_bytes(8, "little") + part)
    return {"data_root": str(Path(root).resolve()), "contents": digest.hexdigest()}


def compare_data(then: dict[str, str], now: dict[str, str], checkpoint: str | Path) -> str | None:
    """What to say where the same data lie elsewhere now; None where there is nothing to say.

    Args:
        then: ``data_of`` the training that wrote the checkpoint; empty for an old one.
        now: ``data_of`` the training that would go on with it.
        checkpoint: named in the message.

    Raises:
        ValueError: the data are others.
    """
    if not then or not now or then == now:
        return None
    if then["contents"] == now["contents"]:
        return f"the data were in {then['data_root']} and are now in {now['data_root']}"
    if then["data_root"] == now["data_root"]:
        difference = f"other data of {now['data_root']} (changed, or chosen otherwise, since then)"
    else:
        difference = f"data_root {then['data_root']}, not of {now['data_root']}"
    raise ValueError(
        f"cannot resume {checkpoint}: it is a training of {difference}; give the data that it "
        "began with, or another --work-dir to train on these"
    )
