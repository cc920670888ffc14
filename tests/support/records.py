"""The record of a reply, for tests of what is kept and written."""

from repl.core.reply import ModelRecord, Reply, Timing, Usage

RECORD = Reply(
    "hello",
    (1, 2),
    (3,),
    "stop",
    ModelRecord("acme/tiny"),
    {},
    {"stop": ["a"]},
    7,
    Usage(2, 0, 1),
    Timing(0.1, 2, 3, 4),
)
