"""From a request to a reply: a prompt goes in, events and a record come out. Only the model thread runs it."""
