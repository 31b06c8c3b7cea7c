"""From the maps of a centre head to boxes: the best cells, decoding, score correction, NMS."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse3d.ops import rotated
from sparse3d.structures import Boxes, Detections

from .center_targets import MapFrame, decode


@dataclass(frozen=True)
class CenterDecoding:
    """How the boxes of one class group are chosen.

    Attributes:
        score_threshold: boxes need a higher score, before it is corrected.
        max_objects: best cells that are looked at.
        center_limit: (x0, y0, z0, x1, y1, z1) in metres that holds the centres; None: everywhere.
        iou_rectifier: r per class; score^(1-r) * iou^r is the corrected score. None: no correction.
        nms_threshold: a number: overlap at which boxes of the group are dropped; one number per
            class: NMS goes class by class.
        nms_pre_max: best boxes that enter NMS.
        nms_post_max: most boxes that leave it (per class where it goes by class); None: all.
    """

    score_threshold: float = 0.1
    max_objects: int = 500
    center_limit: Sequence[float] | None = None
    iou_rectifier: Sequence[float] | None = None
    nms_threshold: float | Sequence[float] = 0.2
    nms_pre_max: int | None = 4096
    nms_post_max: int | None = 500

    def check(self, class_names: Sequence[str], has_iou: bool) -> None:
        """Refuse settings that do not fit the head.

        Raises:
            ValueError: a list without one entry per class, or a correction without an IoU branch.
        """
        for name in ("iou_rectifier", "nms_threshold"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and len(value) != len(class_names):
                raise ValueError(
                    f"{name} is {list(value)}; it needs one number for each of {list(class_names)}"
                )
        if self.iou_rectifier is not None and not has_iou:
            raise ValueError(
                "iou_rectifier corrects scores by a predicted IoU, but the head has no IoU branch; "
                "say iou=True or leave iou_rectifier out"
            )

    def choose(
        self,
        scores: Tensor,
        cell: Tensor,
        code: Tensor,
        iou: Tensor | None,
        classes: Tensor,
        frame: MapFrame,
    ) -> Detections:
        """Boxes of one sample and one class group.

        Args:
            scores: [C, N] in 0..1 of each class of the group at each cell.
            cell: [N, 2] column and row.
            code: [N, 8 or 10] box code.
            iou: [N] predicted 2 IoU - 1, or None.
            classes: [C] int64 label of each class of the group.
            frame: of the map.
        """
        score, channel, index = top_cells(scores, self.max_objects)
        boxes, labels = decode(code[index], cell[index], frame), classes[channel]
        keep = score > self.score_threshold
        if self.center_limit is not None:
            low, high = boxes.new_tensor(self.center_limit).view(2, 3)
            keep &= ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(1)
        if self.iou_rectifier is not None:
            r = score.new_tensor(self.iou_rectifier)[labels]
            quality = ((iou[index] + 1) / 2).clamp(0, 1)
            score = score ** (1 - r) * quality**r
        kept = self.suppress(boxes[keep], score[keep], labels[keep])
        rows = keep.nonzero()[:, 0][kept]
        return Detections(Boxes(boxes[rows]), score[rows], labels[rows])

    def suppress(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Rows [k] int64 that survive NMS."""
        if not isinstance(self.nms_threshold, Sequence):
            return self._nms(boxes, scores, self.nms_threshold)
        rows = []
        for label, threshold in enumerate(self.nms_threshold):
            own = (labels == label).nonzero()[:, 0]
            rows.append(own[self._nms(boxes[own], scores[own], threshold)])
        return torch.cat(rows)

    def _nms(self, boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
        boxes = boxes[:, :7].contiguous()
        return rotated.nms(boxes, scores, threshold, self.nms_pre_max, self.nms_post_max)


def top_cells(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` best entries of ``scores`` [C, N], ties by position.

    Returns:
        score [k], class channel [k] and cell [k], by falling score.
    """
    flat = scores.flatten()
    count = min(count, len(flat))
    if count == 0:
        index = flat.new_zeros(0, dtype=torch.int64)
        return flat[index], index, index
    # topk alone breaks ties at the last place as it likes
    index = (flat >= flat.topk(count).values[-1]).nonzero()[:, 0]
    index = index[flat[index].argsort(descending=True, stable=True)[:count]]
    return flat[index], index // scores.shape[1], index % scores.shape[1]


def merge_groups(parts: list[Detections]) -> Detections:
    """The boxes of several class groups of one sample as one list by falling score."""
    scores = torch.cat([part.scores for part in parts])
    order = scores.argsort(descending=True, stable=True)
    labels = torch.cat([part.labels for part in parts])
    return Detections(
        Boxes.cat([part.boxes for part in parts])[order], scores[order], labels[order]
    )
