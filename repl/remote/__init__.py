"""An engine over an OpenAI-compatible server: requests out, events and a reply's record in."""
