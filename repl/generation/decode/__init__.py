"""From a prompt to tokens: the one decode loop, its proposals, the KV cache, beams, and the detokenizer."""
