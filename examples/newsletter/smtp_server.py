"""A mail server to try the newsletter on: takes mails by SMTP, keeps them in a file, delivers none.

Like real ones it takes its time and says no for a while: the first tries of every so many-th recipient get a 451.
Runs until SIGTERM or, with --until-eof, until its standard input ends. The file has one JSON object a line: each mail that
was accepted (`to`, `message_id`), each refusal (`refused`), each new peak of open sessions (`sessions`).
"""

from __future__ import annotations

import argparse
import asyncio
import email
import json
import random
import signal
import sys
from collections import Counter
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session


class Mailbox:
    """aiosmtpd's handler: its hooks are called for each command of a session. Owns the file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._file = options.store.open("a", buffering=1)
        self._tries: Counter[str] = Counter()
        self._unlucky: set[str] = set()
        self._to_lose = options.lose
        self._open: set[Session] = set()
        self._peak = 0

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        """A session begins: counted, and slow, as with real servers."""
        session.host_name = hostname
        self._open.add(session)
        if len(self._open) > self._peak:
            self._peak = len(self._open)
            self._note(sessions=self._peak)
        await asyncio.sleep(random.uniform(0.5, 1.5) * self._options.delay)
        return responses

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]
    ) -> str:
        if address not in self._tries and (len(self._tries) + 1) % self._options.refuse_every == 0:
            self._unlucky.add(address)
        self._tries[address] += 1
        if address in self._unlucky and self._tries[address] <= self._options.refusals:
            self._note(refused=address)
            return "451 4.7.1 Greylisted, please try again later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self._to_lose > 0:
            self._to_lose -= 1
            return "250 OK, and then forgotten"
        content = envelope.content
        message = email.message_from_bytes(content if isinstance(content, bytes) else b"")
        for address in envelope.rcpt_tos:
            self._note(to=address, message_id=message["Message-ID"])
        return "250 OK"

    async def handle_QUIT(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        self._open.discard(session)
        return "221 Bye"

    def _note(self, **values: object) -> None:
        self._file.write(json.dumps(values) + "\n")


async def serve(options: argparse.Namespace) -> None:
    """Prints the port that it listens on."""
    loop = asyncio.get_running_loop()
    mailbox = Mailbox(options)
    listening = await loop.create_server(
        lambda: SMTP(mailbox, hostname="mail.example", loop=loop), "127.0.0.1", options.port
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if options.until_eof:
        loop.add_reader(sys.stdin, stop.set)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await stop.wait()
    listening.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=8025, help="0: a free one (default: 8025)")
    parser.add_argument("--store", type=Path, default=Path("mails.jsonl"), help="default: mails.jsonl")
    parser.add_argument("--delay", type=float, default=0.06, metavar="SECONDS", help="of a session, about")
    parser.add_argument("--refuse-every", type=int, default=7, metavar="N", help="every Nth recipient …")
    parser.add_argument("--refusals", type=int, default=2, metavar="TIMES", help="… is refused so many times")
    parser.add_argument("--lose", type=int, default=0, metavar="MAILS", help="accept so many and forget them")
    parser.add_argument("--until-eof", action="store_true", help="end with the standard input")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
