"""The interactive 3D view: the viewer page of the installed trimesh (it brings three.js), made to fit a report."""
from pathlib import Path

import numpy as np
import trimesh

from ..optional import require
from .glb import read_glb

FIELD_OF_VIEW_DEG = 30.0

_SCRIPT = """<style>
body { background: #fff; }
button { position: fixed; left: 12px; bottom: 12px; font: 13px system-ui, sans-serif; padding: 6px 12px; border: 0;
  border-radius: 8px; background: rgba(20, 22, 28, .72); color: #fff; cursor: pointer; }
</style><button id="look" type="button">Show shape only</button><script>
"use strict";
(function () {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const ambient = new THREE.AmbientLight(0xffffff, 0.85);
  scene.add(ambient);
  scene.background = new THREE.Color(dark ? 0x1b1e25 : 0xf3f4f7);
  if (THREE.sRGBEncoding !== undefined) renderer.outputEncoding = THREE.sRGBEncoding;
  tracklight.intensity = 0.25;
  let shapeOnly = false;
  const textures = new Map();
  document.getElementById("look").addEventListener("click", function () {
    shapeOnly = !shapeOnly;
    this.textContent = shapeOnly ? "Show colours" : "Show shape only";
    ambient.intensity = shapeOnly ? 0.15 : 0.85;
    tracklight.intensity = shapeOnly ? 0.7 : 0.25;
    scene.traverse(function (node) {
      if (!node.isMesh) return;
      if (!textures.has(node)) textures.set(node, node.material.map);
      node.material.map = shapeOnly ? null : textures.get(node);
      node.material.needsUpdate = true;
    });
    render();
  });
})();
</script></body>"""


def viewer_html(glb_path: str | Path) -> str:
    """A complete HTML page, without network, that shows a GLB from the front; turn by dragging, zoom by scrolling.

    Args: glb_path: file written by write_glb.
    Returns: HTML text.
    """
    notebook = require("trimesh.viewer.notebook", extra="export", package="trimesh")
    mesh = read_glb(glb_path)
    scene = trimesh.Scene()
    scene.add_geometry(mesh, geom_name="portrait", node_name="portrait")
    centre = mesh.bounds.mean(0)
    distance = 0.62 * float(max(mesh.extents)) / np.tan(0.5 * np.radians(FIELD_OF_VIEW_DEG))
    scene.camera = trimesh.scene.Camera(resolution=(640, 640), fov=(FIELD_OF_VIEW_DEG, FIELD_OF_VIEW_DEG))
    pose = np.eye(4)
    pose[:3, 3] = centre + [0.0, 0.0, distance + 0.5 * mesh.extents[2]]
    scene.camera_transform = pose
    page = notebook.scene_to_html(scene)
    head, body_end, tail = page.rpartition("</body>")
    return head + _SCRIPT + tail if body_end else page + _SCRIPT
