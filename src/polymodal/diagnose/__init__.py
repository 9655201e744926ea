"""What each input carries, what the model makes of it, and where it breaks: `run.diagnose` does all of it."""
