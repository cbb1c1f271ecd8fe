"""load_photo: orientations, modes, depths, own alpha, size limits, broken files."""
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from portrait_diffusion.errors import UsageError
from portrait_diffusion.photo import load
from portrait_diffusion.photo.load import load_photo

TURN = Image.Transpose
# stored picture = upright picture after this operation, by EXIF orientation (TIFF 6.0, tag 274)
STORED = {
    1: None, 2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM,
    5: TURN.TRANSPOSE, 6: TURN.ROTATE_90, 7: TURN.TRANSVERSE, 8: TURN.ROTATE_270,
}  # fmt: skip


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """64 x 96 pixels of coloured 16-pixel tiles: no two orientations look alike."""
    tiles = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    return Image.fromarray(np.kron(tiles, np.ones((16, 16, 1), np.uint8)))


def difference(first, second) -> float:
    return float(np.abs(np.asarray(first, np.float64) - np.asarray(second, np.float64)).mean())


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, picture, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = picture if orientation == 1 else picture.transpose(STORED[orientation])
    options = {"lossless": True} if kind == "webp" else {"quality": 95, "subsampling": 0} if kind == "jpg" else {}
    stored.save(tmp_path / f"a.{kind}", exif=exif, **options)
    photo = load_photo(tmp_path / f"a.{kind}")
    assert photo.source_size == (64, 96) and photo.alpha is None
    assert difference(photo.rgb, picture) < (3 if kind == "jpg" else 1e-9)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16", "I", "F"])
def test_grey_modes_keep_their_brightness(tmp_path, picture, mode):
    grey = np.asarray(picture.convert("L"))
    image = {
        "L": lambda: Image.fromarray(grey),
        "LA": lambda: Image.fromarray(grey).convert("LA"),
        "I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 257),
        "I": lambda: Image.fromarray(grey.astype(np.int32) * 257),
        "F": lambda: Image.fromarray((grey / 255).astype(np.float32)),
    }[mode]()
    image.save(tmp_path / "a.tif")
    photo = load_photo(tmp_path / "a.tif")
    assert photo.rgb.dtype == np.uint8 and photo.rgb.shape == (96, 64, 3)
    assert difference(photo.rgb, np.repeat(grey[..., None], 3, 2)) == 0


def test_16_bit_colour_png_keeps_its_upper_bits(tmp_path):
    high = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    rows = b"".join(b"\0" + np.stack([row, np.full_like(row, 3)], -1).tobytes() for row in high)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(data)
    assert difference(load_photo(tmp_path / "a.png").rgb, high) == 0


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "tif"), ("CMYK", "jpg"), ("RGB", "bmp"), ("RGB", "ppm"),
                                            ("YCbCr", "tif"), ("RGB", "tga")])  # fmt: skip
def test_colour_modes(tmp_path, picture, mode, kind):
    picture.convert(mode).save(tmp_path / f"a.{kind}", **({"quality": 95} if kind == "jpg" else {}))
    assert difference(load_photo(tmp_path / f"a.{kind}").rgb, picture) < 4


def test_one_bit_and_palette(tmp_path, picture):
    checks = Image.fromarray((np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)).convert("1")
    checks.save(tmp_path / "a.png")
    assert difference(load_photo(tmp_path / "a.png").rgb[..., 0], np.indices((8, 8)).sum(0) % 2 * 255) == 0
    palette = picture.quantize(24)
    palette.save(tmp_path / "b.png")
    assert difference(load_photo(tmp_path / "b.png").rgb, palette.convert("RGB")) == 0


def test_alpha_is_kept_and_opaque_alpha_dropped(tmp_path, picture):
    alpha = Image.fromarray(np.tile(np.linspace(0, 255, 64).astype(np.uint8), (96, 1)))
    image = picture.copy()
    image.putalpha(alpha)
    image.save(tmp_path / "a.png")
    photo = load_photo(tmp_path / "a.png")
    assert difference(photo.alpha, alpha) == 0 and difference(photo.rgb, picture) == 0
    image.putalpha(255)
    image.save(tmp_path / "b.png")
    assert load_photo(tmp_path / "b.png").alpha is None


def test_palette_transparency(tmp_path, picture):
    image = picture.quantize(24)
    index = int(np.asarray(image)[0, 0])
    image.save(tmp_path / "a.png", transparency=index)
    photo = load_photo(tmp_path / "a.png")
    assert difference(photo.alpha, np.where(np.asarray(image) == index, 0, 255)) == 0
    image.save(tmp_path / "a.gif", transparency=index)
    assert (load_photo(tmp_path / "a.gif").alpha == 0).mean() > 0.02


