"""A real llama-server with the GGUF file of the storyteller."""

import socket
import subprocess
from contextlib import contextmanager

import httpx

import to_gguf
from engines.gguf_files import gguf_file
from waiting import WAIT_SECONDS, wait_until


@contextmanager
def llama_server(folder, *more):
    """A client of the server, which runs until the block ends; its log is in `folder`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [to_gguf.server(), "-m", gguf_file("storyteller"), "--port", port]
    settings = ["--ctx-size", 1024, "-ctk", "f32", "-ctv", "f32", "--no-webui"]

    def answers():
        try:
            return httpx.get(f"{url}/health").status_code == 200
        except httpx.HTTPError:
            return False

    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, [*command, *settings, *more])), stdout=log, stderr=log
        )
        try:
            wait_until(
                answers,
                lambda: (folder / "log").read_text()[-2000:],
                alive=lambda: process.poll() is None,
            )
            with httpx.Client(base_url=url, timeout=WAIT_SECONDS) as client:
                yield client
        finally:
            process.terminate()
            process.wait(WAIT_SECONDS)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]
