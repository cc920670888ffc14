"""One user's state: the conversation in effect, its archive on disk, the config file, and how settings change."""
