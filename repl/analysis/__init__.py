"""Experiments on replies and models: what goes in is a session or a model, what comes out is a frozen value.
Nothing is drawn.
"""
