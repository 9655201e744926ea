"""Tagging: the task itself, how its targets are read, its head, and what is decoded from it."""

from polymodal.tasks.tag.part import Tag

__all__ = ["Tag"]
