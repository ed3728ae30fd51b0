"""Connection to Weights & Biases' server, examined before anything waits for it."""

import http.client
import ssl
import urllib.error
import urllib.request
from typing import Any

REPLY_TIMEOUT = 5.0  # seconds


def connection_problem(timeout: float) -> str | None:
    """Return the reason why W&B's server cannot be used, such as no key or no network; None if nothing is known.

    Args:
        timeout: Seconds to wait for a reply.
    """
    try:
        import wandb
    except ImportError:
        return "Weights & Biases is not installed: pip install 'sr_lightning[wandb]'"
    settings = wandb.setup(wandb.Settings(mode="online", silent=True)).settings
    try:
        if not wandb.login(prompt=False, verify=False):
            return f"no key for {settings.base_url}: `wandb login` asks for it once"
    except wandb.Error as error:  # a malformed key
        return " ".join(str(error).split())
    return server_problem(settings, timeout)


def server_problem(settings: Any, timeout: float) -> str | None:
    """Return the reason why the server of W&B's settings cannot be reached; None if nothing is known."""
    if settings.http_proxy or settings.https_proxy:  # only W&B's own client uses proxies
        return None
    return probe_server(f"{settings.base_url}/graphql", timeout)


def probe_server(url: str, timeout: float) -> str | None:
    """Return an error text if a server answers with a status from 500, or not within `timeout` seconds; else None.

    Invalid certificates are accepted: W&B's client may trust others.
    """
    try:
        urllib.request.urlopen(url, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code} {error.reason}" if error.code >= 500 else None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        return None if isinstance(reason, ssl.SSLCertVerificationError) else f"{url} cannot be reached ({reason})"
    return None
