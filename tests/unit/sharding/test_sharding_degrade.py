from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from sharding.degrade import RECIPES, SCALES, bicubic_downscale, blur_decimate, crop_to_multiple, describe, get_recipe
from sharding.errors import BadConfigError
from sharding.samples import find_samples

SIZES = [(48, 60), (120, 36), (12, 12)]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow_float(frame: np.ndarray, scale: int) -> np.ndarray:
    """Pillow's antialiased bicubic on float planes: no rounding between its passes."""
    size = (frame.shape[1] // scale, frame.shape[0] // scale)
    planes = [Image.fromarray(frame[..., c].astype(np.float32)) for c in range(3)]
    small = np.stack([np.asarray(plane.resize(size, Image.Resampling.BICUBIC)) for plane in planes], axis=-1)
    return np.clip(np.rint(small), 0, 255)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", SIZES)
def test_bicubic_equals_pillow_on_noise(scale: int, size: tuple[int, int]) -> None:
    frame = noise(*size)
    difference = np.abs(bicubic_downscale(frame, scale).astype(int) - pillow_float(frame, scale))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001  # only ties of rounding


@pytest.mark.parametrize("scale", SCALES)
def test_bicubic_equals_torch_on_noise(scale: int) -> None:
    torch.set_num_threads(1)
    frame = noise(60, 48)
    tensor = torch.from_numpy(frame).permute(2, 0, 1)[None].double()
    size = (60 // scale, 48 // scale)
    small = torch.nn.functional.interpolate(tensor, size=size, mode="bicubic", antialias=True)
    reference = small[0].permute(1, 2, 0).clamp(0, 255).round().numpy()
    difference = np.abs(bicubic_downscale(frame, scale) - reference)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


def test_bicubic_equals_pillow_on_a_real_frame() -> None:
    with av.open(str(next(path for path in find_samples() if path.stem == "bikes"))) as container:
        frame = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(bicubic_downscale(frame, 4).astype(int) - pillow_float(frame, 4)).max() <= 1


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("scale", SCALES)
def test_recipes_keep_a_constant_and_give_the_size(name: str, scale: int) -> None:
    frame = np.full((24, 36, 3), 201, np.uint8)
    small = RECIPES[name].apply(frame, scale)
    assert small.shape == (24 // scale, 36 // scale, 3)
    assert small.dtype == np.uint8
    assert (small == 201).all()


def test_bicubic_is_centred() -> None:
    """Turning a frame upside down and downscaling commute only at half-pixel centres."""
    frame = noise(48, 48)
    np.testing.assert_array_equal(bicubic_downscale(frame[::-1, ::-1], 4)[::-1, ::-1], bicubic_downscale(frame, 4))


def test_blur_decimate_equals_scipy() -> None:
    frame = noise(40, 48)
    blurred = gaussian_filter(frame.astype(float), (1.5, 1.5, 0), mode="mirror", radius=(6, 6, 0))
    # OpenCV blurs uint8 in bit-exact fixed-point arithmetic: the same everywhere, a little over 1/255 off.
    difference = np.abs(blur_decimate(frame, 4) - blurred[::4, ::4])
    assert difference.max() < 1.5
    assert difference.mean() < 0.4


def test_crop_keeps_the_top_left_corner() -> None:
    frame = noise(13, 18)
    cropped = crop_to_multiple(frame, 4)
    np.testing.assert_array_equal(cropped, frame[:12, :16])


def test_a_size_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        bicubic_downscale(noise(13, 16), 4)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(BadConfigError, match="did you mean 'bicubic'"):
        get_recipe("bicubik")
    assert describe("bicubic")["a"] == -0.5
    assert describe("paired") == {"name": "paired"}
