"""What trains landmark volumes: loss, per-node Adam, and the loop over all landmarks at once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sparse3d.ops.volume import RaySettings, ray_weights, total_variation_gradient


def render_loss(found: Tensor, target: Tensor, transmittance: Tensor, angle: bool) -> Tensor:
    """[...] loss of FaVoR, meaned over rays and channels.

    Args:
        found: [..., R, C] rendered descriptors.
        target: [..., R, C] seen ones.
        transmittance: [..., R] of the rays; its entropy draws it to 0 or 1.
        angle: add the cosine's part, as from the third step on.
    """
    mean = (found - target).square().mean((-2, -1))
    left = transmittance.clamp(1e-6, 1 - 1e-6)
    entropy = -(left * left.log() + (1 - left) * (1 - left).log()).mean(-1)
    loss = mean + 0.1 * entropy
    if angle:
        loss = loss + 0.2 * (1 - F.cosine_similarity(found, target, dim=-1)).mean(-1)
    return loss


class NodeAdam(torch.optim.Optimizer):
    """Adam with a rate of its own for every element.

    Args:
        params: as for any optimizer; a group may hold 'share', a tensor that multiplies the rate.
        lr: rate.
        betas: decay of the two moments.
        eps: added to the root of the second moment before the bias is corrected.
    """

    def __init__(self, params, lr: float, betas=(0.9, 0.99), eps: float = 1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "share": None})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            first, second = group["betas"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["step"] = 0
                    state["mean"], state["square"] = (torch.zeros_like(param) for _ in range(2))
                state["step"] += 1
                mean, square = state["mean"], state["square"]
                mean.mul_(first).add_(param.grad, alpha=1 - first)
                square.mul_(second).addcmul_(param.grad, param.grad, value=1 - second)
                n = state["step"]
                rate = group["lr"] * (1 - second**n) ** 0.5 / (1 - first**n)
                change = mean / (square.sqrt() + group["eps"])
                if group["share"] is not None:
                    change = change * group["share"]
                param.sub_(change, alpha=rate)


@dataclass(frozen=True, eq=False)
class Views:
    """What M landmarks looked like: R rays each, padded.

    Attributes:
        origins: [M, R, 3] camera centres, world metres.
        directions: [M, R, 3].
        targets: [M, R, C] descriptors seen along them.
        present: [M, R] bool.
    """

    origins: Tensor
    directions: Tensor
    targets: Tensor
    present: Tensor


@dataclass(frozen=True)
class Schedule:
    """How volumes are trained; far shorter than FaVoR's, whose gain it keeps.

    Attributes:
        density: where all nodes start: opaque enough that rays end inside.
        steps: of the optimizer.
        rays: per landmark and step.
        density_lr: rate of the densities.
        feature_lr: rate of the descriptors.
        smooth_from: share of the steps after which total variation joins in.
        smooth: its weight.
        ridge: weight of the features' mean square, per view; it keeps unseen sides like the start.
        seed: of the choice of rays.
    """

    density: float = 5.0
    steps: int = 150
    rays: int = 16
    density_lr: float = 0.1
    feature_lr: float = 0.02
    smooth_from: float = 0.75
    smooth: float = 0.1
    ridge: float = 0.1
    seed: int = 0


def train_volumes(
    views: Views,
    lower: Tensor,
    upper: Tensor,
    plain: Tensor,
    rank: int,
    schedule: Schedule = Schedule(),
    settings: RaySettings | None = None,
    report: Callable[[float, str], None] = lambda share, text: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Trains M volumes of 3 x 3 x 3 nodes together.

    Args:
        views: what they should look like.
        lower: [M, 3] corners of their boxes.
        upper: [M, 3].
        plain: [M, C] what they look like with empty nodes; rendered nodes are added to the first
            channels, as many as ``rank``.
        rank: channels of the nodes.
        schedule: how.
        settings: of the rays; FaVoR's if None.
        report: is told the share that is done and a line.

    Returns:
        Densities [M, 3, 3, 3], features [M, 27, rank] and each landmark's last loss [M].
    """
    count, width = views.present.shape
    settings = settings or RaySettings()
    density = torch.full((count, 3, 3, 3), schedule.density).requires_grad_()
    features = torch.zeros(count, 27, rank).requires_grad_()
    share = _counted(views, lower, upper, density.detach(), settings)
    optimizer = NodeAdam(
        [
            {"params": [density], "lr": schedule.density_lr, "share": share},
            {"params": [features], "lr": schedule.feature_lr},
        ],
        lr=schedule.density_lr,
    )
    random = torch.Generator().manual_seed(schedule.seed)
    known = views.present.float().clamp(min=1e-9)
    seen = views.present.sum(1).clamp(min=1)
    loss = torch.zeros(count)
    for step in range(schedule.steps):
        if width > schedule.rays:
            rows = torch.multinomial(known, schedule.rays, replacement=True, generator=random)
        else:
            rows = torch.arange(width).expand(count, width)
        wide = rows[..., None].expand(-1, -1, 3)
        weights = ray_weights(
            views.origins.gather(1, wide),
            views.directions.gather(1, wide),
            *(lower, upper, density, None, None, settings),
        )
        target = views.targets.gather(1, rows[..., None].expand(-1, -1, plain.shape[1]))
        change = F.pad(weights.nodes @ features, (0, plain.shape[1] - rank))
        found = plain[:, None] + change
        present = views.present.gather(1, rows)
        loss = _masked_loss(found, target, weights.transmittance, present, step > 1)
        loss = loss + schedule.ridge / seen * features.square().sum((1, 2)) / plain.shape[1]
        optimizer.zero_grad()
        loss.sum().backward()
        if step >= schedule.smooth_from * schedule.steps:
            _smooth(density, features, schedule.smooth, known)
        optimizer.step()
        report((step + 1) / schedule.steps, f"training {count} landmarks, loss {loss.mean():.4f}")
    return density.detach(), features.detach(), loss.detach()


def _counted(views, lower, upper, density, settings) -> Tensor:
    """[M, 3, 3, 3] share of its landmark's most seen node that each node's views make."""
    with torch.no_grad():
        weights = ray_weights(
            views.origins, views.directions, lower, upper, density, None, None, settings
        )
        seen = (weights.nodes * views.present[..., None] > 1e-3).sum(1).clamp(max=100).float()
    share = seen / seen.amax(1, keepdim=True).clamp(min=1)
    return share.view(-1, 3, 3, 3)


def _masked_loss(found, target, left, present, angle) -> Tensor:
    """[M] ``render_loss`` over the rays that are there."""
    found = torch.where(present[..., None], found, target)
    left = torch.where(present, left, 0.0)
    scale = present.shape[1] / present.sum(1).clamp(min=1)
    return render_loss(found, target, left, angle) * scale


def _smooth(density: Tensor, features: Tensor, weight: float, known: Tensor) -> None:
    """Adds the gradient of total variation to both."""
    views = (known > 0.5).sum(1).clamp(min=1)
    weight = weight / views * 3 / features.shape[-1] / 6
    density.grad += weight[:, None, None, None] * total_variation_gradient(density.detach())
    grid = features.detach().mT.reshape(len(features), -1, 3, 3, 3)
    change = total_variation_gradient(grid).flatten(2).mT
    features.grad += weight[:, None, None] * change
