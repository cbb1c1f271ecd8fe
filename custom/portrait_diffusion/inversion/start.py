"""Where the fit to a photo starts: the camera's estimate, and the perceptual distance that it uses."""
from ..errors import EnvironmentProblem
from ..photo.prepare import PreparedPhoto
from .camera import PhotoCamera

MAX_ANGLE_DEG = {"azimuth": 40.0, "elevation": 20.0}


def initial_camera(prepared: PreparedPhoto) -> PhotoCamera:
    """Camera estimate from the head pose and the landmarks.

    Pitch from five points is rough, so only half of it is believed.
    """
    azimuth = elevation = 0.0
    if prepared.pose is not None:
        limit = MAX_ANGLE_DEG
        azimuth = max(-limit["azimuth"], min(limit["azimuth"], -prepared.pose.yaw))
        elevation = max(-limit["elevation"], min(limit["elevation"], 0.5 * prepared.pose.pitch))
    four = prepared.landmarks[[0, 1, 3, 4]] / prepared.rgb.shape[0]
    return PhotoCamera.from_landmarks(azimuth, elevation, four)


def load_perceptual(weight: float, key: str):
    """ST-LPIPS (AlexNet), None when its weight is 0. Raises EnvironmentProblem, naming the key, without the package."""
    if weight == 0:
        return None
    from ..evaluation.stlpips import STLPIPS

    try:
        return STLPIPS("alex")
    except EnvironmentProblem as error:
        raise EnvironmentProblem(f"{error} Or run without it: {key}=0.") from error
