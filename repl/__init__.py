"""A chat-style terminal REPL for exploring language models from the Hugging Face Hub."""

__version__ = "0.1.0"
