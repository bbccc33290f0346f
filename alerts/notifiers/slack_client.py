"""slack_sdk's web client over our own poster, and Slack's errors told as "later" or "never" with what to do.

Three things of the client are replaced: its retries (the outbox retries), its opener (it would follow redirects and read without
bound), and its logger (at DEBUG it writes what was sent).
"""

from __future__ import annotations

import logging
from typing import Any
from urllib.request import Request

from slack_sdk import WebClient
from slack_sdk.errors import SlackApiError, SlackClientError

from alerts.notifiers import http
from collector.errors import GiveUp, RetryLater

MUTE = logging.Logger("klaxon.slack_sdk", level=logging.CRITICAL + 1)
PASSING = frozenset({"ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable", "request_timeout", "team_added_to_org"})
"""Errors of Slack's that another attempt may mend."""
GONE = frozenset({"message_not_found", "thread_not_found", "cant_update_message", "edit_window_closed"})
"""Errors that say the root message can no longer be changed."""
GONE_WITH_ITS_CHANNEL = GONE | {"channel_not_found", "not_in_channel", "is_archived"}
_TOKEN = "the bot token is not valid (any more); put the app's current Bot User OAuth Token (xoxb-…) where secret_env or secret_file points"
WHAT_TO_DO = {
    "channel_not_found": "the bot sees no such channel: check `channel` (its id, C…), and invite the bot if it is private",
    "not_in_channel": "invite the bot to the channel (/invite @…), or give the app the scope chat:write.public",
    "is_archived": "the channel is archived; name another one",
    "missing_scope": "give the app the scope chat:write (and files:write for charts) and install it again",
    "restricted_action": "a setting of the workspace keeps the bot from posting in this channel",
    **dict.fromkeys(("invalid_auth", "not_authed", "token_revoked", "token_expired", "account_inactive"), _TOKEN),
}


class Client(WebClient):
    """One token, one base address."""

    def __init__(self, poster: http.Poster, token: str) -> None:
        super().__init__(token=token, base_url=poster.url, logger=MUTE, retry_handlers=[], user_agent_prefix="klaxon")
        self._poster = poster

    def _perform_urllib_http_request_internal(self, url: str, req: Request) -> dict[str, Any]:
        data = req.data if isinstance(req.data, bytes) else b""
        answer = self._poster.post(data, dict(req.header_items()), below=url.removeprefix(self._poster.url))
        return {"status": answer.status, "headers": dict(answer.headers), "body": answer.body}

    def call(self, method: str, *, gone: frozenset[str] = GONE, **given: Any) -> dict[str, Any]:
        """Slack's answer: {"ok": true, …}, or {"ok": false, "error": one of `gone`}.

        Raises:
            RetryLater: HTTP 429 and 5xx, with Retry-After, and Slack's passing errors.
            GiveUp: any other error of Slack's, with what to do.
        """
        try:
            return _data(self.api_call(method, **given).data)
        except SlackApiError as error:
            response: Any = error.response
            data = _data(response.data)
            if response.status_code != 200:
                http.judge(http.Answer(status=response.status_code, headers=response.headers, body=str(data.get("error", ""))))
            said = str(data.get("error", "unknown"))[:80]
        except SlackClientError as error:
            raise GiveUp(f"the Slack client refuses the message ({type(error).__name__})") from None
        if said in gone:
            return {"ok": False, "error": said}
        if said in PASSING:
            raise RetryLater(f"Slack answered {said}")
        if not data:
            raise RetryLater("Slack's address answered something that is not Slack's; is a proxy or a login page in between?")
        raise GiveUp(f"Slack refuses {method}: {said}" + (f"; {WHAT_TO_DO[said]}" if said in WHAT_TO_DO else ""))


def _data(data: Any) -> dict[str, Any]:
    """Slack's JSON; {} for what slack_sdk made up itself because it was none."""
    if not isinstance(data, dict) or " " in str(data.get("error", "")):
        return {}
    return data
