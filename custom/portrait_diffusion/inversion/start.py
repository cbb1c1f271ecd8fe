"""Where the fit to a photo starts: the camera's estimate, and the perceptual distance that it uses."""
from ..errors import EnvironmentProblem
from ..photo.prepare import PreparedPhoto
from .camera import PhotoCamera


def initial_camera(prepared: PreparedPhoto) -> PhotoCamera:
    """The camera that the preparation found, with the similarity of the crop that goes with it."""
    found = prepared.camera
    return PhotoCamera.from_landmarks(found.azimuth_deg, found.elevation_deg, found.anchors / prepared.rgb.shape[0])


def load_perceptual(weight: float, key: str):
    """ST-LPIPS (AlexNet), None when its weight is 0. Raises EnvironmentProblem, naming the key, without the package."""
    if weight == 0:
        return None
    from ..evaluation.stlpips import STLPIPS

    try:
        return STLPIPS("alex")
    except EnvironmentProblem as error:
        raise EnvironmentProblem(f"{error} Or run without it: {key}=0.") from error
