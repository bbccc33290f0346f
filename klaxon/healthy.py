"""`python -m klaxon.healthy [CONFIG or URL]`: does the daemon of this container answer? What HEALTHCHECK runs: the standard library only.

Healthy is a daemon that answers GET /healthz, whatever it says of the run: a mismatch is no reason to restart it.
Exit codes: 0 it answers, 1 it does not.
"""

from __future__ import annotations

import http.client
import ssl
import sys
import tomllib
import urllib.request

DEFAULT_CONFIG = "/etc/klaxon/config.toml"
TIMEOUT_SECONDS = 8.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}


def address(config: str) -> str:
    """The daemon's /healthz by its config file. Raises OSError and tomllib.TOMLDecodeError as reading does."""
    with open(config, "rb") as file:
        daemon = tomllib.load(file).get("daemon", {})
    host = str(daemon.get("host", "127.0.0.1"))
    scheme = "https" if daemon.get("tls_cert") else "http"
    return f"{scheme}://{_EVERYWHERE.get(host, host)}:{daemon.get('port', 8765)}/healthz"


def answers(url: str) -> bool:
    """Does it say 200? The certificate is not checked: it names the host others call it by, and nothing secret is sent."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusting))
    with direct.open(url, timeout=TIMEOUT_SECONDS) as answer:
        return answer.status == 200


def main(arguments: list[str]) -> int:
    """0 when it answers, 1 with one line of why when it does not."""
    where = arguments[0] if arguments else DEFAULT_CONFIG
    try:
        url = where if where.startswith(("http://", "https://")) else address(where)
        if answers(url):
            return 0
        print(f"{url} does not answer 200", file=sys.stderr)
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError, TOMLDecodeError a ValueError
        print(f"{where}: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
