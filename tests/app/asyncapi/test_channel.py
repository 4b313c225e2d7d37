"""Every channel is consistent: its replies exist and its examples are valid."""

from __future__ import annotations

import pytest

from app.asyncapi.channel import Channel
from app.asyncapi.document import SECURITY_SCHEMES
from app.responses.asyncapi_channel import responses_channel
from app.stream.asyncapi_channel import stream_channel

CHANNELS = [
    pytest.param(channel, id=channel.name) for channel in (stream_channel(), responses_channel())
]


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_received_message_lists_its_replies(channel: Channel) -> None:
    assert set(channel.replies) == {message.name for message in channel.received}


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_sent_message_is_a_reply_or_unsolicited(channel: Channel) -> None:
    listed = {*channel.unsolicited, *(name for names in channel.replies.values() for name in names)}
    assert listed == {message.name for message in channel.sent}


@pytest.mark.parametrize("channel", CHANNELS)
def test_examples_are_valid_and_have_unique_names(channel: Channel) -> None:
    for message in (*channel.received, *channel.sent):
        for example in message.examples:
            message.model.validate_python(example.payload)
            assert example.payload["type"] == message.name
        names = [example.name for example in message.examples]
        assert len(set(names)) == len(names), message.name


@pytest.mark.parametrize("channel", CHANNELS)
def test_security_schemes_are_defined(channel: Channel) -> None:
    assert set(channel.security) <= SECURITY_SCHEMES.keys()
