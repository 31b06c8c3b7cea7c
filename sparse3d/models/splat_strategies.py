"""How the number of Gaussians changes while they are trained.

A strategy is asked after every step. Its moments are shares of the whole training, so that a short
run does in its measure what the published 30,000 steps do; beside each stands the published step.
"""

import math

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparse3d.registry import MODELS

from .splat_rows import append_rows, forget_rows, keep_rows, parameters


def due(step: int, every: int) -> bool:
    """Whether something done every so many steps is done after step ``step`` (from 0)."""
    return (step + 1) % every == 0


@MODELS.register_module()
class Pruning(nn.Module):
    """EDGS: none is added; all fade slowly, and those that nothing holds up are removed.

    Args:
        prune_below: opacity under which a Gaussian goes.
        prune_every: steps between two prunings; EDGS: 1.
        fade: every ten steps log(fade) is added to every opacity logit, times the model's
            ``haste``: opacities are learnt as much faster in a short training, and what they do not
            need must fade as fast as before beside that.
        until: share of the training after which nothing more happens (EDGS: step 15,000).
    """

    absgrad = False

    def __init__(
        self,
        prune_below: float = 0.005,
        prune_every: int = 10,
        fade: float = 0.99,
        until: float = 0.5,
    ):
        super().__init__()
        self.prune_below = prune_below
        self.prune_every = prune_every
        self.fade = math.log(fade)
        self.until = until

    def after_step(
        self, model: nn.Module, optimizer: Optimizer, meta: dict, step: int, steps: int
    ) -> None:
        """Fade and prune."""
        if step >= self.until * steps:
            return
        if due(step, 10):
            model.opacities.data += self.fade * model.haste
        if due(step, self.prune_every):
            prune(model, optimizer, model.opacities.detach().sigmoid() >= self.prune_below)


@MODELS.register_module()
class Densification(nn.Module):
    """3DGS: Gaussians that the pictures pull about are cloned or split, transparent ones removed.

    Args:
        grow_gradient: mean gradient of the place in the picture, in half pictures, that asks for
            more.
        small: largest deviation, in extents of the scene, of those cloned and not split.
        large: beyond this many extents one is removed, once opacities have been reset.
        prune_below: opacity under which a Gaussian goes.
        start: share of the training before which nothing happens (3DGS: step 500).
        until: share after which nothing happens (15,000).
        every: steps between two changes (100).
        reset: share between two resets of all opacities to twice ``prune_below`` (3,000 steps);
            0: never, which is what gsplat 1.5.3 does.
        absgrad: sum absolute gradients of the pixels, as AbsGS; raise ``grow_gradient`` then.

    Source: Kerbl et al. 2023; the rules of gsplat's DefaultStrategy.
    """

    def __init__(
        self,
        grow_gradient: float = 2e-4,
        small: float = 0.01,
        large: float = 0.1,
        prune_below: float = 0.005,
        start: float = 1 / 60,
        until: float = 0.5,
        every: int = 100,
        reset: float = 0.0,
        absgrad: bool = False,
    ):
        super().__init__()
        self.grow_gradient = grow_gradient
        self.small, self.large = small, large
        self.prune_below = prune_below
        self.start, self.until = start, until
        self.every = every
        self.reset = reset
        self.absgrad = absgrad
        self.register_buffer("pull", torch.zeros(0))
        self.register_buffer("seen", torch.zeros(0))

    def after_step(
        self, model: nn.Module, optimizer: Optimizer, meta: dict, step: int, steps: int
    ) -> None:
        """Note the gradients, and change the Gaussians when it is time."""
        if step >= self.until * steps:
            return
        self._note(model, meta)
        if step >= self.start * steps and due(step, self.every):
            self._grow(model, optimizer)
            keep = model.opacities.detach().sigmoid() >= self.prune_below
            if self.reset and step > self.reset * steps:
                widest = model.scales.detach().exp().amax(1)
                keep &= widest <= self.large * float(model.extent)
            prune(model, optimizer, keep)
            self.pull = torch.zeros_like(model.opacities.data)
            self.seen = torch.zeros_like(self.pull)
        if self.reset and due(step, max(round(self.reset * steps), 1)):
            most = math.log(2 * self.prune_below / (1 - 2 * self.prune_below))
            model.opacities.data.clamp_(max=most)
            forget_opacities(model, optimizer)

    def _note(self, model: nn.Module, meta: dict) -> None:
        if len(self.pull) != len(model.opacities):
            self.pull = torch.zeros_like(model.opacities.data)
            self.seen = torch.zeros_like(self.pull)
        means2d = meta["means2d"]
        gradient = means2d.absgrad if self.absgrad else means2d.grad
        if gradient is None:
            return
        half = gradient.new_tensor([meta["width"] / 2, meta["height"] / 2])
        norm = (gradient[0] * half).norm(dim=1)
        visible = (meta["radii"][0] > 0).all(1)
        self.pull[visible] += norm[visible]
        self.seen[visible] += 1

    def _grow(self, model: nn.Module, optimizer: Optimizer) -> None:
        wanted = self.pull / self.seen.clamp(min=1) > self.grow_gradient
        room = model.room()
        if int(wanted.sum()) > room:  # those that are pulled hardest
            order = (self.pull / self.seen.clamp(min=1)).argsort(descending=True)
            wanted = torch.zeros_like(wanted)
            wanted[order[:room]] = True
        large = model.scales.detach().exp().amax(1) > self.small * float(model.extent)
        copies = rows_of(model, wanted & ~large)
        split = wanted & large
        halves = split_rows(rows_of(model, split))
        keep = torch.cat([~split, split.new_ones(len(copies["means"]))])
        append_rows(model, optimizer, copies)
        keep_rows(model, optimizer, keep)
        append_rows(model, optimizer, halves)


