"""Loading images: every mode becomes RGB uint8, and what is no image is named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xomni_rl.images import ImageFileError, as_image_list, load_image, to_rgb

RED, WHITE = [255, 0, 0], [255, 255, 255]


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_file_is_read_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    loaded = load_image(saved(tmp_path / "a.png", Image.fromarray(pixels)))
    np.testing.assert_array_equal(loaded, pixels)
    assert loaded.dtype == np.uint8


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    loaded = load_image(saved(tmp_path / "a.png", Image.new("L", (3, 2), 77)))
    np.testing.assert_array_equal(loaded, np.full((2, 3, 3), 77))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)])
    loaded = load_image(saved(tmp_path / "a.png", image))
    # Opaque red; nothing on white; black at 128/255 on white: 255·127/255 = 127.
    np.testing.assert_array_equal(loaded, [[RED, WHITE, [127, 127, 127]]])


def test_palette_and_its_transparent_entry_are_resolved(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, 0, 0, 255])
    image.putdata([0, 1])
    np.testing.assert_array_equal(load_image(saved(tmp_path / "a.png", image)), [[RED, [0, 0, 255]]])
    np.testing.assert_array_equal(load_image(saved(tmp_path / "b.png", image, transparency=1)), [[RED, WHITE]])


def test_sixteen_bit_grey_is_scaled_not_cut(tmp_path: Path) -> None:
    grey = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)  # 65535 / 255 = 257 per step
    loaded = load_image(saved(tmp_path / "a.png", Image.fromarray(grey)))
    assert loaded[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    array = to_rgb(Image.new(mode, (4, 3)))
    assert array.shape == (3, 4, 3)
    assert array.dtype == np.uint8


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1))
    image.putdata([(255, 0, 0), (255, 255, 255)])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90° clockwise to see it upright: the left pixel comes to the top
    np.testing.assert_array_equal(load_image(saved(tmp_path / "a.png", image, exif=exif)), [[RED], [WHITE]])


def test_first_frame_of_an_animation_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "white")]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(load_image(path), np.full((2, 2, 3), RED))


def test_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("hello")
    with pytest.raises(ImageFileError, match=r"notes\.png: is not an image"):
        load_image(path)
    path.write_bytes(b"")
    with pytest.raises(ImageFileError, match=r"notes\.png"):
        load_image(path)


def test_truncated_image_is_named(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    for name in ("a.png", "a.jpg"):
        path = saved(tmp_path / name, noise)
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(ImageFileError, match=rf"{name}: is a damaged image"):
            load_image(path)


def test_damaged_chunk_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (64, 64), "red"))
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 6] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(ImageFileError, match=r"a\.png: is a damaged image"):
        load_image(path)


def test_image_beyond_the_limit_is_not_decoded(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("1", (200, 100)))
    assert load_image(path, max_pixels=20_000).shape == (100, 200, 3)
    with pytest.raises(ImageFileError, match=r"a\.png: 200×100 px is more than the limit of 19999 px"):
        load_image(path, max_pixels=19_999)


def test_bomb_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("1", (20_000, 20_000)))  # 50 kB that claim 1.2 GB as RGB
    with pytest.raises(ImageFileError, match=r"a\.png: "):
        load_image(path)


def test_folder_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "none.png")


def test_batch_list_and_pil_become_the_same_list() -> None:
    batch = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3)).astype(np.uint8)
    for images in (batch, list(batch), [Image.fromarray(image) for image in batch]):
        np.testing.assert_array_equal(np.stack(as_image_list(images)), batch)
    assert as_image_list([]) == []


def test_wrong_image_is_named_by_index() -> None:
    good = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"image 1 must be uint8 \[H, W, 3\], got float64 \[4, 4, 3\]"):
        as_image_list([good, good / 255])
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, H, W, 3\], got uint8 \[4, 4, 3\]"):
        as_image_list(good)


def test_picture_in_a_batch_is_turned_upright_and_made_rgb() -> None:
    image = Image.new("L", (2, 1))
    image.putdata([0, 255])
    exif = Image.Exif()
    exif[0x0112] = 6  # as above: the left pixel comes to the top
    image.info["exif"] = exif.tobytes()
    (upright,) = as_image_list([image])
    np.testing.assert_array_equal(upright, [[[0, 0, 0]], [[255, 255, 255]]])


def test_picture_without_pixels_is_refused_by_its_index() -> None:
    with pytest.raises(ValueError, match="image 1 has no pixels: its size is 0×4 px"):
        as_image_list([Image.new("RGB", (4, 4)), Image.new("RGB", (0, 4))])
