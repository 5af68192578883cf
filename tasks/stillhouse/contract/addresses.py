"""Addresses of servers name no one: they are stored, shown and logged, and passwords must not be."""

from urllib.parse import urlsplit

from stillhouse.contract.errors import ConfigurationError


def check_address(uri: str) -> str:
    """Return the address ``uri`` of a server.

    Raises:
        ConfigurationError: It holds a user's name or password; the message shows neither.
    """
    try:
        parts = urlsplit(uri)
        named = parts.username is not None or parts.password is not None
    except ValueError:
        raise ConfigurationError("the address of a server can't be read; correct it") from None
    if named:
        raise ConfigurationError(
            f"the address of {parts.hostname} holds a user's name or password; take them out, and set"
            " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, by reference to a secret"
        )
    return uri
