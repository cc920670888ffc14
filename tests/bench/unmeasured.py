"""The program as it would be if replies were not measured: what measuring costs is seen beside it."""

from repl.cli.main import main
from repl.core.reply import TokenLogprobs
from repl.generation import measure

measure.forward.Meter._take = lambda *_: None  # type: ignore[method-assign]
measure.forward.Meter.measure = lambda *_: {}  # type: ignore[method-assign]
measure.forward.Meter.measures = lambda *_: TokenLogprobs()  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
