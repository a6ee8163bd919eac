"""What the Hub refuses, said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turns what the Hub refuses, or that it cannot be reached, into an error that says what did not happen.

    Args:
        what: did not happen, for instance "out/model was not published to owner/name".

    Raises:
        ValueError: the Hub refused, could not be reached, or there is no token.

    Source: this project's choice.
    """
    # The client lets the connection errors of its HTTP library through; which library that is has changed.
    http_error: Any = HfHubHTTPError.__bases__[0]
    try:
        yield
    except (http_error, LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        raise ValueError(f"{what}: {explained(error)}") from error
    except RuntimeError as error:
        # What breaks off an upload is wrapped by the client.
        if not isinstance(error.__cause__, http_error):
            raise
        raise ValueError(f"{what}: {error} {explained(error.__cause__)}") from error


def explained(error: Exception) -> str:
    """Say what an error of the Hub's client means for whoever asked.

    Args:
        error: of `huggingface_hub` or its HTTP library.

    Returns:
        One sentence, the client's own words in it.

    Source: this project's choice.
    """
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, LocalTokenNotFoundError) or status == 401:
        return f"the Hub knows no such token; log in by `hf auth login` or set HF_TOKEN ({error})"
    if status == 403:
        return f"the token may not write there ({error})"
    return str(error) or type(error).__name__
