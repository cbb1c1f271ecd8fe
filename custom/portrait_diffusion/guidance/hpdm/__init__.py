"""HPDM: hybrid-priors diffusion model, at any size, built from the classes of diffusers."""
