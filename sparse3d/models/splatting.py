"""SplattingModel: a scene of Gaussians that learns to look like its photographs."""

import warnings
from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from sparse3d.ops.splat import rasterization
from sparse3d.ops.ssim import ssim
from sparse3d.registry import MODELS
from sparse3d.structures import Batch, Camera, Gaussians, Rendering, Sample, SparsePoints

from .dense_start.photographs import scene_extent
from .preprocessor import BatchPreprocessor
from .splat_rows import NAMES, keep_rows, parameters

BYTES_PER_FLOAT = 4
COPIES = 8
"""Floats held for each number of a Gaussian in training: itself, gradient, two moments, work."""
PUBLISHED_STEPS = 30_000
"""Steps of the training that 3DGS's and EDGS's learning rates are for."""
SETTLED = 0.1
"""Share of a rate that is left when the training has settled."""


@MODELS.register_module()
class SplattingModel(BaseModel):
    """Gaussians of one place. ``begin`` makes them of the data; training and testing follow.

    The number of Gaussians belongs to the weights: a checkpoint of any number can be loaded.

    Args:
        start: config of what the Gaussians begin as.
        strategy: config of how their number changes.
        sh_degree: highest degree of the colours' spherical harmonics.
        degree_every: share of the training after which the degree rises by one (3DGS: 1,000 of
            30,000 steps).
        ssim_weight: of the structural similarity in the loss; the rest is the mean difference.
        scale_weight: of the Gaussians' mean deviation, in extents of the scene, in the loss (as
            3DGS-MCMC, which has 0.01, in world units). What no picture needs shrinks, instead of
            standing about where other views will see it.
        final_rate: share of the means' learning rate that is left at the end; it falls evenly in
            its logarithm.
        hold_rate: share of the training through which that rate stays at the value that it has at
            the end of this share (EDGS: 8,000 of 30,000 steps).
        rate_power: rates are those of 30,000 steps; a training of fewer multiplies all of them by
            30,000 / steps to this power. 0: as published, whatever the length. The model sets
            rates itself: schedulers of the optimizer have no say.
        settle: share of the training, its end, through which all rates fall to a tenth, evenly in
            their logarithm. 0: only the means' rate falls, as published.
        background: rgb in 0..1 where nothing is; 'mean': the mean colour of the photographs;
            'random': that, but another at each step of the training, so that no surface can be a
            hole of the background's colour: for places that are closed all around. Elsewhere it
            costs quality.
        antialiased: opacities fall by what the pixel's width adds to a Gaussian (Mip-Splatting).
        exposure: learn a gain and an offset of every training photograph's colours, which are
            none in the mean: pictures of other views have the photographs' mean exposure.
        most_gaussians: cap of their number; None: none.
        memory_gb: cap of what they and their training take, GB; None: none.
    """

    def __init__(
        self,
        start: Mapping,
        strategy: Mapping,
        sh_degree: int = 3,
        degree_every: float = 1 / 30,
        ssim_weight: float = 0.2,
        scale_weight: float = 0.0,
        final_rate: float = 0.01,
        hold_rate: float = 0.0,
        rate_power: float = 0.0,
        settle: float = 0.0,
        background: Sequence[float] | str = (0, 0, 0),
        antialiased: bool = False,
        exposure: bool = False,
        most_gaussians: int | None = None,
        memory_gb: float | None = None,
    ):
        super().__init__(data_preprocessor=BatchPreprocessor())
        self.start = MODELS.build(start)
        self.strategy = MODELS.build(strategy)
        self.sh_degree = sh_degree
        self.degree_every = degree_every
        self.ssim_weight = ssim_weight
        self.scale_weight = scale_weight
        self.final_rate, self.hold_rate = final_rate, hold_rate
        if scale_weight < 0:
            raise ValueError(f"scale_weight is {scale_weight}; it must be 0 or more")
        if rate_power < 0 or not 0 <= settle <= 1:
            raise ValueError(
                f"rate_power is {rate_power} and settle {settle}; they must be 0 or more, and 0..1"
            )
        self.rate_power, self.settle = rate_power, settle
        self.mode = "antialiased" if antialiased else "classic"
        self.most = _cap(most_gaussians, memory_gb, sh_degree)
        self.steps = 1
        self.meta: dict = {}
        for name, tensor in Gaussians.empty(sh_degree).tensors().items():
            setattr(self, name, nn.Parameter(tensor))
        self.names: list[str] = []
        self.exposure = nn.Parameter(torch.zeros(0, 3, 4)) if exposure else None
        if isinstance(background, str) and background not in ("mean", "random"):
            raise ValueError(f"background is {background!r}; it must be rgb, 'mean' or 'random'")
        self.random_background = background == "random"
        self.mean_background = isinstance(background, str)
        color = (0, 0, 0) if self.mean_background else tuple(background)
        self.register_buffer("background", torch.tensor(color, dtype=torch.float32))
        self.register_buffer("extent", torch.ones(()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_load_state_dict_pre_hook(lambda _, state, *others: self.fit_to(state))

    # ------------------------------------------------------------------ the Gaussians

    def __len__(self) -> int:
        return len(self.means)

    @property
    def gaussians(self) -> Gaussians:
        """The present scene, without gradients."""
        return Gaussians(*(getattr(self, name).detach() for name in NAMES))

    @torch.no_grad()
    def set_gaussians(self, gaussians: Gaussians) -> None:
        """Replace all; colours are brought to the model's degree."""
        wanted = (self.sh_degree + 1) ** 2 - 1
        rest = gaussians.shN[:, :wanted]
        missing = rest.new_zeros(len(gaussians), wanted - rest.shape[1], 3)
        tensors = {**gaussians.tensors(), "shN": torch.cat([rest, missing], 1)}
        for name, tensor in tensors.items():
            parameter = getattr(self, name)
            parameter.data = tensor.clone().to(parameter)

    def fit_to(self, state: Mapping[str, Tensor]) -> None:
        """Give each tensor as many rows as it has in ``state``, a state dict of this model."""
        for name, own in (*self.named_parameters(), *self.named_buffers()):
            other = state.get(name)
            if other is not None and own.dim() == other.dim() and own.shape[1:] == other.shape[1:]:
                own.data = own.new_zeros(other.shape)

    def room(self) -> int:
        """How many Gaussians may still be added."""
        return 2**40 if self.most is None else max(self.most - len(self), 0)

    def begin(self, samples: list[Sample], points: SparsePoints, steps: int) -> dict[str, float]:
        """Make the Gaussians of photographs and sparse points; what there is to say of it.

        Args:
            samples: the training views.
            points: of the whole place; may be none.
            steps: of the training.

        Raises:
            ValueError: the start cannot work on these views, or hardly any sees a Gaussian.
        """
        if not samples:
            raise ValueError("there is no photograph to begin from; one at least is needed")
        cameras = [_view(sample)[0] for sample in samples]
        gaussians, report = self.start(samples, points, self.sh_degree, self.most)
        bad = ~gaussians.finite()
        if bad.any():
            warnings.warn(f"{int(bad.sum())} Gaussians of the start are not finite", stacklevel=2)
            gaussians = gaussians[~bad]
        seen = [bool(camera.sees(gaussians.means).any()) for camera in cameras]
        if not any(seen):
            raise ValueError(
                f"no camera sees any of the {len(gaussians)} Gaussians of the start: they lie "
                "behind every camera or outside every picture; the poses do not belong to these "
                "points"
            )
        self.set_gaussians(gaussians)
        self.extent.fill_(scene_extent(cameras))
        if self.mean_background:
            means = [_view(sample)[1].float().mean((0, 1)) / 255 for sample in samples]
            self.background.copy_(torch.stack(means).mean(0))
        self.schedule(steps, [sample.sample_id for sample in samples])
        if self.exposure is not None:
            identity = torch.eye(3, 4).repeat(len(samples), 1, 1)
            self.exposure.data = identity.to(self.exposure)
        return {**report, "gaussians": len(self)}

    def schedule(self, steps: int, names: Sequence[str] = ()) -> None:
        """Say how long the training is and of which photographs."""
        self.steps = max(steps, 1)
        self.names = list(names)

    # ------------------------------------------------------------------ pictures

    def forward(self, batch: Batch, mode: str = "tensor"):
        """Losses (mode 'loss'), renderings ('predict') or raw pictures ('tensor')."""
        if mode == "loss":
            return self.loss(batch)
        if mode == "predict":
            return self.predict(batch)
        if mode == "tensor":
            return [self.picture(_view(sample)[0])[0] for sample in batch.samples]
        raise ValueError(f"mode is {mode!r}; it must be 'loss', 'predict' or 'tensor'")

    def degree(self) -> int:
        """Degree of the harmonics that are in use."""
        if not self.training:
            return self.sh_degree
        return min(self.sh_degree, int(int(self.step) / max(self.degree_every * self.steps, 1)))

    def picture(
        self, camera: Camera, render_mode: str = "RGB", degree: int | None = None
    ) -> tuple[Tensor, Tensor, dict]:
        """What ``camera`` sees: [H, W, 3 or 4] rgb (and expected depth), [H, W] alpha, meta."""
        degree = self.degree() if degree is None else degree
        camera = camera.to(self.means.device)
        width, height = camera.size
        image, alpha, meta = rasterization(
            self.means,
            self.quats,
            self.scales.exp(),
            self.opacities.sigmoid(),
            self.sh0,
            camera.world_to_cam[None].float(),
            camera.corner_K[None].float(),
            width,
            height,
            sh_degree=degree,
            packed=False,
            backgrounds=self._behind()[None],
            render_mode=render_mode,
            rasterize_mode=self.mode,
            absgrad=self.training and self.strategy.absgrad,
            shN=self.shN,
        )
        return image[0], alpha[0, ..., 0], meta

    def _behind(self) -> Tensor:
        """[3] colour where nothing is."""
        if not (self.training and self.random_background):
            return self.background
        # Of the step's own number: a resumed training goes on as it would have.
        generator = torch.Generator().manual_seed(int(self.step))
        return torch.rand(3, generator=generator).to(self.background)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean difference and structural dissimilarity to the photographs, and what large
        Gaussians cost; psnr is for the log.

        Raises:
            ValueError: there is no Gaussian yet.
        """
        if not len(self):
            raise ValueError("the model has no Gaussians: call begin, or load weights")
        absolute, unlike, squared = [], [], []
        for sample in batch.samples:
            camera, truth = _view(sample)
            image, _, self.meta = self.picture(camera)
            if self.meta["means2d"].requires_grad:
                self.meta["means2d"].retain_grad()
            image = self.exposed(image, sample.sample_id)
            truth = truth.to(image.device).float() / 255
            mask = sample.meta.get("mask")
            if mask is not None:  # black in both where nothing counts
                image, truth = (x * mask.to(x.device)[..., None] for x in (image, truth))
            absolute.append((image - truth).abs().mean())
            squared.append((image.detach().clamp(0, 1) - truth).square().mean())
            unlike.append(1 - ssim(image, truth))
        losses = {
            "loss_l1": (1 - self.ssim_weight) * torch.stack(absolute).mean(),
            "loss_ssim": self.ssim_weight * torch.stack(unlike).mean(),
            "psnr": -10 * torch.stack(squared).mean().clamp(min=1e-10).log10(),
            "gaussians": image.new_tensor(float(len(self))),
        }
        if self.scale_weight:
            losses["loss_scale"] = self.scale_weight * self.scales.exp().mean() / self.extent
        return losses

    def exposed(self, image: Tensor, name: str) -> Tensor:
        """``image`` [H, W, 3] with the exposure learnt for the training photograph ``name``."""
        if self.exposure is None or not self.training or name not in self.names:
            return image
        matrix = self.exposure[self.names.index(name)]
        return image @ matrix[:, :3].T + matrix[:, 3]

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[Rendering]:
        """A rendering for each sample, with the sample attached."""
        return [self.render(_view(sample)[0], sample) for sample in batch.samples]

    @torch.no_grad()
    def render(self, camera: Camera, sample: Sample | None = None) -> Rendering:
        """What ``camera`` sees."""
        image, alpha, _ = self.picture(camera, "RGB+ED", self.sh_degree)
        color = image[..., :3].clamp(0, 1)
        return Rendering(color, image[..., 3] * (alpha > 0), alpha, sample, len(self))

    # ------------------------------------------------------------------ training

    def train_step(self, data: dict, optim_wrapper) -> dict[str, Tensor]:
        """One step, after which the strategy may change the number of Gaussians."""
        step = int(self.step)
        self._set_rates(optim_wrapper.optimizer, step)
        with optim_wrapper.optim_context(self):
            data = self.data_preprocessor(data, True)
            losses = self(**data, mode="loss")
        parsed, log = self.parse_losses(losses)
        # The graph must be gone when the number of rows has changed.
        log = {name: value.detach() for name, value in log.items()}
        try:
            optim_wrapper.update_params(parsed)
        except FloatingPointError:
            if not parsed.isfinite() or not self._drop_bad(optim_wrapper.optimizer):
                raise
            optim_wrapper.zero_grad()
        else:
            with torch.no_grad():
                self.strategy.after_step(self, optim_wrapper.optimizer, self.meta, step, self.steps)
                if self.exposure is not None:
                    # What all share belongs to the colours, which other views see, too.
                    none = torch.eye(3, 4).to(self.exposure)
                    self.exposure += none - self.exposure.mean(0)
        self.meta = {}
        self.step += 1
        return log

    @property
    def haste(self) -> float:
        """By how much faster than in the published training everything is to move."""
        return max(PUBLISHED_STEPS / self.steps, 1) ** self.rate_power

    def _set_rates(self, optimizer, step: int) -> None:
        """All rates by the length of the training; the means' also in extents of the scene."""
        share = min(step / self.steps, 1)
        factor = self.haste
        if self.settle:
            factor *= SETTLED ** max((share - 1 + self.settle) / self.settle, 0)
        fallen = float(self.extent) * self.final_rate ** max(share, self.hold_rate)
        for group in optimizer.param_groups:
            base = group.setdefault("initial_lr", group["lr"])
            first = group["params"][0]
            # Exposures are few and steep: hurried, they run ahead of the colours.
            hurry = factor / self.haste if first is self.exposure else factor
            group["lr"] = base * hurry * (fallen if first is self.means else 1)

    def _drop_bad(self, optimizer) -> bool:
        """Remove the Gaussians with gradients that are not finite, if they are few."""
        good = torch.ones(len(self), dtype=torch.bool, device=self.means.device)
        for parameter in parameters(self).values():
            if parameter.grad is not None:
                good &= parameter.grad.reshape(len(self), -1).isfinite().all(1)
        bad = int((~good).sum())
        if not 0 < bad <= max(len(self) // 100, 10) or bad == len(self):
            return False
        warnings.warn(
            f"{bad} of {len(good)} Gaussians have gradients that are not finite: removed",
            stacklevel=2,
        )
        keep_rows(self, optimizer, good)
        return True


def _view(sample: Sample) -> tuple[Camera, Tensor]:
    """The only camera of a sample and its photograph."""
    if len(sample.cameras) != 1:
        raise ValueError(
            f"sample {sample.sample_id!r} has {len(sample.cameras)} cameras; a view has one"
        )
    (name, camera), *_ = sample.cameras.items()
    return camera, sample.images.get(name)


def _cap(most: int | None, memory_gb: float | None, sh_degree: int) -> int | None:
    """The smaller of both caps.

    Raises:
        ValueError: a cap leaves no Gaussian.
    """
    each = (11 + 3 * (sh_degree + 1) ** 2) * BYTES_PER_FLOAT * COPIES
    caps = [most] if most is not None else []
    caps += [int(memory_gb * 1e9 / each)] if memory_gb is not None else []
    if caps and min(caps) < 1:
        raise ValueError(
            f"most_gaussians {most} and memory_gb {memory_gb} leave no Gaussian ({each} bytes "
            "each in training): raise them"
        )
    return min(caps) if caps else None
