"""The address of a server: a typed URL becomes the base URL of its API."""

import ipaddress
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from repl.core.errors import UsageError

HUB_HOSTS = ("huggingface.co", "hf.co")


@dataclass(frozen=True, slots=True)
class Address:
    """The base URL and key of a server; `repr` does not show the key."""

    url: str
    """The base URL, such as `http://127.0.0.1:8000/v1`."""
    key: str = field(default="", repr=False)

    @property
    def host(self) -> str:
        """Return host and port."""
        return urlsplit(self.url).netloc

    @property
    def loopback(self) -> bool:
        """Tell whether the server runs on this machine."""
        name = urlsplit(self.url).hostname or ""
        with suppress(ValueError):
            return ipaddress.ip_address(name).is_loopback
        return name == "localhost"

    @property
    def encrypted(self) -> bool:
        """Tell whether the connection is encrypted."""
        return self.url.startswith("https://")

    @property
    def hub(self) -> bool:
        """Tell whether the Hub's token may be sent there: over HTTPS to a host of Hugging Face."""
        name = urlsplit(self.url).hostname or ""
        return self.encrypted and any(name == known or name.endswith("." + known) for known in HUB_HOSTS)


def read_address(words: str) -> Address:
    """Read a URL: the scheme may be left out, and `/v1` where there is no path; raises `UsageError`."""
    text = words.strip()
    try:
        whole = text if "://" in text else f"http://{text}"
        parts = urlsplit(whole)
        host, _ = parts.hostname, parts.port  # raises for an invalid port
    except ValueError as error:
        raise UsageError(f"{text!r} is not a URL: {error}", "/connect http://127.0.0.1:8000") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UsageError("do not put a key into the URL", "/connect URL --key-env NAME")
    if parts.scheme not in ("http", "https") or not host or any(letter.isspace() for letter in whole):
        raise UsageError(f"{text!r} is not the URL of a server", "/connect http://127.0.0.1:8000")
    found = Address(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}")
    if "://" not in text and not found.loopback:
        return Address("https" + found.url.removeprefix("http"))
    return found
