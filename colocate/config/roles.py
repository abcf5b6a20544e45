"""Which worker processes a run has, by its mode, and which phases each of them runs."""

from __future__ import annotations

from colocate.config.serve import Mode
from colocate.types import WORKER_ROLES, Role

# Every role that computes, of whatever mode. `WORKER_ROLES` are the two phases, and the workers of most modes.
ANY_WORKER = (*WORKER_ROLES, Role.HYBRID)


def roles_of(mode: Mode) -> tuple[Role, ...]:
    """The worker processes of a run."""
    return (Role.HYBRID,) if mode == "chunked" else WORKER_ROLES


def process_of(role: Role, mode: Mode) -> Role:
    """The process that runs this phase; every other role is a process itself."""
    return Role.HYBRID if mode == "chunked" and role in WORKER_ROLES else role


def phases_of(role: Role) -> tuple[Role, ...]:
    """The phases that a worker process runs."""
    return WORKER_ROLES if role is Role.HYBRID else (role,)
