"""The process of the broker."""

from __future__ import annotations

import faulthandler
import os
import signal

from broker.broker import Broker
from piccolod import config, log
from piccolod.link import Link
from piccolod.module import await_start


def main(link: Link) -> None:
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start, fds = await_start(link)
    configuration = config.from_mapping(start["config"])
    log.configure(configuration.module(start["module"]).log_level)
    broker = Broker(link, start, fds, configuration)
    broker.run()
    broker.close()
    os._exit(0)
