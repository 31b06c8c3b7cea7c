"""A folder of bare photographs: pycolmap, where it is installed, finds their cameras."""

import shutil
import tempfile
from pathlib import Path

ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")


def find_poses(
    folder: str | Path, camera_model: str = "SIMPLE_RADIAL", sequential: bool = False
) -> dict[str, float]:
    """Write a COLMAP model of the pictures in ``folder``/images to ``folder``/sparse/0.

    Runs on the CPU: some minutes for twenty photographs.

    Args:
        folder: pictures lie in its ``images``; those lying in itself are moved there.
        camera_model: of the lens, a name of COLMAP's.
        sequential: match each picture with the next ones only (a video), not with all.

    Returns:
        Photographs, those registered, points and mean reprojection error in pixels.

    Raises:
        RuntimeError: pycolmap is not installed.
        ValueError: fewer than two photographs, or too few matches among them.
    """
    try:
        import pycolmap
    except ImportError:
        raise RuntimeError(
            "finding cameras needs pycolmap: pip install pycolmap; or run COLMAP yourself and put "
            "its model into sparse/0"
        ) from None
    folder = Path(folder)
    images = gather(folder)
    count = sum(path.suffix.lower() in ENDINGS for path in images.iterdir())
    if count < 2:
        raise ValueError(f"{images} holds {count} photograph; cameras need two at least")
    with tempfile.TemporaryDirectory() as scratch:
        database = Path(scratch) / "database.db"
        reader = pycolmap.ImageReaderOptions(camera_model=camera_model)
        pycolmap.extract_features(
            database,
            images,
            camera_mode=pycolmap.CameraMode.SINGLE,
            reader_options=reader,
            device=pycolmap.Device.cpu,
        )
        match = pycolmap.match_sequential if sequential else pycolmap.match_exhaustive
        match(database, device=pycolmap.Device.cpu)
        models = pycolmap.incremental_mapping(database, images, Path(scratch))
        if not models:
            raise ValueError(
                f"no cameras can be found for the {count} photographs of {images}: they share too "
                "few features; take sharp pictures that overlap by half, with texture in them"
            )
        best = max(models.values(), key=lambda model: model.num_reg_images())
        out = folder / "sparse" / "0"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        best.write(out)
    return {
        "photographs": count,
        "registered": best.num_reg_images(),
        "points": best.num_points3D(),
        "pixels": best.compute_mean_reprojection_error(),
    }


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
