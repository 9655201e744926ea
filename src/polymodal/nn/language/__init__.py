"""A causal language model with its tokenizer: loading, reading, saying."""
