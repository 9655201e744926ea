"""Rows as vectors, by a model that matches its inputs or by one modality's own backbone."""