@MODELS.register_module()
class MonteCarlo(nn.Module):
    """3DGS-MCMC: dead Gaussians move onto living ones, the number grows by 5 % up to the cap.

    Args:
        growth: most Gaussians are this many times those of before.
        most: cap of the number; the model's own cap if lower.
        noise: strength of the random walk, in learning rates of the means.
        least_opacity: at most this opaque is dead.
        start, until, every: as in ``Densification`` (500, 25,000, 100).

    Source: Kheradmand et al. 2024; the rules of gsplat's MCMCStrategy.
    """

    absgrad = False

    def __init__(
        self,
        most: int = 1_000_000,
        growth: float = 1.05,
        noise: float = 5e5,
        least_opacity: float = 0.005,
        start: float = 1 / 60,
        until: float = 5 / 6,
        every: int = 100,
    ):
        super().__init__()
        self.most = most
        self.growth = growth
        self.noise = noise
        self.least_opacity = least_opacity
        self.start, self.until = start, until
        self.every = every

    def after_step(
        self, model: nn.Module, optimizer: Optimizer, meta: dict, step: int, steps: int
    ) -> None:
        """Move the dead, add some, and shake all."""
        if self.start * steps <= step < self.until * steps and due(step, self.every):
            opacity = model.opacities.detach().sigmoid()
            dead = (opacity <= self.least_opacity).nonzero()[:, 0]
            self._copy_onto(model, optimizer, opacity, dead)
            wanted = min(self.most, int(self.growth * len(opacity))) - len(opacity)
            wanted = min(wanted, model.room())
            if wanted > 0:
                self._add(model, optimizer, wanted)
        self._shake(model, optimizer)

    def _copy_onto(self, model, optimizer, opacity: Tensor, dead: Tensor) -> None:
        alive = opacity > self.least_opacity
        if not len(dead) or not alive.any():
            return
        source = torch.multinomial(opacity * alive, len(dead), replacement=True)
        self._share(model, source)
        for parameter in parameters(model).values():
            parameter.data[dead] = parameter.data[source]
        forget_rows(model, optimizer, torch.cat([dead, source]))

    def _add(self, model, optimizer, count: int) -> None:
        source = torch.multinomial(model.opacities.detach().sigmoid(), count, replacement=True)
        self._share(model, source)
        forget_rows(model, optimizer, source)
        append_rows(model, optimizer, rows_of(model, source))

    def _share(self, model, source: Tensor) -> None:
        """Make the Gaussians ``source`` such that they and their copies look as they did alone."""
        copies = torch.bincount(source, minlength=len(model.opacities)) + 1
        rows = copies.gt(1).nonzero()[:, 0]
        opacity, scales = shared(
            model.opacities.detach()[rows].sigmoid(),
            model.scales.detach()[rows].exp(),
            copies[rows],
        )
        opacity = opacity.clamp(self.least_opacity, 1 - 1e-6)
        model.opacities.data[rows] = torch.logit(opacity)
        model.scales.data[rows] = scales.log()

    def _shake(self, model, optimizer: Optimizer) -> None:
        group = next(g for g in optimizer.param_groups if g["params"][0] is model.means)
        opacity = model.opacities.detach().sigmoid()
        weight = torch.sigmoid(-100 * (opacity - 0.005)) * group["lr"] * self.noise
        step = turn(model.quats.detach()) * model.scales.detach().exp()[:, None]
        noise = torch.randn_like(model.means) * weight[:, None]
        model.means.data += (step @ (step.transpose(1, 2) @ noise[..., None]))[..., 0]


