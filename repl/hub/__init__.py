"""From a name to a folder of checked files: the cache, downloads, the catalogue, consent to remote code, the
built-in model.
"""
