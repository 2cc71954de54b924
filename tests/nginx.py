"""A private nginx for tests: one process, run by whoever runs the tests, with all its files in a folder of its own."""

import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from machine import program

MAIN = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{http}
}}
"""


@contextmanager
def nginx(folder: Path, http: str, ports: list[int]) -> Iterator[None]:
    """Serve what stands in the block ``http``, which listens on these ports."""
    config = folder / "nginx.conf"
    config.write_text(MAIN.format(folder=folder, http=http))
    command = [program("nginx", package="nginx-light"), "-p", str(folder), "-c", str(config)]
    with (folder / "stderr").open("wb") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        try:
            _await(process, ports, folder)
            yield
        finally:
            process.terminate()


@contextmanager
def proxies(folder: Path, servers: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """One nginx with a ``server`` block for each of these bodies; their addresses, by name."""
    ports = dict(zip(servers, free_ports(len(servers)), strict=True))
    blocks = (f"server {{ listen 127.0.0.1:{ports[name]}; {body} }}" for name, body in servers.items())
    with nginx(folder, "\n".join(blocks), list(ports.values())):
        yield {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}


def free_ports(number: int) -> list[int]:
    """Ports of this machine on which nobody listens; all at once, so that no two are the same."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _await(process: subprocess.Popen[bytes], ports: list[int], folder: Path) -> None:
    deadline = time.monotonic() + 10
    for port in ports:
        while True:
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, f"nginx does not start: {(folder / 'stderr').read_text('utf-8')}"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.01)
