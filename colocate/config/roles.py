"""Which workers a run has, by its mode, which phases each of them runs, and which process each of them is."""

from __future__ import annotations

from colocate.config.serve import Mode
from colocate.types import WORKER_ROLES, Role

# Every role that computes, of whatever mode: each has a channel to the engine, a line on the board and a bell.
# `WORKER_ROLES` are the two phases, and the workers of most modes.
ANY_WORKER = (*WORKER_ROLES, Role.HYBRID)

# Every role of a process that computes. The owner's workers are the two phases.
WORKER_PROCESSES = (*ANY_WORKER, Role.OWNER)


def roles_of(mode: Mode) -> tuple[Role, ...]:
    """The workers of a run, as the engine knows them."""
    return (Role.HYBRID,) if mode == "chunked" else WORKER_ROLES


def process_of(role: Role, mode: Mode) -> Role:
    """The worker that runs this phase; every other role is itself."""
    return Role.HYBRID if mode == "chunked" and role in WORKER_ROLES else role


def phases_of(role: Role) -> tuple[Role, ...]:
    """The phases that a worker, or a process of workers, runs."""
    return WORKER_ROLES if role in (Role.HYBRID, Role.OWNER) else (role,)


def processes_of(mode: Mode, single_process: bool) -> tuple[Role, ...]:
    """The processes that the workers of a run are."""
    return (Role.OWNER,) if single_process and mode != "chunked" else roles_of(mode)


def workers_in(process: Role) -> tuple[Role, ...]:
    """The workers that a process runs; a process that is no worker is itself."""
    return WORKER_ROLES if process is Role.OWNER else (process,)
