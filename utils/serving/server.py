"""
The life of a server: bind, say where, serve, and on a signal finish what is under way before leaving.

    with bind("127.0.0.1", 8080) as sock:                 # ConfigError for a port that is taken
        asyncio.run(serve(app, sock, stop_seconds=10, announce=print))

On SIGTERM or Ctrl-C no new connections are taken and answers under way have `stop_seconds`; a second signal
leaves at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
from collections.abc import Callable

from aiohttp import web

from utils.pipeline.errors import ConfigError
from utils.pipeline.signals import code_of_signal

BACKLOG = 1024


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet. ConfigError when the address cannot be had."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        text = f"cannot listen on {host} port {port}: {error.strerror}"
        raise ConfigError(text, fix="choose another --port; 0 takes any that is free") from None
    return sock


async def serve(
    app: web.Application, sock: socket.socket, stop_seconds: float, announce: Callable[[str], None]
) -> None:
    """Serve until a signal comes; `announce` gets the base URL once connections are taken."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(code_of_signal(number))
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=stop_seconds)
    await runner.setup()
    try:
        await web.SockSite(runner, sock, backlog=BACKLOG).start()
        host, port = sock.getsockname()[:2]
        announce(f"http://{f'[{host}]' if ':' in host else host}:{port}/v1")
        await stop.wait()
    finally:
        await runner.cleanup()
