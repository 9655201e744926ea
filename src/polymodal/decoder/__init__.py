"""A language model as the decoder of a task: how it is asked, what it reads, what it says."""
