"""Memory: how much a model needs and how much is free, load plans, and remedies when memory runs out."""
