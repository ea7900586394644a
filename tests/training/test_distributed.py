"""Exchange between processes: the identity in one; two give the loss and gradients of one.

Letters: N texts and B audios of all processes together, D dimensions, F input features.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed import all_reduce, init_process_group

from retrieval.base import exchange
from retrieval.losses.functions import nt_xent
from tests import many_processes, warm_processes
from tests.conftest import PATIENCE, ROOT

NUM_PAIRS, FEATURES, DIM = 5, 6, 4
CLIPS = [0, 1, 2, 0, 3]  # the first and the fourth pair are of one clip, and on different processes
ORDER = [3, 0, 2, 4, 1]  # of the pairs in the batch
FAULTS = (
    "none",
    "no factor",
    "no sum over texts",
    "summed columns",
    "temperature counted twice",
    "own texts only",
)


class Toy(nn.Module):
    """A text and an audio layer and the temperature: all that the exchange has to get right."""

    def __init__(self):
        super().__init__()
        self.text, self.audio = nn.Linear(FEATURES, DIM), nn.Linear(FEATURES, DIM)
        self.temperature = nn.Parameter(torch.tensor(0.2))


def cosine(text: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
    """(N, B)"""
    return nn.functional.normalize(text) @ nn.functional.normalize(audio).T


def toy_and_batch() -> tuple[Toy, torch.Tensor, torch.Tensor, torch.Tensor]:
    """In float64, so that a difference is a mistake and not rounding."""
    torch.manual_seed(0)
    toy = Toy().double()
    return (
        toy,
        torch.randn(NUM_PAIRS, FEATURES).double(),
        torch.randn(NUM_PAIRS, FEATURES).double(),
        torch.tensor(CLIPS),
    )


def one_process(order: list[int]) -> tuple[float, dict[str, torch.Tensor]]:
    """Plain PyTorch with the whole batch, without a call into retrieval.base.exchange."""
    toy, texts, audios, clips = toy_and_batch()
    scores = cosine(toy.text(texts[order]), toy.audio(audios[order]))
    positives = clips[order][:, None] == clips[order][None, :]
    loss = nt_xent(scores, positives, temperature=toy.temperature)
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in toy.named_parameters()}


def one_of_two_processes(rank: int, port: int, folder: Path) -> None:
    """The training step's exchange, once as it is and once with each fault; writes the losses and
    averaged gradients of all.
    """
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    init_process_group("gloo", rank=rank, world_size=2)
    results = {fault: train_step(fault) for fault in FAULTS}
    device = torch.device("cpu")
    votes = [exchange.any_process(flag, device) for flag in (False, rank == 1, True)]
    rows = exchange.gather_rows(torch.full((rank + 1, 2), rank)).tolist()
    exchange.copy_from_first(copied := torch.full((2,), rank + 5))
    place = (exchange.rank(), exchange.world_size())
    torch.save(
        {
            "results": results,
            "votes": votes,
            "rows": rows,
            "place": place,
            "copied": copied.tolist(),
        },
        folder / f"{rank}.pt",
    )
    many_processes.leave()


def train_step(fault: str) -> tuple[float, dict[str, torch.Tensor]]:
    toy, texts, audios, clips = toy_and_batch()
    own = own_share(exchange.rank())
    text = toy.text(texts[own])
    if fault == "no sum over texts":
        gathered = exchange._GatherOwn.apply(text)
    elif fault == "own texts only":
        gathered = exchange.gather_rows(text)
    else:
        gathered = exchange.gather_texts(text)
    block = cosine(gathered, toy.audio(audios[own]))  # (N, b)
    scores = (
        exchange._GatherSummed.apply(block.T).T
        if fault == "summed columns"
        else exchange.gather_columns(block)
    )  # (N, B)
    clips = exchange.gather_rows(clips[own])
    temperature = (
        toy.temperature
        if fault == "temperature counted twice"
        else exchange.replicated(toy.temperature)
    )
    loss = nt_xent(scores, clips[:, None] == clips[None, :], temperature=temperature)
    (loss * (1 if fault == "no factor" else exchange.world_size())).backward()
    gradients = {}
    for name, parameter in toy.named_parameters():  # as DistributedDataParallel does
        gradients[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        all_reduce(gradients[name])
        gradients[name] /= exchange.world_size()
    return loss.item(), gradients


def own_share(rank: int) -> list[int]:
    """The pairs of this process, dealt out as in training: three for one, two for the other."""
    return ORDER[rank::2]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("two_processes")
    port = many_processes.free_port()
    warm_processes.spawn(one_of_two_processes, (port, folder), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative to the largest entry of each gradient."""
    assert found.keys() == expected.keys()
    return max(
        ((found[name] - value).abs().max() / value.abs().max()).item()
        for name, value in expected.items()
    )


