"""Objectives: what a step minimises, and how the losses of several tasks become one step."""
