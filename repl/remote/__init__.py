"""The same engine over a server that speaks the OpenAI protocol: requests out, events and a record in."""
