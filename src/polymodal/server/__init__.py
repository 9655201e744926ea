"""A bundle over HTTP: requests to rows, rows to batches, batches to answers."""
