"""The optional inputs of the synthetic tests serve here, too."""
from synthetic.conftest import assets, assets_root, basis, basis_file, gl_rasterizer  # noqa: F401
