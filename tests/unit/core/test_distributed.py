"""Processes of one run, according to the variables of launchers."""

import pytest

from blip3o.core.distributed import _local_rank, count_processes
from blip3o.core.errors import UsageError

JOINED = {"RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_NTASKS": "2"},
        {"SLURM_NPROCS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "3"},
        {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8"},
        {"PMI_SIZE": "2"},
        {"OMPI_COMM_WORLD_SIZE": "16", "SLURM_STEP_NUM_TASKS": "1"},
        {"MV2_COMM_WORLD_SIZE": "2"},
        {"SLURM_NTASKS": "2", "WORLD_SIZE": "1"},
        {"SLURM_NTASKS": "2", "RANK": "0"},
    ],
)
def test_several_processes_without_a_rank_are_refused(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"torchrun.*scripts/slurm") as caught:
        count_processes(environ)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_NTASKS": "1"},
        {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"},  # srun --ntasks=1, or salloc's shell
        {"SLURM_NTASKS": "8", "OMPI_COMM_WORLD_SIZE": "1"},
        {"SLURM_NTASKS": ""},
        {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "12"},
        {"SLURM_NTASKS": "4", "WORLD_SIZE": "1", "RANK": "0"},
    ],
)
def test_a_single_process_is_recognized(environ: dict[str, str]) -> None:
    assert count_processes(environ) == 1


def test_joined_processes_count_as_the_launcher_says() -> None:
    assert count_processes({**JOINED, "WORLD_SIZE": "2", "SLURM_NTASKS": "2"}) == 2


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE must be a whole number, got ''"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a whole number"),
        ({"WORLD_SIZE": "2.5", "RANK": "0"}, "WORLD_SIZE must be a whole number"),
        ({"WORLD_SIZE": "2", "RANK": ""}, "RANK must be a whole number"),
        ({"WORLD_SIZE": "0"}, "does not fit"),
        ({"WORLD_SIZE": "-1"}, "does not fit"),
        ({"RANK": "1"}, "RANK=1 does not fit WORLD_SIZE=unset"),
        ({**JOINED, "WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 does not fit WORLD_SIZE=2"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_ADDR is not set"),
        ({**JOINED, "WORLD_SIZE": "2", "MASTER_PORT": ""}, "MASTER_PORT is not set"),
    ],
)
def test_inconsistent_variables_are_reported_in_one_line(
    environ: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        count_processes(environ)
    assert "\n" not in str(caught.value)


def test_each_process_uses_the_gpu_of_its_local_rank() -> None:
    assert _local_rank({"LOCAL_RANK": "3"}, 4) == 3
    for environ in ({}, {"LOCAL_RANK": "4"}, {"LOCAL_RANK": "x"}):
        with pytest.raises(UsageError, match="LOCAL_RANK"):
            _local_rank(environ, 4)
