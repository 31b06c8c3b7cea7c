"""A folder of bare photographs: pycolmap, where it is installed, finds their cameras."""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# OpenCV before pycolmap: the other way round PNGs end in an abort.
from .views import first_few, read_picture

SEED = 0
"""Of pycolmap's random samples."""
ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
SAME_PLACE = 100
"""COLMAP starts from a pair with this many matches at least: with more of them, and no start, the
pictures show the same but have no parallax."""


@dataclass(frozen=True)
class FoundPoses:
    """What came of a search for cameras.

    Attributes:
        photographs: in the folder.
        without: those for which no camera was found, though they can be read.
        unreadable: those that cannot be read.
        points: of the model.
        pixels: mean reprojection error.
    """

    photographs: int
    without: tuple[str, ...]
    unreadable: tuple[str, ...]
    points: int
    pixels: float

    @property
    def registered(self) -> int:
        """Photographs that have cameras."""
        return self.photographs - len(self.without) - len(self.unreadable)

    def advice(self) -> list[str]:
        """Which photographs have no cameras, and what helps; a line for each reason."""
        lines = []
        if self.without:
            lines.append(
                f"no camera was found for {first_few(self.without)}: take sharper pictures there "
                "that overlap the others by half, or go on without"
            )
        if self.unreadable:
            lines.append(_cannot_be_read(self.unreadable))
        return lines


def find_poses(
    folder: str | Path, camera_model: str = "SIMPLE_RADIAL", sequential: bool = False
) -> FoundPoses:
    """Write a COLMAP model of the pictures in ``folder``/images to ``folder``/sparse/0.

    Runs on the CPU: some minutes for twenty photographs. Pictures of one size and focal length
    share a camera.

    Args:
        folder: pictures lie in its ``images``; those lying in itself are moved there.
        camera_model: of the lens, a name of COLMAP's.
        sequential: match each picture with the next ones only (a video), not with all.

    Raises:
        RuntimeError: pycolmap is not installed.
        ValueError: no such model of a lens, fewer than two photographs that can be read, too few
            matches among them, or all taken from one place.
    """
    try:
        import pycolmap
    except ImportError:
        raise RuntimeError(
            "finding cameras needs pycolmap: pip install pycolmap; or run COLMAP yourself and put "
            "its model into sparse/0"
        ) from None
    lenses = [name for name in pycolmap.CameraModelId.__members__ if name != "INVALID"]
    if camera_model not in lenses:
        raise ValueError(f"camera model {camera_model!r} is none of {', '.join(lenses)}")
    folder = Path(folder)
    images = gather(folder)
    files = (path for path in images.rglob("*") if path.suffix.lower() in ENDINGS)
    names = sorted(path.relative_to(images).as_posix() for path in files)
    if len(names) < 2:
        raise ValueError(f"{images} holds {len(names)} photograph; cameras need two at least")
    options = pycolmap.ImageReaderOptions(camera_model=camera_model)
    groups = group_by_camera(images, names, options)
    readable = [name for group in groups for name in group]
    unreadable = tuple(sorted(set(names) - set(readable)))
    if len(readable) < 2:
        raise ValueError(
            f"{len(unreadable)} of the {len(names)} photographs of {images} are of no use, and "
            f"cameras need two at least: {_cannot_be_read(unreadable)}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        database = Path(scratch) / "database.db"
        for group in groups:
            pycolmap.extract_features(
                database,
                images,
                image_names=group,
                camera_mode=pycolmap.CameraMode.SINGLE,
                reader_options=options,
                device=pycolmap.Device.cpu,
            )
        match = pycolmap.match_sequential if sequential else pycolmap.match_exhaustive
        verification = pycolmap.TwoViewGeometryOptions()
        verification.ransac.random_seed = SEED
        match(database, verification_options=verification, device=pycolmap.Device.cpu)
        models = map_views(database, images, Path(scratch))
        if not models:
            with pycolmap.Database.open(database) as content:
                matches = max(content.read_two_view_geometry_num_inliers()[1], default=0)
            read = f"; {_cannot_be_read(unreadable)}" if unreadable else ""
            raise ValueError(
                f"no cameras can be found for the {len(readable)} photographs of {images}: "
                f"{_why_none(matches)}{read}"
            )
        best = max(models, key=lambda m: (m.num_reg_images(), m.compute_num_observations()))
        out = folder / "sparse" / "0"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        best.write(out)
    found = {best.images[image].name for image in best.reg_image_ids()}
    return FoundPoses(
        len(names),
        tuple(sorted(set(readable) - found)),
        unreadable,
        best.num_points3D(),
        best.compute_mean_reprojection_error(),
    )


def map_views(database: Path, images: Path, scratch: Path) -> list:
    """pycolmap's models, found picture by picture and, where that finds any, of all at once.

    Picture by picture, focal length and distortion drift where an orbit's parallax is small: on 19
    pictures of one, five runs of seven were 10 % off. All at once they did not, but that would also
    make a model of pictures taken from one place, which are none.
    """
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions(random_seed=SEED)
    options.mapper.random_seed = SEED
    models = list(pycolmap.incremental_mapping(database, images, scratch, options).values())
    if models:
        options = pycolmap.GlobalPipelineOptions(random_seed=SEED)
        models += pycolmap.global_mapping(database, images, scratch, options).values()
    return models


def group_by_camera(images: Path, names: Iterable[str], options) -> list[list[str]]:
    """The pictures of each size and focal length; those that cannot be read are in no group.

    COLMAP's own modes do not serve here: SINGLE drops pictures of another size than the first's,
    AUTO gives every picture without EXIF a camera of its own, too many unknowns for few pictures.

    Args:
        images: the folder.
        names: in it.
        options: pycolmap's, of reading pictures.
    """
    import pycolmap

    groups = defaultdict(list)
    for name in names:
        try:
            read_picture(images / name, np.zeros(3))  # as training will
            camera = pycolmap.infer_camera_from_image(images / name, options)
        except ValueError:
            continue
        groups[(camera.width, camera.height, *camera.params)].append(name)
    return list(groups.values())


def gather(folder: Path) -> Path:
    """``folder``/images, into which pictures lying in ``folder`` are moved.

    Raises:
        FileNotFoundError: there is no such folder, or no picture.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: give the one with the photographs")
    images = folder / "images"
    loose = [p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in ENDINGS]
    if not images.is_dir():
        if not loose:
            raise FileNotFoundError(f"{folder} holds no photographs ({', '.join(ENDINGS)})")
        images.mkdir()
        for path in loose:
            path.rename(images / path.name)
    return images


def _why_none(matches: int) -> str:
    """Why there is no model though there are pictures, of the most matches of a pair."""
    if matches < SAME_PLACE:
        return (
            "they share too few features; take sharp pictures that overlap by half, with texture "
            "in them"
        )
    return (
        f"up to {matches} features agree, but as if all were seen from one place; take a step "
        "between the pictures instead of turning or zooming"
    )


def _cannot_be_read(names: tuple[str, ...]) -> str:
    """Names pictures that are of no use, and what to do."""
    return (
        f"{first_few(names)} cannot be read (damaged, cut off, or of a kind that COLMAP cannot "
        "read): copy again or save as JPEG or PNG"
    )
