"""Counting, and the bucket of requests."""

import pytest

from utils.generate.teacher.metering import Meter, RateLimit

USAGE = {"prompt_tokens": 5, "completion_tokens": 4}


def test_calls_are_counted_per_model_and_repeats_by_body():
    meter = Meter()
    for model, call in (("a", b"1"), ("a", b"1"), ("b", b"2")):
        meter.served(model, call, USAGE)
    meter.failed("b")
    report = meter.report()
    assert report["models"]["a"] == {
        "served": 2,
        "repeated": 1,
        "failed": 0,
        "prompt_tokens": 10,
        "completion_tokens": 8,
    }
    assert (report["served"], report["repeated"], report["failed"]) == (3, 1, 1)
    assert "attempts" not in report


def test_the_most_requests_at_a_time_are_kept():
    meter = Meter()
    with meter.inside(), meter.inside():
        pass
    with pytest.raises(ValueError), meter.inside():
        raise ValueError
    assert meter.report()["max_concurrent"] == 2 and meter.active == 0


def test_a_bucket_holds_a_burst_and_fills_evenly():
    rate = RateLimit(600)
    assert [rate.seconds_to_wait(0.0) for _ in range(150)] == [0.0] * 150
    assert rate.seconds_to_wait(0.0) == pytest.approx(0.1)
    assert rate.seconds_to_wait(0.05) == pytest.approx(0.05)
    assert rate.seconds_to_wait(0.1001) == 0.0 and rate.seconds_to_wait(0.1001) > 0.09


def test_over_a_minute_no_more_than_the_rate_and_the_burst_come_in():
    rate = RateLimit(60)
    assert sum(rate.seconds_to_wait(tick / 100) == 0 for tick in range(6000)) == 60 + 15 - 1


def test_headers_say_where_a_client_stands():
    rate = RateLimit(60)
    rate.seconds_to_wait(0.0)
    assert rate.headers(0.0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "14",
        "x-ratelimit-reset-requests": "1.000s",
    }
    assert rate.headers(0.25)["Retry-After"] == "0.250"
