"""The generative stack: one autoregressive model for text and image tokens, its tokenizer and its diffusion decoder."""
