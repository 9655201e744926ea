"""Matching: the task itself, the head that embeds its sides, and what its embeddings are worth."""

from polymodal.tasks.match.part import Match

__all__ = ["Match"]
