"""How the dashboard is started: one command line, with the theme, on loopback unless people sign in, telling nobody.

`klaxon dashboard`, or `python -m dashboard.launch --api http://127.0.0.1:8765 --port 8501`
"""

from __future__ import annotations

import argparse
import errno
import importlib.util
import os
import secrets
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from starlette.middleware import Middleware

from dashboard.access import is_loopback, read
from dashboard.daemons import DEFAULT_API, Unusable, environment, from_file, from_flags, read_secret
from dashboard.guard import ComeBack, ProxyOnly

SETTINGS = "KLAXON_SIGN_IN"
"""Environment of the page: path of the sign-in file (dashboard/access.py); empty = nobody signs in, and the page keeps to loopback."""
EXAMPLES = """examples:
  python -m dashboard.launch                                              the daemon on this machine, page on http://127.0.0.1:8501
  python -m dashboard.launch --api grpo-7b=http://gpu-1:8765 --api sft=http://gpu-2:8765
  python -m dashboard.launch --daemons daemons.toml --sign-in sign-in.toml --address 0.0.0.0"""

APP = Path(__file__).parent / "entry" / "klaxon_page.py"

# Okabe and Ito's colours, told apart by every kind of colour vision; the blue a little lighter, to be read on black too.
BLUE, ORANGE, VERMILLION, GREEN, SKY, PURPLE, GREY = (
    "#1A86CC", "#E69F00", "#D55E00", "#009E73", "#56B4E9", "#CC79A7", "#8A8F98")

ABOVE_NAMES = {"titleAngle": 0, "titleAlign": "right", "titleAnchor": "start", "titleX": -6, "titleY": -7, "titleBaseline": "bottom"}
"""Of an axis of names: its title above them, level, where it costs no width and covers none of them."""

_THEME = {
    "theme.light.primaryColor": BLUE, "theme.light.backgroundColor": "#FFFFFF",
    "theme.light.secondaryBackgroundColor": "#F3F5F8", "theme.light.textColor": "#15202B",
    "theme.light.borderColor": "#D9DEE5", "theme.light.redColor": "#C94F00", "theme.light.redBackgroundColor": "#FFDCC2",
    "theme.light.redTextColor": "#7A2E00", "theme.light.greenColor": "#00805C", "theme.light.greenBackgroundColor": "#CDEFE2",
    "theme.light.greenTextColor": "#00543D", "theme.light.yellowBackgroundColor": "#FFEDB8", "theme.light.yellowTextColor": "#654400",
    "theme.light.blueBackgroundColor": "#D8EBF8", "theme.light.blueTextColor": "#004C78",
    "theme.dark.primaryColor": BLUE, "theme.dark.backgroundColor": "#0E1318", "theme.dark.secondaryBackgroundColor": "#182028",
    "theme.dark.textColor": "#E8EDF2", "theme.dark.borderColor": "#2C3742", "theme.dark.redColor": "#FF8A3D",
    "theme.dark.redBackgroundColor": "#4A2108", "theme.dark.redTextColor": "#FFC9A3", "theme.dark.greenColor": "#2CCB9B",
    "theme.dark.greenBackgroundColor": "#0B3A2D", "theme.dark.greenTextColor": "#9DF0D6",
    "theme.dark.yellowBackgroundColor": "#43330A", "theme.dark.yellowTextColor": "#FFDF94",
    "theme.dark.blueBackgroundColor": "#0D3350", "theme.dark.blueTextColor": "#A9DCFA",
    "theme.paddingTop": "2.2rem", "theme.baseRadius": "0.6rem", "theme.metricValueFontSize": "1.55rem", "theme.metricValueFontWeight": "600",
    "theme.headingFontSizes": '["1.7rem", "1.35rem", "1.1rem"]',
}


def command(*, port: int = 8501, address: str = "127.0.0.1", page_url: str = "", signed: bool = False) -> list[str]:
    """The argv that serves the page. Set KLAXON_API in its environment to the daemon's address; `start` sets everything."""
    options = {
        "server.port": str(port), "server.address": address, "server.headless": "true", "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false", "client.toolbarMode": "minimal", "client.showErrorDetails": "none",
        "runner.magicEnabled": "false", "runner.postScriptGC": "false", **_THEME,
    }
    if page_url:
        options["server.corsAllowedOrigins"] = page_url
    script = APP.with_name("signed_page.py") if signed else APP
    return [sys.executable, "-m", "dashboard.warm", "run", str(script), *(f"--{name}={value}" for name, value in options.items())]


