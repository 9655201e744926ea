"""Polymodal: learn from texts, images, sounds and numbers at once."""