def test_shrinking_a_transparent_picture_draws_in_no_hidden_colour(tmp_path):
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[..., :] = (0, 255, 0, 0)  # hidden green
    rgba[:, :63] = (200, 0, 0, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    photo = load_photo(tmp_path / "a.png", max_side=32)
    assert photo.rgb[photo.alpha > 20][:, 1].max() <= 12


def test_first_frame_of_an_animation(tmp_path, picture):
    frames = [picture, Image.new("RGB", picture.size, "red")]
    for kind, options in (("webp", {"lossless": True}), ("png", {}), ("tif", {})):
        frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], **options)
        assert difference(load_photo(tmp_path / f"a.{kind}").rgb, picture) == 0


def test_icc_profile_is_applied(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    # swap the red and green primaries of an sRGB profile: a profile whose effect is unmistakable
    data = bytearray(srgb.tobytes())
    data = bytes(data).replace(b"rXYZ", b"tmp0").replace(b"gXYZ", b"rXYZ").replace(b"tmp0", b"gXYZ")
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "a.png", icc_profile=data)
    red, green, blue = load_photo(tmp_path / "a.png").rgb[4, 4]
    assert green > 240 and red < 30 and blue < 30
    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "b.png", icc_profile=b"not a profile")
    assert tuple(load_photo(tmp_path / "b.png").rgb[4, 4]) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_large_files_are_shrunk_and_coordinates_map_back(tmp_path, kind):
    u, v = np.meshgrid(np.arange(3000), np.arange(2000))
    ramps = np.stack([u * 255 // 3000, v * 255 // 2000, u * 0], -1).astype(np.uint8)
    Image.fromarray(ramps).save(tmp_path / f"a.{kind}")
    photo = load_photo(tmp_path / f"a.{kind}", max_side=600)
    assert photo.rgb.shape == (400, 600, 3) and photo.source_size == (3000, 2000)
    x, y = photo.to_source @ [123.5, 77.5, 1]
    assert photo.rgb[77, 123, 0] == pytest.approx(x * 255 / 3000, abs=2)
    assert photo.rgb[77, 123, 1] == pytest.approx(y * 255 / 2000, abs=2)
    part = load_photo(tmp_path / f"a.{kind}", max_side=600, box=(1000, 500, 1400.2, 800))
    assert part.rgb.shape == (300, 401, 3) and part.box == (1000, 500, 1401, 800)
    assert part.rgb[10, 20, 0] == pytest.approx(1020 * 255 / 3000, abs=2)


def test_decompression_bomb_is_refused_from_its_header(tmp_path):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body))
    with pytest.raises(UsageError, match="200 megapixels"):
        load_photo(tmp_path / "a.png")


def test_the_limit_of_pillow_is_left_as_it_was(tmp_path, picture, monkeypatch):
    picture.save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    load_photo(tmp_path / "a.png")
    monkeypatch.setattr(load, "MAX_PIXELS", 10)
    with pytest.raises(UsageError):
        load_photo(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS == before


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "gif", "bmp"])
def test_truncated_files(tmp_path, picture, kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    noise.save(tmp_path / f"a.{kind}")
    data = (tmp_path / f"a.{kind}").read_bytes()
    for share in (0.5, 0.02):
        (tmp_path / f"b.{kind}").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(UsageError) as error:
            load_photo(tmp_path / f"b.{kind}")
        assert f"b.{kind}" in str(error.value) and str(error.value).count("\n") == 0


def test_files_that_are_no_photos(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("This is no photo.\n" * 50)
    (tmp_path / "script.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 64)
    for name, message in (
        ("empty.jpg", "0 bytes"), ("text.jpg", "not an image"), ("script.eps", "not an image"), ("phone.heic", "HEIC"),
        ("missing.jpg", "no file"), (".", "folder"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message):
            load_photo(tmp_path / name)


def test_random_damage_never_escapes_as_another_error(tmp_path, picture):
    generator = np.random.default_rng(0)
    for kind in ("jpg", "png", "webp", "tif", "gif"):
        picture.save(tmp_path / f"a.{kind}")
        original = np.frombuffer((tmp_path / f"a.{kind}").read_bytes(), np.uint8)
        for _ in range(25):
            damaged = original.copy()
            spots = generator.integers(0, len(damaged), 12)
            damaged[spots] = generator.integers(0, 256, 12)
            (tmp_path / f"b.{kind}").write_bytes(damaged.tobytes())
            try:
                assert load_photo(tmp_path / f"b.{kind}").rgb.ndim == 3
            except UsageError:
                pass