def test_shares_are_uneven_and_split_a_clip_s_captions():
    shares = [own_share(0), own_share(1)]
    assert [len(share) for share in shares] == [3, 2] and sorted(shares[0] + shares[1]) == list(
        range(NUM_PAIRS)
    )
    assert (0 in shares[0]) != (3 in shares[0])


@pytest.mark.parametrize("rank", [0, 1])
def test_loss_and_gradients_are_those_of_one_process(two_processes: list[dict], rank: int):
    loss, gradients = two_processes[rank]["results"]["none"]
    expected_loss, expected = one_process(own_share(0) + own_share(1))
    assert abs(loss - expected_loss) < 1e-12
    assert largest_difference(gradients, expected) < 1e-6
    # Both captions of a clip are positives wherever they are: the order of the pairs does not
    # matter either.
    assert abs(loss - one_process(list(range(NUM_PAIRS)))[0]) < 1e-12


@pytest.mark.parametrize("fault", FAULTS[1:])
def test_negative_controls_every_fault_is_seen(two_processes: list[dict], fault: str):
    gradients = two_processes[0]["results"][fault][1]
    assert largest_difference(gradients, one_process(own_share(0) + own_share(1))[1]) > 1e-2


def test_rows_come_in_order_of_rank_from_uneven_shares(two_processes: list[dict]):
    for rank, process in enumerate(two_processes):
        assert process["place"] == (rank, 2)
        assert process["rows"] == [[0, 0], [1, 1], [1, 1]]


def test_values_of_the_first_process_are_everyone_s(two_processes: list[dict]):
    assert [process["copied"] for process in two_processes] == [[5, 5]] * 2


def test_one_vote_is_heard_by_all(two_processes: list[dict]):
    assert [process["votes"] for process in two_processes] == [[False, True, True]] * 2


ENDS_AT_ONCE = """
import sys
import torch
from retrieval.base import exchange
sys.setswitchinterval(100)  # Python's lock is not handed over before this thread has to wait
torch.set_num_threads(1)
exchange.dist.init_process_group("gloo")
for _ in range(4):
    exchange.gather_rows(torch.ones(200, 50))
"""


def test_processes_that_end_after_an_exchange_end_well():
    """Without `release_tensors` about one in five is aborted."""
    processes = []
    for _ in range(4):
        where = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(many_processes.free_port()),
            "WORLD_SIZE": "2",
        }
        for rank in range(2):
            environment = os.environ | where | {"RANK": str(rank)}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", ENDS_AT_ONCE],
                    cwd=ROOT,
                    env=environment,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
    assert [
        (process.communicate(timeout=PATIENCE)[1], process.returncode) for process in processes
    ] == [("", 0)] * len(processes)


# --- one process ---


def test_alone_everything_is_identity():
    assert (exchange.world_size(), exchange.rank()) == (1, 0)
    values = torch.randn(3, 2, requires_grad=True)
    for gather in (exchange.gather_texts, exchange.gather_columns, exchange.gather_rows):
        assert gather(values) is values
    device = torch.device("cpu")
    assert (
        exchange.any_process(True, device) is True and exchange.any_process(False, device) is False
    )


@pytest.mark.parametrize("value", [0.05, 0.07, 1 / 3])
def test_alone_a_replicated_parameter_keeps_value_and_gradient(value: float):
    parameter = torch.tensor(value, requires_grad=True)
    replicated = exchange.replicated(parameter)
    assert replicated.item() == parameter.item()
    (3 * replicated).backward()
    assert parameter.grad.item() == 3
