"""What is said of an error that a library raises."""

import pytest

from repl.core.errors import root_cause, sentence


def test_the_cause_of_a_chain_is_the_first_error() -> None:
    """As of a torchvision that does not fit torch: the library says only which of its own modules it cannot import."""
    with pytest.raises(ModuleNotFoundError) as caught:
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as error:
            raise ModuleNotFoundError("Could not import module 'LlamaConfig'.") from error
    assert sentence(root_cause(caught.value)) == "operator torchvision::nms does not exist"
    assert root_cause(root_cause(caught.value)) is root_cause(caught.value)