def start(*, apis: Sequence[str] = (), daemons_file: Path | None = None, sign_in: Path | None = None, address: str = "127.0.0.1", port: int = 8501) -> NoReturn:
    """Become the page's process.

    Raises:
        Unusable: something given cannot be used, the port is taken, or the page would be open to everybody.
    """
    if apis and daemons_file:
        raise Unusable("--api and --daemons: give one of them")
    shown = from_file(daemons_file) if daemons_file else from_flags(apis or (os.environ.get("KLAXON_API") or DEFAULT_API,))
    settings = read(sign_in) if sign_in else None
    if settings is None and not is_loopback(address):
        raise Unusable(f"--address {address}: whoever reaches the page could acknowledge and silence alarms. Give --sign-in FILE (docs/dashboard.md), or listen on 127.0.0.1")
    if settings is not None and settings.oidc is not None and importlib.util.find_spec("authlib") is None:
        raise Unusable("[oidc] needs Authlib: pip install 'klaxon-rl[sign-in]'")
    require_free(address, port)
    os.environ.update(environment(shown))
    os.environ[SETTINGS] = str(sign_in.resolve()) if sign_in else ""
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # uvicorn would take the other end's address out of a header
    way = settings and (settings.oidc or settings.header)
    argv = command(port=port, address=address, page_url=way.page_url if way else "", signed=settings is not None)
    print(f"the page: {way.page_url if way and way.page_url else f'http://{address}:{port}'} ({', '.join(one.shown for one in shown)})", file=sys.stderr, flush=True)
    os.execv(argv[0], argv)


def require_free(address: str, port: int) -> None:
    """Raises Unusable where the page could not listen."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except socket.gaierror:
        raise Unusable(f"--address {address} is no address of this machine") from None
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise Unusable(f"port {port} is taken: is another page running there? Choose another with --port") from None
        raise Unusable(f"{address}:{port} cannot be listened on ({getattr(error, 'strerror', None) or error})") from None


def provider() -> dict[str, Any]:
    """Streamlit's secrets for OpenID Connect, out of the sign-in file; empty where a proxy signs people in. Raises: Unusable."""
    oidc = read(Path(os.environ[SETTINGS])).oidc
    if oidc is None:
        return {}
    cookie = read_secret(oidc.cookie_secret_file, where="[oidc] cookie_secret_file") if oidc.cookie_secret_file else secrets.token_urlsafe(32)
    return {"auth": {
        "redirect_uri": f"{oidc.page_url}/oauth2callback", "cookie_secret": cookie, "client_id": oidc.client_id,
        "client_secret": read_secret(oidc.client_secret_file, where="[oidc] client_secret_file"), "server_metadata_url": oidc.server_metadata_url,
        "client_kwargs": {"scope": oidc.scope}}}


def guards() -> list[Middleware]:
    """What stands before the page, out of the sign-in file. Raises: Unusable."""
    settings = read(Path(os.environ[SETTINGS]))
    if settings.header is not None:
        secret = read_secret(settings.header.secret_file, where="[header] secret_file") if settings.header.secret_file else ""
        return [Middleware(ProxyOnly, header=settings.header, secret=secret)]
    return [Middleware(ComeBack, secure=settings.oidc.page_url.startswith("https:"))]


def main() -> None:
    """Serve the page in this process."""
    parser = argparse.ArgumentParser(prog="python -m dashboard.launch", description="Serve Klaxon's dashboard. `klaxon dashboard` is the same.", epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--api", action="append", default=[], metavar="[NAME=]URL", help="address of a daemon's read API; may be repeated, then with names")
    parser.add_argument("--daemons", type=Path, metavar="FILE", help="TOML or JSON file of daemons: name, url, token_file, ca_file")
    parser.add_argument("--sign-in", type=Path, metavar="FILE", help="TOML file: who signs in, how, and who may act; needed off loopback")
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument("--address", default="127.0.0.1", help="what to listen on; off loopback only with --sign-in")
    given = parser.parse_args()
    try:
        start(apis=given.api, daemons_file=given.daemons, sign_in=given.sign_in, address=given.address, port=given.port)
    except Unusable as error:
        print(f"klaxon dashboard: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
