"""torchrun's environment variables: an address that makes no sense ends in one line, not in a traceback."""

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from processes import be_one_of, group

import train
import utils
from runtime import processes, rank
from runtime.errors import UserError

RIGHT = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(("name", "value"), [("MASTER_PORT", "65536"), ("MASTER_PORT", ""), ("MASTER_ADDR", "")])
def test_an_address_that_makes_no_sense_is_named(name, value, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    be_one_of(monkeypatch, RIGHT | {name: value})
    left = []
    monkeypatch.setattr(processes, "leave", lambda: left.append(True))  # it would end this process
    with pytest.raises(SystemExit) as end:
        utils.command(lambda: train.main(["--dataset", "DIGITS", "--device", "cpu"]))
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert f"{(RIGHT | {name: value})['MASTER_ADDR']}:" in err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variables", [RIGHT, RIGHT | {"RANK": "1", "MASTER_PORT": "65535"}, {"WORLD_SIZE": "x"}, {}])
def test_right_variables(variables, monkeypatch):
    """Without all four nothing was launched: what they say does not matter."""
    for name in RIGHT:
        monkeypatch.delenv(name, raising=False)
    be_one_of(monkeypatch, variables)
    assert (rank.rank(), rank.world_size()) == ((int(variables["RANK"]), 2) if len(variables) > 1 else (0, 1))


def test_a_process_that_nobody_joins_ends_in_good_time(monkeypatch):
    assert processes.TIMEOUT <= timedelta(minutes=5)
    be_one_of(monkeypatch, group(2)[0])
    monkeypatch.setattr(processes, "TIMEOUT", timedelta(seconds=1))
    start = time.monotonic()
    with pytest.raises(UserError, match="process 0 of 2 failed to connect .* 127.0.0.1:.*1/2 clients.*torchrun"):
        processes.start(torch.device("cpu"))
    assert time.monotonic() - start < 20 and not dist.is_initialized()
