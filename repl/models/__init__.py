"""From a folder to a model in memory: loader, device map, quantization, adapters, and the store of models that are
loaded.
"""
