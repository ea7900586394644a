"""Search page in the browser: find recordings of an index, play them, see TAP's attention.

    python -m retrieval.app --index DIR [--host 127.0.0.1] [--port 7860] [--checkpoint DIR]
        [--fast-text] [--password [WORD] | --no-password]

`python -m retrieval.search index` makes the index. The page needs no internet and sends no data to
other machines. By default only this machine reaches the page. --host 0.0.0.0 opens it to the
network; it then needs a password, by default a token that is printed at the start. Everyone with
the password can listen to every file of the index.
"""

import argparse
import getpass
import logging
import os
import secrets
import socket
import sys
import tempfile
from ipaddress import ip_address
from pathlib import Path

from retrieval.base.errors import OneLineParser, UserError
from retrieval.base.extras import needs_extra
from retrieval.base.launch import check_environment
from retrieval.base.progress import silence_transformers
from retrieval.search.place_options import add_place, check_store_arguments

PASSWORD_VARIABLE = "RETRIEVAL_PASSWORD"
SHORTEST_PASSWORD = 8


def main(argv: list[str] | None = None) -> int:
    parser = OneLineParser(
        prog="python -m retrieval.app",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add_place(parser, is_required=True)
    host = "address to listen at; default: 127.0.0.1, this machine only"
    add("--host", default="127.0.0.1", help=host)
    add("--port", type=int, default=7860, help="default: 7860; 0: any free port")
    add("--checkpoint", type=Path, help="where the index's model is now; default: where it was")
    text_encoder = "tokenizer of a .ckpt: a folder or hub name; default: as when the index was made"
    add("--text-encoder", type=Path, metavar="NAME", help=text_encoder)
    fast = "use a text encoder in 8 bit, on a CPU; it is made at the first use"
    add("--fast-text", action="store_true", help=fast)
    password = (
        f"password of the page; without WORD the command asks for it. {PASSWORD_VARIABLE} sets it"
        " too; other users of this machine can read WORD, but not the variable. Default for a"
        " --host that other machines reach: a new token"
    )
    add("--password", nargs="?", const="", metavar="WORD", help=password)
    everyone = "open the page to everyone who reaches the port"
    add("--no-password", action="store_true", help=everyone)
    arguments = parser.parse_args(argv)
    check_store_arguments(arguments, parser)
    if not 0 <= arguments.port <= 65535:
        parser.error(f"--port must be 0 to 65535, found {arguments.port}")
    if arguments.password is not None and arguments.no_password:
        parser.error("--password and --no-password exclude each other")
    check_environment(several=False)
    chosen = None if arguments.no_password else chosen_password(arguments.password)
    with (
        listen(arguments.host, arguments.port) as listener,
        tempfile.TemporaryDirectory(prefix="retrieval-app-") as folder,
    ):
        os.environ |= {
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "GRADIO_TEMP_DIR": folder,
        }
        # After the checks, because these imports take seconds. Gradio reads the variables above at
        # import.
        with needs_extra("search"):
            import uvicorn

            from retrieval.search.index import AudioIndex
            from retrieval.search.page.server import make_server

        silence_transformers()
        index = AudioIndex.open(
            arguments.index,
            arguments.checkpoint,
            text_encoder=arguments.text_encoder,
            fast_text=arguments.fast_text,
            frames_store=arguments.frames_store,
        )
        logging.getLogger("httpx").setLevel(logging.WARNING)
        address, port = listener.getsockname()[:2]
        is_local = ip_address(address).is_loopback
        token = None if chosen or arguments.no_password or is_local else secrets.token_urlsafe(24)
        password = chosen or token
        names = None if password and not is_local else own_names(arguments.host, is_local)
        server = make_server(index, Path(folder) / "uploads", names, password)
        is_any = ip_address(address).is_unspecified
        host = network_address(listener.family) if is_any else arguments.host
        host = f"[{host}]" if ":" in host else host
        if not is_local:
            line = warning(arguments.host, port, index.num_files, password)
            print(line, file=sys.stderr, flush=True)
        url = f"http://{host}:{port}" + (f"/?token={token}" if token else "")
        print(f"search page: {url} (Ctrl-C ends it)", flush=True)
        config = uvicorn.Config(server, log_level="warning", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def chosen_password(given: str | None) -> str | None:
    """Return the password that the user chose, by option, at the terminal or in the environment.

    Args:
        given: Value of --password; empty: ask at the terminal.

    Returns:
        The password; None if none was chosen.

    Raises:
        UserError: The password is too short, or there is no terminal to ask at.
    """
    if given == "":
        if not sys.stdin.isatty():
            raise UserError(
                "--password without a word asks for it, but there is no terminal: set"
                f" {PASSWORD_VARIABLE}"
            )
        given = getpass.getpass("password of the page: ")
    password = given if given is not None else os.environ.get(PASSWORD_VARIABLE)
    if password is not None and len(password) < SHORTEST_PASSWORD:
        source = "--password" if given is not None else PASSWORD_VARIABLE
        raise UserError(
            f"{source} must have at least {SHORTEST_PASSWORD} characters, found {len(password)}"
        )
    return password


def network_address(family: socket.AddressFamily) -> str:
    """Return the address at which other machines reach this one."""
    # addresses for documentation: RFC 3849, RFC 5737
    outside = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((outside, 9))  # chooses the route; sends nothing
            return probe.getsockname()[0]
        except OSError:  # no network
            return socket.gethostname()


def own_names(host: str, is_local: bool) -> frozenset[str]:
    """Return the names of this machine that the page answers to, in lower case."""
    others = [] if is_local else [host, socket.gethostname(), socket.getfqdn()]
    return frozenset(name.lower() for name in ["localhost", *others])


def warning(host: str, port: int, num_files: int, password: str | None) -> str:
    who = "everyone with the password"
    if not password:
        who = "everyone who reaches it, without a password,"
    return (
        f"warning: port {port} of {host} is open to the network: {who} can search and listen to all"
        f" {num_files:,} recordings of the index, and upload files. The connection is not"
        " encrypted: in a network that you do not trust, put a server with HTTPS in front"
    )


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket: a browser can connect while the model loads. Raises UserError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except socket.gaierror as error:
        raise UserError(
            f"--host {host} is not an address of this machine ({error.strerror}): leave it out, or"
            " give 0.0.0.0 for all addresses"
        ) from None
    except OSError as error:
        raise UserError(
            f"port {port} of {host} cannot be used ({error.strerror}): is the page running already?"
            " Give another --port"
        ) from None
