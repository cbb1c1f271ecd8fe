"""Procedural portraits with ground truth: heads, assets, subjects, two rasterisers and the data set command."""
