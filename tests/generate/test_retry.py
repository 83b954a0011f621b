"""Which attempts are tried again, and when."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from utils.generate.retry import (
    Failure,
    asked_pause_seconds,
    pause_seconds,
    seconds_of,
    verdict_on,
)

NOW = datetime(2026, 1, 5, 10, tzinfo=UTC).timestamp()


class Highest:
    """A generator that draws the upper end."""

    def uniform(self, low: float, high: float) -> float:
        assert low == 0
        return high


def test_every_status_has_one_verdict():
    statuses = set(range(100, 600))
    tried_again = {status for status in statuses if verdict_on(status) == "retry"}
    assert tried_again == {408, 409, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}
    assert {status for status in statuses if verdict_on(status) == "forbidden"} == {401, 403}
    assert verdict_on(200) == "good"
    for status in (204, 301, 307, 400, 402, 404, 405, 410, 413, 422, 451, 501):
        assert verdict_on(status) == "refused"


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("1s", 1),
        ("6m0s", 360),
        ("250ms", 0.25),
        ("1h30m", 5400),
        ("1m30.5s", 90.5),
        ("2d", 172_800),
        ("12", 12),
        ("0.5", 0.5),
        ("-3", 0),
        (" 7 ", 7),
        (str(NOW + 9), 9),
        (str(NOW - 9), 0),
        (str(int((NOW + 9) * 1000)), 9),
        ("", None),
        ("soon", None),
        ("5 parsecs", None),
        ("nan", None),
        ("inf", None),
        ("1x2s", None),
    ],
)
def test_times_of_rate_limit_headers(text, seconds):
    assert seconds_of(text, NOW) == (None if seconds is None else pytest.approx(seconds, abs=1e-3))


def date(seconds: float) -> str:
    return format_datetime(datetime.fromtimestamp(NOW + seconds, UTC), usegmt=True)


@pytest.mark.parametrize(
    "headers, seconds",
    [
        ({}, None),
        ({"Retry-After": "2.5"}, 2.5),
        ({"Retry-After": "-3"}, 0),
        ({"Retry-After": date(7)}, 7),
        ({"Retry-After": date(-7)}, 0),
        ({"Retry-After": "soon"}, None),
        ({"x-ratelimit-reset-requests": "6m0s"}, 360),
        ({"x-ratelimit-reset-tokens": "250ms"}, 0.25),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "3s"}, 3),
        (
            {
                "x-ratelimit-reset-requests": "1s",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "9s",
                "x-ratelimit-remaining-tokens": "500",
            },
            1,
        ),
        ({"Retry-After": "2", "x-ratelimit-reset-requests": "9s"}, 2),
        ({"Retry-After": "later", "x-ratelimit-reset-requests": "9s"}, 9),
    ],
)
def test_what_a_throttled_call_is_asked_to_wait(headers, seconds):
    assert asked_pause_seconds(429, headers, NOW) == seconds


def test_other_failures_wait_for_retry_after_alone():
    """Many servers send their limits with each answer; a 500 says nothing about them."""
    assert asked_pause_seconds(500, {"x-ratelimit-reset-requests": "6m0s"}, NOW) is None
    assert asked_pause_seconds(500, {"Retry-After": "4"}, NOW) == 4
    assert asked_pause_seconds(503, {"x-ratelimit-reset-requests": "2s"}, NOW) == 2


def test_a_date_is_compared_with_the_present():
    headers = {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)}
    assert 90 < asked_pause_seconds(429, headers) <= 100


def test_backoff_grows_with_full_jitter_up_to_its_cap():
    assert [pause_seconds(attempt, None, 5, Highest()) for attempt in range(5)] == [1, 2, 4, 5, 5]
    assert pause_seconds(0, 77, 5, Highest()) == 77, "what the server asks for wins over the cap"


@pytest.mark.parametrize(
    "status, retry, throttled, down",
    [(429, True, True, False), (503, True, True, True), (529, True, True, True), (500, True, False, True)]
    + [(0, True, False, True), (400, False, False, False), (200, True, False, True)],
)
def test_what_a_failure_says_about_the_provider(status, retry, throttled, down):
    failure = Failure("x", "", retry, status)
    assert (failure.throttled, failure.provider_is_down) == (throttled, down)
