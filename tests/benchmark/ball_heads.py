"""A ball for a head: its renders and its truth, whose metrics are known."""
import json

import numpy as np
import torch
from portrait_diffusion.benchmark.truth import Cameras, Pictures, Truth
from portrait_diffusion.multiview import encode_depth
from portrait_diffusion.ops.cameras import get_rays
from portrait_diffusion.synthetic.parts import LABELS

RADIUS, SIZE = 0.2, 48


def render(c2w, fovy, height, width, radius=RADIUS, turned=0.0, grey=0.0):
    """RenderFn of a ball coloured by place; `turned` radians about z, its colours mixed with so much grey."""
    rays_o, rays_d = get_rays(c2w, fovy, height, width)
    b = (rays_o * rays_d).sum(-1)
    root = b.square() - rays_o.square().sum(-1) + radius**2
    hit = (root > 0)[..., None].float()
    depth = (-b - root.clamp(min=0).sqrt())[..., None] * hit
    normal = torch.nn.functional.normalize(rays_o + depth * rays_d, dim=-1)
    cosine, sine = np.cos(turned), np.sin(turned)
    x, y, z = normal.unbind(-1)
    place = torch.stack([cosine * x - sine * y, sine * x + cosine * y, z], dim=-1)
    rgb = torch.lerp(0.5 + 0.35 * torch.sin(9 * place), torch.full_like(place, 0.5), grey)
    return {"comp_rgb_fg": rgb * hit, "opacity": hit, "depth": depth, "comp_normal": (normal + 1) / 2 * hit}


def truth_of(azimuths=tuple(range(0, 360, 30)), photo=None) -> Truth:
    """The truth of `render`; its upper half is hair."""
    cameras = Cameras.ring(azimuths)
    out = render(cameras.c2w, cameras.fovy, SIZE, SIZE)
    rgb = (out["comp_rgb_fg"] + 1 - out["opacity"]).permute(0, 3, 1, 2)
    alpha, depth = out["opacity"].permute(0, 3, 1, 2), out["depth"][..., 0]
    normal = (2 * out["comp_normal"] - 1) * out["opacity"]
    hair = alpha * (normal[..., 2] > 0.3)[:, None]
    return Truth(Pictures(rgb, alpha, depth, normal), cameras, hair, photo)


def write_subject(path, azimuths=(0.0, 180.0), person=7):
    """A file as `synthetic.dataset` writes it, of the ball."""
    truth = truth_of(azimuths)
    p, c = truth.pictures, truth.cameras
    straight = torch.where(p.alpha > 0, p.rgb, torch.zeros_like(p.rgb))
    rgba = (torch.cat([straight, p.alpha], dim=1).permute(0, 2, 3, 1) * 255).round().byte().numpy()
    camera = torch.stack([c.azimuth, c.elevation, torch.full_like(c.azimuth, 2.7), torch.rad2deg(c.fovy)], dim=1)
    label = torch.where(truth.hair[:, 0] > 0, LABELS["hair"], LABELS["skin"]).byte()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path, rgba=rgba[None], depth=encode_depth(p.depth.numpy())[None], label=label[None].numpy(),
        normal=(p.normal * 127).round().to(torch.int8)[None].numpy(), c2w=c.c2w[None].numpy(),
        camera=camera[None].numpy(), landmarks=np.zeros((1, 5, 3), np.float32),
        subjects=np.array(json.dumps([{"person": person, "size": [0.1, 2.0]}])),
    )  # fmt: skip
    return path
