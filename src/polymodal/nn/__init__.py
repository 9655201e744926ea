"""Layers, backbones and their weights. Nothing here knows of specs."""
