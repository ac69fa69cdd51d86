"""Passwords of URLs show nowhere, whatever is in them and whatever kind of URL it is."""

from __future__ import annotations

import json
import string
from urllib.parse import quote

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.cli.main import cli
from taskq.config import load, masked, without_secrets
from taskq.errors import ConfigurationError, TaskqError
from taskq.results import open_store

#: What no other part of a URL or of a message holds, at both ends of each password.
BEGINNING, END = "Zq7Kx", "xK9qZ"
BROKERS = (
    "amqp://ann:{}@shop.example:5672/shop",
    "amqp://:{}@shop.example//",
    "amqps://ann:{}@shop.example//?ssl_ca_certs=a@b",
)
BACKENDS = (
    "redis://:{}@shop.example:6379/0",
    "redis://ann:{}@shop.example",
    "redis://shop.example/0?password={}",
    "rediss://ann:{}@shop.example:6379/0?ssl_cert_reqs=none",
    "redis+socket://ann:{}@/run/redis.sock?virtual_host=1",
    "redis+socket:///run/redis.sock?password={}&virtual_host=1",
    "postgresql://ann:{}@shop.example:5432/shop?sslmode=require",
    "postgresql://ann:{}@one.example,two.example:5433/shop",
    "postgresql://shop.example/shop?user=ann&password={}&application_name=a@b",
    "postgresql://ann:other@shop.example/shop?sslpassword={}",
)
each_url = pytest.mark.parametrize("url", BROKERS + BACKENDS)
#: Those that are no URL for lack of encoding too.
raw = st.text(st.characters(min_codepoint=33, exclude_characters="\"'`", exclude_categories=["C", "Z"]), max_size=20)
#: As they should be written, from any characters.
encoded = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(lambda text: quote(text, safe=""))


def shows(text: str) -> bool:
    return BEGINNING in text or END in text


@each_url
@settings(max_examples=50)
@given(middle=encoded)
def test_masked_hides_passwords_that_are_encoded(url: str, middle: str) -> None:
    whole = url.format(BEGINNING + middle + END)
    assert not shows(masked(whole))
    assert not shows(masked(f"no way to {whole}: refused; nor to {whole!r}"))


@each_url
@settings(max_examples=50)
@given(middle=raw)
def test_masked_hides_passwords_that_are_not_encoded(url: str, middle: str) -> None:
    if "password" in url:
        # There it ends what follows: nobody could say where the password ends.
        middle = middle.replace("&", "").replace("#", "")
    assert not shows(masked(url.format(BEGINNING + middle + END)))


def refusal(url: str) -> Exception | None:
    """What opening this backend raises."""
    try:
        open_store(url, 60.0).close()
    except TaskqError as error:
        return error
    return None


@pytest.mark.parametrize("url", BACKENDS)
@settings(max_examples=30, deadline=None)
@given(middle=st.one_of(raw, encoded))
def test_a_backend_that_cannot_be_opened_does_not_quote_it(url: str, middle: str) -> None:
    if "password" in url:
        middle = middle.replace("&", "").replace("#", "")
    refused = refusal(url.format(BEGINNING + middle + END))
    assert not shows(str(refused))
    assert refused is None or refused.__cause__ is None


@given(middle=raw, mark=st.sampled_from("/@:?#["))
def test_what_drivers_quote_is_hidden_piece_by_piece(middle: str, mark: str) -> None:
    secret = f"{BEGINNING}{mark}{middle}{mark}{END}"
    url = f"amqp://ann:{secret}@shop.example//"
    assert not shows(without_secrets(f"Port could not be cast as {BEGINNING!r} to an integer; no host {END!r}", url))


def test_short_pieces_are_hidden_where_they_are_quoted_and_no_word_is_spoilt() -> None:
    url = "amqp://ann:a/b@shop.example//"
    assert without_secrets("no port 'a' at shop.example", url) == "no port '***' at shop.example"


@pytest.mark.parametrize("odd", [" ", "\t", '"', "'", "\n"])
@pytest.mark.parametrize("url", BROKERS + BACKENDS)
def test_what_could_not_be_masked_is_refused_unseen(url: str, odd: str) -> None:
    whole = url.format(f"{BEGINNING}{odd}{END}")
    name = "broker" if url.startswith("amqp") else "backend"
    with pytest.raises(ConfigurationError, match="in a URL, write it as '%") as refused:
        load({name: whole}, environment={})
    assert not shows(str(refused.value))


@pytest.mark.parametrize("name", ["concurrency", "queue_type", "scheduler", "memory_limit", "grace"])
@each_url
def test_a_url_in_the_wrong_setting_is_quoted_without_its_password(name: str, url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load({name: url.format(BEGINNING)}, environment={})
    assert not shows(str(refused.value))


@each_url
@pytest.mark.parametrize("secret", [BEGINNING, BEGINNING + string.punctuation.replace('"', "").replace("'", "") + END])
def test_config_does_not_show_it(url: str, secret: str) -> None:
    name = "TASKQ_BROKER" if url.startswith("amqp") else "TASKQ_BACKEND"
    environment = {name: url.format(quote(secret, safe=""))}
    plain = CliRunner().invoke(cli, ["config"], env=environment)
    assert (plain.exit_code, shows(plain.output)) == (0, False)
    told = CliRunner().invoke(cli, ["config", "--json"], env=environment)
    assert not shows(told.output)
    assert "***" in json.loads(told.stdout)[name.removeprefix("TASKQ_").lower()]["value"]
