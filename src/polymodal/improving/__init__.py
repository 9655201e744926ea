"""Train one input further, and keep that only if the whole model is better for it: `run.improve` does all of it."""