def shared(opacity: Tensor, scales: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity [N] and deviations [N, 3] of each of ``copies`` [N] (at most 51) Gaussians in one.

    Source: 3DGS-MCMC, equation 9.
    """
    copies = copies.clamp(max=51)
    each = 1 - (1 - opacity).pow(1 / copies)
    total = torch.zeros_like(opacity, dtype=torch.float64)
    for i in range(int(copies.max()) if len(copies) else 0):
        for k in range(i + 1):
            term = math.comb(i, k) * (-1) ** k / math.sqrt(k + 1) * each.double() ** (k + 1)
            total += torch.where(i < copies, term, 0.0)
    factor = (opacity / total.clamp(min=1e-12)).float()
    return each, scales * factor[:, None]


def turn(quats: Tensor) -> Tensor:
    """[N, 3, 3] rotations of ``quats`` [N, 4] (w, x, y, z) of any length."""
    w, x, y, z = (quats / quats.norm(dim=1, keepdim=True).clamp(min=1e-12)).unbind(1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, 1).reshape(-1, 3, 3)


def rows_of(model: nn.Module, rows: Tensor) -> dict[str, Tensor]:
    """Copies of the Gaussians ``rows``, a mask or an index."""
    return {name: parameter.data[rows].clone() for name, parameter in parameters(model).items()}


def split_rows(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two in place of each: drawn from it, with deviations divided by 1.6."""
    deviation = rows["scales"].exp().repeat(2, 1)
    out = {name: torch.cat([value, value]) for name, value in rows.items()}
    shift = turn(out["quats"]) @ (deviation * torch.randn_like(deviation))[..., None]
    out["means"] = out["means"] + shift[..., 0]
    out["scales"] = out["scales"] - math.log(1.6)
    return out


def prune(model: nn.Module, optimizer: Optimizer, keep: Tensor) -> None:
    """``keep_rows``, of which one at least stays."""
    if keep.all():
        return
    if not keep.any():
        keep[model.opacities.detach().argmax()] = True
    keep_rows(model, optimizer, keep)


def forget_opacities(model: nn.Module, optimizer: Optimizer) -> None:
    """Empty the optimizer's memory of the opacities."""
    for value in optimizer.state.get(model.opacities, {}).values():
        if isinstance(value, Tensor) and value.dim():
            value.zero_()
