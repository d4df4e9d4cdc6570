"""Reads the event log with nats-py alone.

    events.py NATS_URL

Prints one JSON object a line: subject, the CloudEvents headers and the body.
"""
import asyncio
import json
import sys

import nats
from nats.js.api import ConsumerConfig, DeliverPolicy


async def main() -> None:
    client = await nats.connect(sys.argv[1])
    jetstream = client.jetstream()
    total = (await jetstream.stream_info("TOGI_EVENTS")).state.messages
    subscription = await jetstream.subscribe(
        "togi.events.>", ordered_consumer=True, config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL))
    for _ in range(total):
        message = await subscription.next_msg(timeout=10)
        print(json.dumps({
            "subject": message.subject,
            "headers": dict(message.headers or {}),
            "body": json.loads(message.data),
        }, ensure_ascii=False))
    await client.close()


asyncio.run(main())
