"""Items by their vectors: an index of them, search in it, and labels by name."""
