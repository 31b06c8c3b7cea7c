"""Dense start against densified sparse points: quality by time and number, on held-out views.

Both train the same model on the same pictures in turns, mark by mark, and what is scheduled goes by
how many steps will fit into the time. Time is CPU time of this process (with --threads 1 the
wall time of an idle machine), or with a GPU, which then trains, wall time: making the start counts,
evaluating does not.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from mmengine.optim import OptimWrapper, build_optim_wrapper

import sparse3d.engine  # noqa: F401  registers what the configs name
from sparse3d.datasets.views import VIEW, ViewDataset
from sparse3d.engine.loops import seed_torch
from sparse3d.engine.runner import load_config
from sparse3d.engine.view_order import spread_order
from sparse3d.evaluation.images import psnr, similarity
from sparse3d.models.splatting import SplattingModel
from sparse3d.registry import DATASETS, MODELS
from sparse3d.structures import collate
from sparse3d.visualization.renderings import write_rendering

CONFIGS = {
    "edgs": "configs/splatting/edgs_colmap.py",
    "3dgs": "configs/splatting/3dgs_colmap.py",
    "mcmc": "configs/splatting/mcmc_colmap.py",
}
MARKS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Shares of the budget after which the test views are rendered."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COLORS = {"edgs": "tab:red", "3dgs": "tab:blue", "mcmc": "tab:green", "edgs, short": "tab:orange"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is trained, and for how long."""
    parser.add_argument("--data", nargs="+", type=Path, required=True, help="COLMAP folders")
    parser.add_argument("--methods", nargs="+", choices=CONFIGS, default=["edgs", "3dgs"])
    parser.add_argument("--budget", type=float, default=300, help="seconds of each (300)")
    parser.add_argument(
        "--short",
        type=float,
        help="train EDGS once more, as a whole training of this share of the budget (0.25)",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--pixels", type=int, help="reduce pictures to so many pixels")
    parser.add_argument(
        "--matches", type=int, default=15000, help="EDGS's, most per reference (15000)"
    )
    parser.add_argument(
        "--every", type=int, default=100, help="steps between two densifications (100)"
    )


def clock() -> float:
    """Seconds of this process; where a GPU trains, of the wall, once it has finished."""
    if DEVICE == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass
class Contest:
    """One method on one scene.

    Attributes:
        method, scene, seed: what it is.
        model, optimizer: in training.
        views: of the training.
        order: rows of these, without end.
        budget: seconds that it has.
        spent, stepping: seconds, in all and of the steps alone.
        curve: (seconds, PSNR, SSIM, Gaussians, step) at each mark.
    """

    method: str
    scene: str
    seed: int
    model: SplattingModel
    optimizer: OptimWrapper
    views: list
    order: Iterator[int]
    budget: float
    spent: float = 0.0
    stepping: float = 0.0
    curve: list[tuple] = field(default_factory=list)

    def train_until(self, share: float) -> None:
        """Train until this share of the budget is spent."""
        while self.spent < share * self.budget:
            began = clock()
            step = int(self.model.step)
            # What is scheduled goes by how many steps will fit into the time.
            left = (self.budget - self.spent) / (self.stepping / step if step else self.one_pass())
            self.model.steps = step + max(round(left), 1)
            stepping = clock()
            seed_torch(1_000_003 * self.seed + step)
            self.model.train_step(collate([self.views[next(self.order)]]), self.optimizer)
            self.stepping += clock() - stepping
            self.spent += clock() - began

    def one_pass(self) -> float:
        """Seconds of a step that changes nothing."""
        began = clock()
        data = self.model.data_preprocessor(collate([self.views[0]]), True)
        self.model.parse_losses(self.model(**data, mode="loss"))[0].backward()
        self.optimizer.zero_grad()
        return clock() - began

    def judge(self, test: ViewDataset) -> None:
        """Note how it does on the test views."""
        self.model.eval()
        found = [self.model.render(test[i].cameras[VIEW], test[i]) for i in range(len(test))]
        self.model.train()
        pairs = [(one.image.cpu(), one.sample.images[VIEW] / 255) for one in found]
        scores = [np.mean([judge(*pair) for pair in pairs]) for judge in (psnr, similarity)]
        self.curve.append((self.spent, *scores, len(self.model), int(self.model.step)))
        print(
            f"{self.scene} seed {self.seed} {self.method}: {self.spent:7.1f} s  psnr "
            f"{scores[0]:.2f}  ssim {scores[1]:.4f}  {len(self.model)} Gaussians, step "
            f"{int(self.model.step)}",
            flush=True,
        )


def open_contest(args, folder: Path, method: str, seed: int) -> tuple[Contest, ViewDataset]:
    """A method at its start, and the test views."""
    cfg = load_config(CONFIGS[method], {"data_root": str(folder)})
    options = {"most_pixels": args.pixels}
    train = DATASETS.build({**cfg.train_dataloader.dataset, **options})
    test = DATASETS.build({**cfg.test_dataloader.dataset, **options})
    if method == "edgs":
        cfg.model.start.update(matches=args.matches, seed=seed)
    else:
        cfg.model.strategy.every = args.every
    torch.manual_seed(seed)
    model = MODELS.build(cfg.model)
    views = [train[index] for index in range(len(train))]
    began = clock()
    model.begin(views, train.points, 1)
    model.to(DEVICE)
    spent = clock() - began
    optimizer = build_optim_wrapper(model, {**cfg.optim_wrapper, "type": "OptimWrapper"})
    poses = np.stack([view.cameras[VIEW].world_to_cam for view in views])
    order = spread_order(poses, torch.Generator().manual_seed(seed))
    contest = Contest(
        *(method, folder.name, seed, model.train(), optimizer, views, order, args.budget, spent)
    )
    contest.judge(test)
    return contest, test


def run(args: argparse.Namespace) -> list[dict]:
    """A row per method, scene and seed; curves and pictures beside --out."""
    warnings.simplefilter("ignore")
    contests = []
    for folder in args.data:
        for seed in args.seeds:
            opened = [open_contest(args, folder, method, seed) for method in args.methods]
            if args.short:
                opened.append(open_contest(args, folder, "edgs", seed))
                contest = opened[-1][0]
                contest.method, contest.budget = "edgs, short", args.short * args.budget
            for mark in MARKS:
                for contest, test in opened:
                    if contest.spent < mark * contest.budget:
                        contest.train_until(mark)
                        contest.judge(test)
            contests += [contest for contest, _ in opened]
            if args.out:
                write_pictures(args.out, opened)
                draw(contests, args.out.with_name(f"{args.out.stem}_curves.png"))
    return [row_of(contest) for contest in contests]


def row_of(contest: Contest) -> dict:
    """The end of a contest and its curve."""
    seconds, *scores, count, step = contest.curve[-1]
    return {
        "scene": contest.scene,
        "seed": contest.seed,
        "implementation": contest.method,
        "ms": 1000 * seconds,
        "psnr": float(scores[0]),
        "ssim": float(scores[1]),
        "gaussians": count,
        "steps": step,
        "curve": [[float(number) for number in point] for point in contest.curve],
    }


def time_to_reach(curve: list, wanted: float) -> float | None:
    """Seconds after which a curve first has the PSNR ``wanted``; None: never."""
    last = None
    for seconds, value, *_ in curve:
        if value >= wanted:
            if last is None or value == last[1]:
                return seconds
            share = (wanted - last[1]) / (value - last[1])
            return last[0] + share * (seconds - last[0])
        last = (seconds, value)
    return None


def summary(rows: list[dict]) -> list[str]:
    """EDGS against each other method."""
    lines = []
    for row in (r for r in rows if r["implementation"].startswith("edgs")):
        same = [r for r in rows if (r["scene"], r["seed"]) == (row["scene"], row["seed"])]
        for other in (r for r in same if not r["implementation"].startswith("edgs")):
            reached = time_to_reach(row["curve"], other["psnr"])
            end = other["curve"][-1][0]
            when = "never" if reached is None else f"{100 * reached / end:.0f} % of its time"
            share = 100 * row["curve"][-1][0] / end
            lines.append(
                f"{row['scene']} seed {row['seed']}: {row['implementation']} {row['psnr']:.2f} dB "
                f"with {row['gaussians']} Gaussians, {other['implementation']} "
                f"{other['psnr']:.2f} dB with {other['gaussians']}: "
                f"{row['psnr'] - other['psnr']:+.2f} dB in {share:.0f} % of its time; its final "
                f"PSNR reached in {when}, with "
                f"{100 * row['gaussians'] / other['gaussians']:.0f} % of its Gaussians"
            )
    return lines


def write_pictures(out: Path, opened: list[tuple[Contest, ViewDataset]]) -> None:
    """The first test view as each method shows it at the end."""
    for contest, test in opened:
        contest.model.eval()
        found = contest.model.render(test[0].cameras[VIEW], test[0])
        method = contest.method.replace(", ", "_")
        name = f"{out.stem}_{contest.scene}_{contest.seed}_{method}.png"
        write_rendering(found, out.with_name(name))


def draw(contests: list[Contest], path: Path) -> None:
    """PSNR and number of Gaussians by time, a row of axes per scene."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: pip install matplotlib draws one")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    scenes = list(dict.fromkeys(contest.scene for contest in contests))
    figure, axes = pyplot.subplots(
        len(scenes), 2, figsize=(11, 3.6 * len(scenes)), squeeze=False, layout="constrained"
    )
    for contest in contests:
        seconds, quality, _, count, _ = np.array(contest.curve).T
        pair = axes[scenes.index(contest.scene)]
        first = contest.seed == min(c.seed for c in contests)
        options = {"color": COLORS[contest.method], "label": contest.method if first else None}
        for axis, values, title in zip(pair, (quality, count), ("PSNR, dB", "Gaussians")):
            axis.plot(seconds, values, marker=".", **options)
            axis.set(xlabel="seconds, start included", ylabel=title, title=contest.scene)
            axis.grid(alpha=0.3)
            axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
