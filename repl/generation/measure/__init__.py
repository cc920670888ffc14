"""Log-probabilities and what processors make of them, held against the library's own numbers."""
