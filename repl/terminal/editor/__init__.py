"""The line editor: completion, keys, history, pasted text, and the panel of settings."""
