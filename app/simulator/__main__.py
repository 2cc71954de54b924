"""The simulated provider as a process of its own: ``python -m app.simulator --port 9000 --tokens-per-second 50``.

Prints its base URL on standard output, logs its connections to standard error or to ``--log FILE``, and ends at
SIGINT or SIGTERM.
"""

import argparse
import logging
import signal
import sys
import threading

from app.simulator.server import Simulator


def main() -> None:
    """Serve until told to stop."""
    options = _options()
    logging.basicConfig(level=logging.INFO, filename=options.log, format="%(asctime)s %(name)s %(message)s")
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    simulator = _started(options)
    sys.stdout.write(f"{simulator.base_url}\n")
    sys.stdout.flush()
    stopped.wait()
    simulator.stop()


def _started(options: argparse.Namespace) -> Simulator:
    try:
        return Simulator(
            options.host,
            options.port,
            tokens_per_second=options.tokens_per_second,
            first_token_s=options.first_token_s,
        ).start()
    except OSError as error:
        sys.exit(f"Cannot listen on {options.host}:{options.port}: {error.strerror}. Choose another --host or --port.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.simulator", description="A simulated OpenAI-wire provider.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: a free one")
    parser.add_argument("--tokens-per-second", type=float, default=40.0, help="0: flat out")
    parser.add_argument("--first-token-s", type=float, default=0.0, help="silence before the first token, in seconds")
    parser.add_argument("--log", metavar="FILE", help="where the connection log goes; standard error without it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
