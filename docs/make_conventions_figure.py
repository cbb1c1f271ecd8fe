"""Draws docs/images/conventions.png from the constants of the code: python docs/make_conventions_figure.py"""
import os
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Circle, Polygon, Rectangle

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "custom"))

from portrait_diffusion.ops import cameras as cam  # noqa: E402
from portrait_diffusion.ops.canonical import (  # noqa: E402
    CANONICAL_LANDMARKS_CROP,
    CANONICAL_LANDMARKS_HEAD,
    LANDMARK_DEPTH,
)
from portrait_diffusion.ops.triplane import PLANE_AXES  # noqa: E402

INK, SOFT, FACE, CAMERA, VOLUME = "#222222", "#8a8a8a", "#c2452d", "#1f5fa8", "#4c9a6a"
R, D = cam.BOX_RADIUS, cam.CANONICAL_DISTANCE
HALF_FOV = np.radians(cam.CANONICAL_FOVY_DEG) / 2


def arrow(ax, start, end, colour, label="", offset=(0.0, 0.0)):
    style = {"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", end, start, arrowprops=style)
    if label:
        ax.text(end[0] + offset[0], end[1] + offset[1], label, color=colour, ha="center", va="center", fontsize=10)


def from_above(ax):
    """World x to the right, y up the page; cameras at five azimuths with their right vectors."""
    ax.set_title("World from above (z towards you)")
    ax.add_patch(Rectangle((-R, -R), 2 * R, 2 * R, fill=False, ec=VOLUME, ls=":"))
    ax.add_patch(Circle((0, 0), R, fc=VOLUME, alpha=0.25, ec=VOLUME))
    ax.add_patch(Circle((0, 0), D, fill=False, ec=SOFT, ls=":", lw=0.8))
    angle = np.radians([35, -35])
    nose = [(0.3 * np.cos(a), 0.3 * np.sin(a)) for a in angle] + [(0.52, 0)]
    ax.add_patch(Polygon(nose, fc=FACE, ec="none"))
    ax.text(0.62, 0.24, "face", color=FACE, fontsize=9)
    for azimuth in (0, 45, 90, 180, 270):
        c2w = cam.orbit_c2w(float(azimuth), 0.0).numpy()
        position, right, back = c2w[:2, 3], c2w[:2, 0], c2w[:2, 2]
        tip = [position, position - 0.3 * back + 0.15 * right, position - 0.3 * back - 0.15 * right]
        ax.add_patch(Polygon(tip, fc=CAMERA, ec="none", alpha=0.8))
        arrow(ax, position, position + 0.6 * right, CAMERA)
        ax.text(*(position + 0.42 * back), f"{azimuth}°", color=CAMERA, ha="center", va="center", fontsize=10)
    c2w = cam.orbit_c2w(0.0, 0.0).numpy()
    for sign in (-1, 1):
        ax.plot([D, -R], [0, sign * np.tan(HALF_FOV) * (D + R)], color=CAMERA, lw=0.7, alpha=0.6)
    ax.text(D - 0.1, 0.86, "right", color=CAMERA, fontsize=9, ha="center")
    arrow(ax, (0, 0), (1.25, 0), INK, "x", (0.12, 0.14))
    arrow(ax, (0, 0), (0, 1.05), INK, "y", (0.14, 0.1))
    ax.set(xlim=(-3.5, 3.5), ylim=(-3.5, 3.5))
    ax.text(-3.4, -3.4, "position = d (cos e cos a, cos e sin a, sin e)", fontsize=9, color=INK)


def from_the_side(ax):
    """Head-frame z to the right, y up: volume, landmarks and the canonical camera's field of view (compressed gap)."""
    ax.set_title("From the side: the volume (head frame)")
    ax.add_patch(Rectangle((-R, -R), 2 * R, 2 * R, fc=VOLUME, alpha=0.25, ec=VOLUME))
    z = np.array([-0.45, 0.72])
    for sign in (-1, 1):
        ax.plot(z, sign * np.tan(HALF_FOV) * (D - z), color=CAMERA, lw=1)
    reach = np.tan(HALF_FOV) * D
    ax.plot([0, 0], [-reach, reach], color=SOFT, ls=":")
    ax.text(-0.02, -0.2, f"sees ±{reach:.4f}\nat the origin", color=SOFT, ha="right", fontsize=9)
    for name, row in (("eyes", 0), ("mouth corners", 2)):
        point = CANONICAL_LANDMARKS_HEAD[row]
        ax.plot(point[2], point[1], "o", color=FACE)
        ax.text(point[2] + 0.02, point[1] + 0.025, name, color=FACE, fontsize=9)
    ax.text(LANDMARK_DEPTH, -0.16, f"z = {LANDMARK_DEPTH}", color=FACE, ha="center", fontsize=9)
    ax.text(-R + 0.01, R + 0.015, f"cube and upright cylinder, radius {R}", color=VOLUME, fontsize=9)
    camera = f"canonical camera at z = {D}\nfovy {cam.CANONICAL_FOVY_DEG}°"
    ax.text(0.71, 0.29, camera, color=CAMERA, ha="right", fontsize=9)
    arrow(ax, (0, 0), (0.5, 0), INK, "head z\n= world x", (0.1, 0))
    arrow(ax, (0, 0), (0, 0.2), INK, "head y\n= world z", (-0.1, 0))
    ax.plot([0.4, 0.4 + 0.1 / cam.METRES_PER_UNIT], [-0.38, -0.38], color=INK, lw=2)
    ax.text(0.4 + 0.05 / cam.METRES_PER_UNIT, -0.42, "10 cm", ha="center", fontsize=9)
    ax.set(xlim=(-0.45, 0.72), ylim=(-0.47, 0.45))


