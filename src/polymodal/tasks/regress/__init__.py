"""Regression: the task itself, and what its raw outputs can stand for."""

from polymodal.tasks.regress.part import Regress

__all__ = ["Regress"]
