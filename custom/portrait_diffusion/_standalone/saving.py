"""Writing results into a run's save folder: images, grids, videos, meshes, data. Every file is complete or absent."""
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UsageError
from ..optional import require
from .images import grayscale_bytes, grid_bytes, rgb_bytes, to_numpy
from .mesh import Mesh

_BYTES = {"rgb": rgb_bytes, "grayscale": grayscale_bytes}


@contextmanager
def _replacing(path: str) -> Iterator[str]:
    """A temporary name beside `path`, with the same suffix, that takes its place when the block succeeds."""
    folder, name = os.path.split(path)
    partial = os.path.join(folder, f".part-{name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


class SaverMixin:
    """File output of a system. Images are (H,W,C) tensors or arrays; names are relative to the save folder.

    `name` and `step` name an image for online loggers, of which this host has none. All methods return paths.
    """

    _save_dir: str | None = None

    def set_save_dir(self, save_dir: str) -> None:
        """Choose the folder that all names are relative to."""
        self._save_dir = save_dir

    def get_save_dir(self) -> str:
        """The folder. Raises: ValueError before `set_save_dir`."""
        if self._save_dir is None:
            raise ValueError("The save folder is not set; call set_save_dir() first.")
        return self._save_dir

    def get_save_path(self, filename: str) -> str:
        """Path of `filename` in the save folder; makes the folders it needs."""
        path = os.path.join(self.get_save_dir(), filename)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def convert_data(self, data: Any) -> Any:
        """Tensors to arrays, also inside lists and dicts."""
        return to_numpy(data)

    def save_rgb_image(
        self,
        filename: str,
        img: Any,
        data_format: str = "HWC",
        data_range: tuple[float, float] = (0.0, 1.0),
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        """Write a colour image, see `images.rgb_bytes`."""
        return self._write_image(filename, rgb_bytes(img, data_format, data_range))

    def save_grayscale_image(
        self,
        filename: str,
        img: Any,
        data_range: tuple[float, float] | None = None,
        cmap: str | None = "jet",
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        """Write a scalar image through a colour map, see `images.grayscale_bytes`."""
        return self._write_image(filename, grayscale_bytes(img, data_range, cmap))

    def save_image_grid(
        self,
        filename: str,
        imgs: Any,
        align: Any = "max",
        name: str | None = None,
        step: int | None = None,
        texts: list[str] | None = None,
    ) -> str:
        """Write several images as one.

        Args:
            imgs: a row, or a list of rows, of ``{"type": "rgb" | "grayscale", "img": ..., "kwargs": {...}}``.
            align, texts: see `images.grid_bytes`.

        Raises: ValueError for another type.
        """
        rows = imgs if isinstance(imgs[0], list) else [imgs]
        for item in (item for row in rows for item in row):
            if item["type"] not in _BYTES:
                raise ValueError(f"An image's type must be one of {', '.join(_BYTES)}, got '{item['type']}'.")
        pictures = [[_BYTES[i["type"]](i["img"], **i.get("kwargs", {})) for i in row] for row in rows]
        return self._write_image(filename, grid_bytes(pictures, align, texts))

    def save_image(self, filename: str, img: Any) -> str:
        """Write 8-bit (H,W), (H,W,3), (H,W,4) or 16-bit (H,W) values as they are. Raises: ValueError otherwise."""
        array = np.asarray(to_numpy(img))
        if array.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"save_image() takes uint8 or uint16 values, got {array.dtype}; use save_rgb_image().")
        return self._write_image(filename, array)

    def _write_image(self, filename: str, array: np.ndarray) -> str:
        path = self.get_save_path(filename)
        with _replacing(path) as partial:
            Image.fromarray(array).save(partial)
        return path

    def save_img_sequence(
        self,
        filename: str,
        img_dir: str,
        matcher: str,
        save_format: str = "mp4",
        fps: int = 30,
        name: str | None = None,
        step: int | None = None,
    ) -> str:
        r"""Join the images of a folder to a film.

        Args:
            filename: with or without the suffix.
            img_dir: folder inside the save folder.
            matcher: regular expression with one group that holds the frame's number, for example ``r"(\d+)\.png"``.
            save_format: ``"mp4"`` (H.264, sides rounded to even numbers) or ``"gif"``.

        Raises: ValueError for another format, UsageError if no image matches.
        """
        if save_format not in ("mp4", "gif"):
            raise ValueError(f"save_format must be 'mp4' or 'gif', got '{save_format}'.")
        path = self.get_save_path(filename if filename.endswith(save_format) else f"{filename}.{save_format}")
        folder = os.path.join(self.get_save_dir(), img_dir)
        frames = sorted((int(m.group(1)), n) for n in os.listdir(folder) if (m := re.search(matcher, n)))
        if not frames:
            raise UsageError(f"No image in {folder} matches '{matcher}'; there is nothing to join to a film.")
        imageio = require("imageio.v2", extra="video", package="imageio[ffmpeg]")
        rate = {"fps": fps, "macro_block_size": 2} if save_format == "mp4" else {"duration": 1000.0 / fps, "loop": 0}
        with _replacing(path) as partial, imageio.get_writer(partial, **rate) as writer:
            for _, frame in frames:
                writer.append_data(imageio.imread(os.path.join(folder, frame)))
        return path

    def save_mesh(self, filename: str, v_pos: Any, t_pos_idx: Any) -> str:
        """Write bare triangles in the format that the suffix names (OBJ, PLY, GLB ...)."""
        trimesh = require("trimesh", extra="export")
        path = self.get_save_path(filename)
        with _replacing(path) as partial:
            trimesh.Trimesh(to_numpy(v_pos), to_numpy(t_pos_idx), process=False).export(partial)
        return path

    def save_obj(
        self,
        filename: str,
        mesh: Mesh,
        save_mat: bool = False,
        save_normal: bool = False,
        save_uv: bool = False,
        save_vertex_color: bool = False,
        map_Kd: Any = None,
        map_Ks: Any = None,
        map_Bump: Any = None,
        map_Pm: Any = None,
        map_Pr: Any = None,
        map_format: str = "jpg",
    ) -> list[str]:
        """Write an OBJ and, with `save_mat`, its MTL and the textures given: (H,W,3), `map_Pm`, `map_Pr` (H,W,1).

        Returns: paths of all files written, the OBJ last.
        """
        filename = filename if filename.endswith(".obj") else f"{filename}.obj"
        paths: list[str] = []
        material = ""
        if save_mat:
            material = os.path.basename(filename)[: -len(".obj")] + ".mtl"
            maps = {"map_Kd": map_Kd, "map_Ks": map_Ks, "map_Bump": map_Bump, "map_Pm": map_Pm, "map_Pr": map_Pr}
            paths += self._save_material(os.path.join(os.path.dirname(filename), material), maps, map_format)
        if save_vertex_color and mesh.v_rgb is None:
            raise UsageError("This mesh has no vertex colours; call set_vertex_color() or save without them.")
        path = self.get_save_path(filename)
        with _replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in _obj_lines(mesh, material, save_normal, save_uv, save_vertex_color))
        return [*paths, path]

    def _save_material(self, filename: str, maps: dict[str, Any], suffix: str) -> list[str]:
        stems = {"map_Kd": "kd", "map_Ks": "ks", "map_Bump": "nrm", "map_Pm": "metallic", "map_Pr": "roughness"}
        lines = ["newmtl default", "Ka 0.0 0.0 0.0", "Kd 1.0 1.0 1.0", "Ks 0.0 0.0 0.0"]
        paths = []
        for key, image in maps.items():
            if image is not None:
                texture = f"texture_{stems[key]}.{suffix}"
                paths.append(self.save_rgb_image(os.path.join(os.path.dirname(filename), texture), image))
                lines.append(f"{key} {texture}")
        return [*paths, self._save_text(filename, "\n".join(lines) + "\n")]

    def _save_text(self, filename: str, text: str) -> str:
        path = self.get_save_path(filename)
        with _replacing(path) as partial, open(partial, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def save_file(self, filename: str, src_path: str) -> str:
        """Copy a file into the save folder."""
        path = self.get_save_path(filename)
        with _replacing(path) as partial:
            shutil.copyfile(src_path, partial)
        return path

    def save_json(self, filename: str, payload: Any) -> str:
        """Write plain data as JSON; tensors and arrays become lists."""
        plain = json.dumps(to_numpy(payload), default=lambda array: array.tolist(), indent=2)
        return self._save_text(filename, plain + "\n")

    def save_data(self, filename: str, data: Any) -> str:
        """Write an array as .npy or a dict of arrays as .npz; the suffix is appended when it is missing."""
        data = to_numpy(data)
        suffix = ".npz" if isinstance(data, dict) else ".npy"
        path = self.get_save_path(filename if filename.endswith(suffix) else filename + suffix)
        with _replacing(path) as partial:
            if isinstance(data, dict):
                np.savez(partial, **data)
            else:
                np.save(partial, data)
        return path


def _obj_lines(mesh: Mesh, material: str, normal: bool, uv: bool, colour: bool) -> Iterator[str]:
    """OBJ text: indices count from 1; v points up in an image's texture coordinates but down in its rows."""
    if material:
        yield f"mtllib {material}"
        yield "g object"
        yield "usemtl default"
    vertices = to_numpy(mesh.v_pos)
    if colour:
        vertices = np.concatenate([vertices, to_numpy(mesh.v_rgb)], axis=1)
    yield from _numbers("v", vertices)
    corners = [to_numpy(mesh.t_pos_idx) + 1]
    if uv:
        v_tex = to_numpy(mesh.v_tex)
        yield from _numbers("vt", np.stack([v_tex[:, 0], 1.0 - v_tex[:, 1]], axis=1))
        corners.append(to_numpy(mesh.t_tex_idx) + 1)
    if normal:
        yield from _numbers("vn", to_numpy(mesh.v_nrm))
        if not uv:
            corners.append(np.full_like(corners[0], -1))  # "a//c": no texture index
        corners.append(corners[0])
    faces = np.stack(corners, axis=-1)  # (Nf, 3 corners, 1..3 indices)
    for face in faces.tolist():
        yield "f " + " ".join("/".join("" if i < 0 else str(i) for i in corner) for corner in face)


def _numbers(keyword: str, rows: np.ndarray) -> Iterator[str]:
    for row in rows.tolist():
        yield f"{keyword} " + " ".join(f"{x:.6g}" for x in row)
