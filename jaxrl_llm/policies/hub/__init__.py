"""Weights of published models, in and out: Hugging Face folders and GGUF files."""
