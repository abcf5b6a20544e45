"""`python -m colocate.device.cuda.facts_probe INDEX`: print what the driver says of a GPU as JSON, and end.

Prints `{"facts": {...}}` or `{"problem": "..."}`. Makes no context, so it is gone from the GPU when it ends.
"""

from __future__ import annotations

import sys

import msgspec

from colocate.device.cuda.backend import is_fake_chosen
from colocate.device.cuda.driver import CudaError, DeviceDriver, GpuFacts
from colocate.errors import ConfigError


class Answer(msgspec.Struct, frozen=True):
    facts: GpuFacts | None = None
    problem: str = ""
    remedy: str = ""


def main(index: int) -> Answer:
    try:
        return Answer(_driver().facts(index))
    except ConfigError as error:
        return Answer(problem=error.problem, remedy=error.remedy)
    except CudaError as error:
        return Answer(problem=str(error))


def _driver() -> DeviceDriver:
    if is_fake_chosen():
        from colocate.device.cuda.fake import FakeDriver

        return FakeDriver()
    from colocate.device.cuda.bindings import BindingsDriver

    return BindingsDriver()


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(main(int(sys.argv[1]))))
