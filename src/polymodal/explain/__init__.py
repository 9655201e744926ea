"""Explain what each input, and each piece of it, did to an answer."""

from polymodal.explain.rows import explain

__all__ = ["explain"]
