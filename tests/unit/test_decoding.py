"""Whatever is wrong with bytes, whoever reads them need only know one error."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.decoding import decoded
from taskq.errors import MessageError
from taskq.step import Embed

_EMBED = msgspec.json.Decoder(Embed).decode


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b'{"callbacks": 5}', b'{"chord": "\xe9"}', b"[" * 100_000, b"1e999999", b'{"chord": {"task": "\\ud800"}}'],
)
def test_bytes_that_cannot_be_read_are_a_message_error(data: bytes) -> None:
    with pytest.raises(MessageError, match="the embed cannot be read"):
        decoded(_EMBED, data, "the embed")


@given(st.binary())
def test_nothing_else_is_raised_whatever_the_bytes_are(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        assert isinstance(decoded(_EMBED, data, "the embed"), Embed)
