"""A training run's folder: epochs held, epochs missing, and losses by epoch."""

import pytest
from helpers import write_lines

from cqa.errors import DataError
from cqa.run_folder import (
    epoch_folders,
    epoch_name,
    epoch_of,
    missing_epochs,
    planned_epochs,
    read_losses,
)


def make_adapter(folder):
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).touch()


def test_an_epochs_name_leads_back_to_it():
    assert [epoch_name(epoch) for epoch in (1, 12, 100)] == ["epoch-01", "epoch-12", "epoch-100"]
    assert all(epoch_of(epoch_name(epoch)) == epoch for epoch in (1, 12, 100))
    assert [epoch_of(name) for name in ("init", "epoch-", "epoch-1x", "epoch-١")] == [None] * 4


def test_folders_are_found_by_number_in_order(tmp_path):
    for name in ("epoch-10", "epoch-02", "epoch-2", "init", "epoch-x"):
        (tmp_path / name).mkdir()
    held = {
        epoch: [path.name for path in paths] for epoch, paths in epoch_folders(tmp_path).items()
    }
    assert list(held.items()) == [(2, ["epoch-02", "epoch-2"]), (10, ["epoch-10"])]
    assert epoch_folders(tmp_path / "none") == {}


def test_an_epoch_without_both_files_is_missing(tmp_path):
    make_adapter(tmp_path / "epoch-01")
    make_adapter(tmp_path / "epoch-3")
    (tmp_path / "epoch-02").mkdir()
    assert missing_epochs(tmp_path, range(1, 5)) == [2, 4]


def test_a_run_says_how_many_epochs_it_is_to_have(tmp_path):
    assert list(planned_epochs(tmp_path)) == []
    path = tmp_path / "run.json"
    for text, n in (('{"settings": {"epochs": 3}}', 3), ('{"settings": {}}', 0), ("{}", 0)):
        path.write_text(text)
        assert list(planned_epochs(tmp_path)) == list(range(1, n + 1))
    path.write_text('{"settings": {"epochs": "3"}}')
    with pytest.raises(DataError, match=r"run\.json: expected `settings.epochs` to be a whole"):
        planned_epochs(tmp_path)
    path.write_text('{"settings": {"epochs": 100000000}}')
    with pytest.raises(DataError, match=r"run\.json: expected up to 10,000 epochs, got 100000000"):
        planned_epochs(tmp_path)


def test_losses_are_means_by_epoch_of_what_the_log_says(tmp_path):
    log = write_lines(
        tmp_path / "log.jsonl",
        [
            {"event": "step", "epoch": 1, "loss_nats": 4.0},
            {"event": "memory", "step": 1, "pass_tokens": 8},
            {"event": "step", "epoch": 1, "loss_nats": 2},
            {"event": "eval", "epoch": 1, "eval_loss_nats": 2.5},
        ],
    )
    losses = read_losses(tmp_path)
    assert (losses.training, losses.held_out) == ({1: 3.0}, {1: 2.5})
    write_lines(log, [{"event": "step", "epoch": "1", "loss_nats": 4.0}])
    with pytest.raises(DataError, match=r"log\.jsonl:1: expected `epoch` to be a whole number"):
        read_losses(tmp_path)