def crop(ax):
    """Unit coordinates of the canonical crop, with the volume's outline projected by the code."""
    ax.set_title("Canonical crop (unit coordinates)")
    ax.add_patch(Rectangle((0, 0), 1, 1, fill=False, ec=CAMERA, lw=1.5))
    for row, name in enumerate(("left eye", "right eye", "left mouth corner", "right mouth corner")):
        u, v = CANONICAL_LANDMARKS_CROP[row]
        ax.plot(u, v, "o", color=FACE)
        side = -1 if row % 2 == 0 else 1
        label = f"{name}\n({u:.4g}, {v:.4g})"
        ax.text(u + 0.03 * side, v - 0.02, label, ha="right" if side < 0 else "left", va="center", fontsize=8)
    c2w = cam.orbit_c2w(torch.zeros(1, dtype=torch.float64), 0.0)
    world = cam.head_to_world(torch.tensor([[[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]], dtype=torch.float64))
    pixels, _ = cam.project_points(world, c2w, cam.canonical_fovy(c2w), 1, 1)
    origin, x, y = pixels[0].numpy()
    arrow(ax, origin, x, INK, "head x", (0.02, 0.03))
    arrow(ax, origin, y, INK, "head y", (0, -0.03))
    arrow(ax, (0, 0), (0.25, 0), CAMERA, "u", (0.03, 0.03))
    arrow(ax, (0, 0), (0, 0.25), CAMERA, "v", (0.03, 0.03))
    ax.text(0.5, 0.96, "pixel (row i, column j) of size S has its centre at\nu = (j + 0.5) / S, v = (i + 0.5) / S",
            ha="center", va="bottom", fontsize=8, color=CAMERA)  # fmt: skip
    ax.set(xlim=(-0.05, 1.05), ylim=(1.05, -0.05))


def planes(ax):
    """The three planes in the box, seen in perspective, each with its column and row axis."""
    ax.set_title("Tri-plane: column and row axis of each plane (head frame)")
    view = np.array([[0.94, -0.24], [0.0, 1.0], [-0.42, -0.38]])  # where unit x, y, z go on the page

    def to_page(p):
        return np.asarray(p, float) @ view

    for k, ((column, row, _), colour) in enumerate(zip(PLANE_AXES, (FACE, VOLUME, CAMERA))):
        corners = np.zeros((4, 3))
        corners[:, column] = [-1, 1, 1, -1]
        corners[:, row] = [-1, -1, 1, 1]
        ax.add_patch(Polygon(to_page(corners), fc=colour, alpha=0.16, ec=colour))
        start = corners[0]  # first texel
        ends = [start.copy(), start.copy()]
        ends[0][column] += 0.55
        ends[1][row] += 0.55
        ax.plot(*to_page(start), "s", color=colour, ms=5)
        for end, label in zip(ends, ("column", "row")):
            arrow(ax, to_page(start), to_page(end), colour)
            middle = to_page(0.45 * start + 0.55 * end)
            ax.text(*(middle + [0.0, 0.07]), label, color=colour, fontsize=8, ha="center")
        name = f"plane {k} ({'xyz'[column]}, {'xyz'[row]})"
        ax.text(*to_page(corners[2 if k == 0 else 3] * 1.08), name, color=colour, fontsize=9, ha="center")
    for axis, letter in enumerate("xyz"):
        end = np.zeros(3)
        end[axis] = 1.35
        arrow(ax, to_page(np.zeros(3)), to_page(end), INK, letter, tuple(0.08 * to_page(end)))
    ax.set(xlim=(-1.75, 1.75), ylim=(-1.75, 1.75))


def main() -> None:
    figure, axes = plt.subplots(2, 2, figsize=(12, 12), layout="constrained")
    for draw, ax in zip((from_above, from_the_side, crop, planes), axes.flat):
        draw(ax)
        ax.set_aspect("equal")
        ax.axis("off")
    target = DOCS / "images" / "conventions.png"
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_suffix(".tmp")
    figure.savefig(temporary, dpi=90, format="png")
    os.replace(temporary, target)


if __name__ == "__main__":
    main()
