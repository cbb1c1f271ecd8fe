"""Matter that hangs in the air beside a head: dust and shreds that no photo shows and no losses see."""
import numpy as np

SOLID = 0.1
"""Share of the light that a voxel stops from which it belongs to a body; from .3 on soft outlines of hair suffer."""


def outside_the_body(stopped: np.ndarray) -> np.ndarray:
    """Voxels that neither belong to the largest connected body nor touch it, (D,H,W) bool.

    Voxels touch across faces, edges and corners. A grid without solid voxels has no body, and nothing lies outside it.

    Args: stopped: (D,H,W) shares of the light that voxels stop, in [0, 1]; from `SOLID` on they are solid.
    """
    from scipy import ndimage  # not needed to name the settings

    around = np.ones((3, 3, 3), bool)
    bodies, count = ndimage.label(stopped >= SOLID, structure=around)
    if count == 0:
        return np.zeros(stopped.shape, bool)
    largest = 1 + np.bincount(bodies.ravel())[1:].argmax()
    return ~ndimage.binary_dilation(bodies == largest, structure=around)
