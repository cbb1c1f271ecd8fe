"""Published 3D-aware portrait GANs as priors: EG3D, PanoHead, SphereHead, and the pyramid of 3DPortraitGAN."""
