"""What is said of an error that a library raises."""

from repl.core.errors import root_cause, sentence


def test_the_cause_of_a_chain_is_the_first_error() -> None:
    """As of a torchvision that does not fit torch: the library says only which of its own modules it cannot import."""
    first = RuntimeError("operator torchvision::nms does not exist")
    error = ModuleNotFoundError("Could not import module 'LlamaConfig'.")
    error.__cause__ = first
    assert sentence(root_cause(error)) == "operator torchvision::nms does not exist"
    assert root_cause(first) is first
