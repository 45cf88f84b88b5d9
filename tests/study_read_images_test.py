# SPDX-License-Identifier: Apache-2.0
"""Folders of images, one folder per class."""

from matplotlib import image
import numpy as np
import pytest

from squentropy_study import StudyError, load_data

# matplotlib, which reads the images, brings it.
Image = pytest.importorskip("PIL.Image")

GREY = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)
RGB = np.stack([GREY, GREY[::-1], 0 * GREY], axis=-1)


def _save(path, pixels, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path, **options)


def test_grey_images(tmp_path):
  _save(tmp_path / "dogs" / "2.PNG", GREY)
  _save(tmp_path / "cats" / "1.png", GREY[::-1])
  _save(tmp_path / "cats" / "deep.png", GREY.astype(np.uint16) * 257)
  _save(tmp_path / "cats" / "deep.tif", GREY.astype(np.uint16) * 257)
  (tmp_path / ".hidden").mkdir()
  (tmp_path / "None").mkdir()
  (tmp_path / "cats" / "notes.txt").write_text("none")
  (tmp_path / "cats" / ".DS_Store").write_text("none")
  (tmp_path / "README.md").write_text("none")
  data = load_data(str(tmp_path))
  assert data.classes == ("cats", "dogs")
  np.testing.assert_array_equal(data.labels, [0, 0, 0, 1])
  expected = np.stack([GREY[::-1], GREY, GREY, GREY])[..., None] / 255
  np.testing.assert_allclose(data.features, expected, rtol=1e-6)
  assert data.notes == (
    "folders without images are no classes: None",
    "1 file in the folders of classes is no image and is ignored, such as "
    "notes.txt",
    "the classes are the folders of 4 images of 3 x 2 pixels",
  )


def test_colour_images(tmp_path):
  opaque = np.concatenate([RGB, np.full_like(RGB[..., :1], 255)], axis=-1)
  _save(tmp_path / "a" / "1.png", RGB)
  _save(tmp_path / "a" / "2.bmp", RGB)
  _save(tmp_path / "b" / "3.png", opaque)
  _save(tmp_path / "b" / "4.jpg", np.full_like(RGB, 51))
  _save(tmp_path / "b" / "5.png", GREY)
  data = load_data(str(tmp_path))
  assert data.features.shape == (5, 2, 3, 3)
  for row in range(3):
    np.testing.assert_allclose(data.features[row], RGB / 255, rtol=1e-6)
  np.testing.assert_allclose(data.features[3], 0.2, atol=0.01)
  for channel in range(3):
    np.testing.assert_allclose(
      data.features[4, ..., channel], GREY / 255, rtol=1e-6
    )
  assert data.notes[0] == "1 of 5 images is grey; its channel is repeated"


def test_images_that_cannot_be_stacked(tmp_path):
  for name in ("a/1.png", "a/2.png", "b/3.png"):
    _save(tmp_path / name, GREY)
  odd = tmp_path / "b" / "4.png"
  _save(odd, GREY[:1])
  with pytest.raises(StudyError) as caught:
    load_data(str(tmp_path))
  assert str(caught.value) == (
    f"{odd} has 3 x 1 pixels, but 3 of 4 images have 3 x 2; scale or remove it"
  )
  odd.write_bytes(b"no image")
  with pytest.raises(
    StudyError, match=r"4\.png cannot be read as an image.*rem"
  ):
    load_data(str(tmp_path))
  _save(odd, np.stack([GREY] * 4, axis=-1))
  with pytest.raises(StudyError, match=r"4\.png is partly transparent; save"):
    load_data(str(tmp_path))


@pytest.mark.parametrize(
  ("file", "label", "message"),
  [
    ("a.txt", None, "folder without images in folders; name a data file, or a"),
    ("1.png", None, "folder without images in folders"),
    ("train/cats/1.png", None, r"name the folder whose.*such as .*train$"),
    ("cats/1.png", None, r"one folder of images \(cats\).*add a folder"),
    ("cats/1.png", "kind", "in the names of its folders.*leave out --label"),
  ],
)
def test_folders_of_another_layout(tmp_path, file, label, message):
  _save(tmp_path / file, GREY, format="png")
  with pytest.raises(StudyError, match=message) as caught:
    load_data(str(tmp_path), label)
  assert str(tmp_path) in str(caught.value)


def test_pixels_are_those_of_matplotlib(tmp_path):
  _save(tmp_path / "a" / "1.png", RGB)
  _save(tmp_path / "b" / "1.png", RGB)
  data = load_data(str(tmp_path))
  expected = image.imread(tmp_path / "a" / "1.png")
  np.testing.assert_array_equal(data.features[1], expected)
