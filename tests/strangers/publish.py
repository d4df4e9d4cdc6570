"""Asks for training with nats-py alone: a line of JSON, published to togi.jobs.train.

    publish.py NATS_URL LINE

Prints the message's place in the stream.
"""
import asyncio
import sys

import nats


async def main() -> None:
    client = await nats.connect(sys.argv[1])
    stored = await client.jetstream().publish("togi.jobs.train", sys.argv[2].encode())
    print(stored.seq)
    await client.close()


asyncio.run(main())
