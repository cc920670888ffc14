"""The prompt as the library's chat template makes it, and the reply read the way the model writes it."""
