"""Search: choose settings and parts of a spec by what they score on validation rows: `run.search` does all of it."""
