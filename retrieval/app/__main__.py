"""A page on this machine that searches an index of recordings, plays what it finds and draws what TAP listened to.

    python -m retrieval.app --index DIR [--host 127.0.0.1] [--port 7860] [--checkpoint DIR] [--fast-text]

The index is made by `python -m retrieval.search index`. The page needs no internet and sends nothing anywhere. With another --host than this
machine's own, everybody who reaches the port can listen to every file of the index: there is no password.
"""

import argparse
import logging
import os
import socket
import tempfile
from ipaddress import ip_address
from pathlib import Path

from retrieval.errors import OneLineParser, UserError, run_main
from retrieval.progress import silence_transformers


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True, help="folder that `python -m retrieval.search index` made")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; default: 127.0.0.1, this machine alone")
    parser.add_argument("--port", type=int, default=7860, help="default: 7860; 0: any that is free")
    parser.add_argument("--checkpoint", type=Path, help="model folder; default: the one that the index names")
    parser.add_argument("--fast-text", action="store_true", help="text encoder in 8 bit, on a CPU; made at the first use")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.port <= 65535:
        parser.error(f"--port must be 0 to 65535, found {arguments.port}")
    with listen(arguments.host, arguments.port) as listener, tempfile.TemporaryDirectory(prefix="retrieval-app-") as uploads:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": uploads}
        # Below the checks, because these take seconds to import; Gradio reads its settings then.
        from retrieval.search.index import AudioIndex

        silence_transformers()
        index = AudioIndex.open(arguments.index, arguments.checkpoint, fast_text=arguments.fast_text)

        import uvicorn

        from retrieval.app.server import make_server

        logging.getLogger("httpx").setLevel(logging.WARNING)
        server = make_server(index, local_only=ip_address(listener.getsockname()[0]).is_loopback)
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        print(f"search page: http://{host}:{listener.getsockname()[1]} (Ctrl-C ends it)", flush=True)
        uvicorn.Server(uvicorn.Config(server, log_level="warning", timeout_graceful_shutdown=1)).run(sockets=[listener])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens from now on: a page that is opened while the model loads waits for it. Raises UserError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except socket.gaierror as error:
        raise UserError(f"--host {host} is no address of this machine ({error.strerror}): leave it out, or give 0.0.0.0 for all of them") from None
    except OSError as error:
        raise UserError(f"port {port} of {host} cannot be used ({error.strerror}): is the page running already? Give another --port") from None


if __name__ == "__main__":
    run_main(main)
