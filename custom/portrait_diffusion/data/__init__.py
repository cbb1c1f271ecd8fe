"""Data modules: the photo and the cameras of training, validation and test."""
