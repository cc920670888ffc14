"""Which servers may be talked to, and with which key: an address from a URL, or a name of the config file."""

import os
import re

import huggingface_hub

from repl.core.errors import UsageError
from repl.core.values import closest_match
from repl.remote.address import Address, read_address
from repl.session.session import Session


def server_address(session: Session, url: str, key_env: str = "", insecure: bool = False) -> Address:
    """Return the address of a server with its key; `url` may be the name of a table in the config file.

    Raises `UsageError` for one that may not be talked to as things stand, and for a key that is not there.
    """
    if (
        url not in session.engines
        and re.fullmatch(r"\w+", url)
        and (close := closest_match(url, list(session.engines)))
    ):
        raise UsageError(f"no server {url!r}, did you mean {close}?", f"/connect {close}")
    table = session.engines.get(url, {"url": url})
    found = read_address(table["url"])
    if found.host not in session.trusted and not (insecure or found.encrypted or found.loopback):
        effect = "anyone on the way can read what you send, including a key"
        said = f"{found.host} is another machine, and http is not encrypted"
        raise UsageError(said, choices=((f"/connect {url} --insecure", effect),), again=False)
    if session.store.offline and not found.loopback:
        raise UsageError("this session is offline: only servers on this machine can be used", "/connect 127.0.0.1")
    return Address(found.url, server_key(found, key_env or table.get("key_env", "")))


def server_key(where: Address, name: str) -> str:
    """Return the key for a server: that of the variable, or the Hub's own for the Hub; raises `UsageError`."""
    if not name:
        return (huggingface_hub.get_token() or "") if where.hub else ""
    found = os.environ.get(name, "").strip()
    if not found:
        raise UsageError(f"the variable {name} is not set", f"export {name}=...")
    if not re.fullmatch(r"[!-~]+", found):
        raise UsageError(f"the variable {name} does not hold a key: it contains spaces or other invalid characters")
    return found
