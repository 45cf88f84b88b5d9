# SPDX-License-Identifier: Apache-2.0
"""Folders of images, one folder per class."""

from pathlib import Path

from matplotlib import image
import numpy as np

from squentropy_study._study_error import UNREADABLE, StudyError

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_LAYOUT = "a folder with one folder of images per class, as in cats/1.png"


def _visible(folder: Path) -> list[Path]:
  return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _is_image(path: Path) -> bool:
  return path.suffix.lower() in _ENDINGS and path.is_file()


def _files(folder: Path) -> tuple[list[Path], list[str]]:
  """Returns the images below a folder in the order of their classes."""
  found: list[Path] = []
  others: list[Path] = []
  empty = []
  classes = [path for path in _visible(folder) if path.is_dir()]
  for path in classes:
    inside = _visible(path)
    below = [p for p in inside if p.is_dir()]
    if any(_is_image(p) for b in below for p in b.iterdir()):
      raise StudyError(
        f"{path} holds folders of images; name the folder whose folders are "
        f"the classes, such as {path}"
      )
    images = [p for p in inside if _is_image(p)]
    found += images
    others += [p for p in inside if not _is_image(p)]
    if not images:
      empty.append(path.name)
  if not found:
    raise StudyError(
      f"{folder} is a folder without images in folders; name a data file, or "
      f"{_LAYOUT} ({', '.join(_ENDINGS)})"
    )
  notes = []
  if empty:
    notes.append(f"folders without images are no classes: {', '.join(empty)}")
  if others:
    plural = len(others) > 1
    notes.append(
      f"{len(others)} file{'s' if plural else ''} in the folders of classes "
      f"{'are no images and are' if plural else 'is no image and is'} ignored, "
      f"such as {others[0].name}"
    )
  return found, notes


def _pixels(path: Path) -> np.ndarray:
  """Reads an image as ``[height, width, channels]`` from 0 to 1."""
  try:
    pixels = image.imread(path)
  except (*UNREADABLE, AttributeError) as error:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise StudyError(
      f"{path} cannot be read as an image: {reason}; replace it, or remove it"
    ) from None
  if pixels.dtype.kind in "ui":
    pixels = pixels / np.float32(np.iinfo(pixels.dtype).max)
  pixels = np.atleast_3d(pixels.astype(np.float32))
  # The last of two or four channels is the opacity.
  opacity = 1 - pixels.shape[-1] % 2
  if opacity and not (pixels[..., -1] == 1).all():
    raise StudyError(
      f"{path} is partly transparent; save it without transparency"
    )
  return pixels[..., : pixels.shape[-1] - opacity]


def read_new(
  folder: Path, shape: tuple[int, ...]
) -> tuple[np.ndarray, list[str], list[str] | None]:
  """Reads images to predict, in folders of classes or without folders.

  Args:
    folder: The folder.
    shape: ``(height, width, channels)`` of the images of the study. A grey
      image, which has one channel, is repeated if the study has three.

  Returns:
    Images ``[rows, height, width, channels]``, the path of each image within
    the folder, and the name of its folder; None for images without folders.

  Raises:
    StudyError: There are no images, or they are not like those of the study.
  """
  flat = [path for path in _visible(folder) if _is_image(path)]
  inside = [path for path in _visible(folder) if path.is_dir()]
  of_folders = any(_is_image(p) for path in inside for p in path.iterdir())
  if flat and of_folders:
    raise StudyError(
      f"{folder} holds both images and folders of images; name a folder that "
      "holds one of them"
    )
  if not flat and not of_folders:
    raise StudyError(
      f"{folder} has no images ({', '.join(_ENDINGS)}); name a folder of images"
    )
  files = flat or _files(folder)[0]
  images = [_pixels(path) for path in files]
  height, width, channels = shape
  for path, pixels in zip(files, images, strict=True):
    if pixels.shape[:2] != (height, width):
      raise StudyError(
        f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, but the "
        f"images of the study have {width} x {height}; scale or remove it"
      )
    if pixels.shape[-1] not in (1, channels):
      raise StudyError(
        f"{path} has colours, but the images of the study are grey; save it as "
        "a grey image"
      )
  names = [path.relative_to(folder).as_posix() for path in files]
  classes = None if flat else [path.parent.name for path in files]
  return np.stack([np.broadcast_to(x, shape) for x in images]), names, classes


def read(folder: Path) -> tuple[np.ndarray, list[str], list[str]]:
  """Reads the images of a folder whose folders are the classes.

  Args:
    folder: The folder, with files such as ``cats/1.png``.

  Returns:
    Images ``[rows, height, width, channels]`` float32 from 0 to 1, the name of
    the class of each row, and sentences on what was found. There is one
    channel if all images are grey, else there are three.

  Raises:
    StudyError: There are no images, or not all have the same size.
  """
  files, notes = _files(folder)
  images = [_pixels(path) for path in files]
  sizes = [pixels.shape[:2] for pixels in images]
  usual = max(set(sizes), key=sizes.count)
  for path, size in zip(files, sizes, strict=True):
    if size != usual:
      raise StudyError(
        f"{path} has {size[1]} x {size[0]} pixels, but {sizes.count(usual)} of "
        f"{len(sizes)} images have {usual[1]} x {usual[0]}; scale or remove it"
      )
  grey = [pixels.shape[-1] == 1 for pixels in images]
  if any(grey) and not all(grey):
    plural = sum(grey) > 1
    notes.append(
      f"{sum(grey)} of {len(grey)} images {'are' if plural else 'is'} grey; "
      f"{'their' if plural else 'its'} channel is repeated"
    )
    images = [np.broadcast_to(p, (*p.shape[:2], 3)) for p in images]
  notes.append(
    f"the classes are the folders of {len(files)} images of "
    f"{usual[1]} x {usual[0]} pixels"
  )
  return np.stack(images), [path.parent.name for path in files], notes
