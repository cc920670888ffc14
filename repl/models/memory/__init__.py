"""What a model takes and what is free: estimates, plans, and what to do when memory runs out."""
